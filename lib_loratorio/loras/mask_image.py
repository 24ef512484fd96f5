"""A mask's image: which LoRA is painted where, by colour."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from lib_loratorio.declaration import Picture
from lib_loratorio.errors import SettingsError
from lib_loratorio.palette import COLOURS, hexadecimal

NOBODYS = ((0, 0, 0), (255, 255, 255))
"""Colours that leave a place to those without a colour; so does what is transparent."""

NEAR = 48
"""How far apart two colours may be, in the largest channel, to be taken for one: files may have been compressed."""

STRAY = 0.02
"""The share of pixels of any colour that do not matter, as where two painted places touch."""

LARGEST = 512
"""To so many pixels an image's longer edge is brought: regions need no more."""

MOST_PIXELS = 2**26


REMEMBERED = 16

_latest: OrderedDict[str, str] = OrderedDict()
"""The latest masks of this process by their names in parameters, so that pasting a picture's finds them again."""


def remembered(mask: str) -> str:
    """The mask of a setting, which may be named only. Raises SettingsError for a name that nothing is known of."""
    name = Picture().written(mask)
    if mask != name:
        _latest[name] = mask
    elif name not in _latest:
        raise SettingsError(
            f"mask is {name}: a picture's parameters name its mask, and do not hold it. Load the image that was saved "
            "beside the picture, or clear the mask."
        )
    _latest.move_to_end(name)
    while len(_latest) > REMEMBERED:
        _latest.popitem(last=False)
    return _latest[name]


def at_hand(mask: str) -> str:
    """The mask that is named so, or the name where nothing is known of it."""
    return _latest.get(mask, mask)


def read_image(text: str) -> Image.Image:
    """The image of a setting's text. Raises SettingsError for what is none."""
    try:
        image = Image.open(io.BytesIO(Picture.content(text) or b""))
        if image.width * image.height > MOST_PIXELS:
            raise SettingsError(
                f"mask is an image of {image.width} x {image.height} pixels, which is too large; "
                "make it as large as the picture."
            )
        return image.convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError("mask is no image that can be read; it must be a PNG or the like, as base64.") from error


def numbers_in(image: Image.Image, names: Sequence[str]) -> np.ndarray:
    """Of each pixel `[h,w]` the number of the LoRA whose colour it has, -1 for nobody's.

    `names` are the LoRAs that have a colour, in their order. Raises SettingsError for colours that none of them has.
    """
    if max(image.size) > LARGEST:
        factor = LARGEST / max(image.size)
        image = image.resize([max(1, round(edge * factor)) for edge in image.size], Image.Resampling.NEAREST)
    pixels = np.asarray(image.convert("RGBA")).astype(np.int16)
    known = np.array([*COLOURS, *NOBODYS], np.int16)
    distances = np.abs(pixels[:, :, None, :3] - known).max(-1)
    nearest = distances.argmin(-1)
    nearest[pixels[..., 3] < 128] = len(COLOURS)
    stray = (distances.min(-1) > NEAR) & (pixels[..., 3] >= 128)
    if stray.mean() > STRAY:
        colour = Counter(map(tuple, pixels[stray][:, :3].tolist())).most_common(1)[0][0]
        raise SettingsError(f"mask has the colour {hexadecimal(colour)}, which no LoRA has; {_colours(names)}.")
    found = np.where(nearest < len(COLOURS), nearest, -1)
    found[stray] = -1
    for number in range(len(names), len(COLOURS)):
        if (found == number).mean() > STRAY:
            colour = hexadecimal(COLOURS[number])
            raise SettingsError(
                f"mask has the colour {colour} of LoRA number {number + 1}, which is not there; {_colours(names)}."
            )
    found[found >= len(names)] = -1
    if not (found >= 0).any():
        raise SettingsError(f"mask has no LoRA's colour in it; {_colours(names)}.")
    return found


def colours_in(mask: str) -> list[int]:
    """The numbers of the LoRAs that have places in a setting's mask, among those that compete; none without a mask.

    Raises SettingsError for a mask that cannot be read, and for colours that no LoRA can have.
    """
    if not mask:
        return []
    found = numbers_in(read_image(remembered(mask)), [f"LoRA {number}" for number in range(1, len(COLOURS) + 1)])
    return sorted({int(number) for number in np.unique(found)} - {-1})


def _colours(names: Sequence[str]) -> str:
    listed = ", ".join(f"{hexadecimal(colour)} is {name}'s" for colour, name in zip(COLOURS, names))
    return f"{listed or 'no LoRA competes here'}; black, white and transparent are nobody's"
