"""The accordion's group *Places*: which LoRA may be where, and an image to be painted in the LoRAs' colours.

The page's script draws it, and writes the mask into its setting's text box; here is what it asks for.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL.Image import Image

from lib_loratorio.errors import SettingsError, untold
from lib_loratorio.loras.mask_image import colours_in
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.page.live import tags_of
from lib_loratorio.palette import COLOURS, hexadecimal
from lib_loratorio.settings import SETTINGS


def told(prompt: str) -> dict[str, Any]:
    """What the group shows of a prompt.

    places: of each LoRA that competes its name, its colour, None beyond the last one, and its boxes, as
        `[left, top, right, bottom]` in fractions of the picture; none for everywhere. problem: what of a region cannot
        be read, or empty.
    """
    places, problem = [], ""
    for name, named in tags_of(prompt):
        try:
            tag = LoraTag.read({key: value for key, value in named.items() if key in ("lt", "ltbox", "ltat")}, name)
        except SettingsError as error:
            problem, tag = problem or untold(str(error)), LoraTag()
        if not tag.is_global:
            colour = hexadecimal(COLOURS[len(places)]) if len(places) < len(COLOURS) else None
            boxes = [list(box) for box in tag.region.boxes] if tag.region else []
            places.append({"name": name, "colour": colour, "boxes": boxes})
    return {"places": places, "problem": problem}


def painted(mask: str) -> dict[str, Any]:
    """What the group and the price go by of a mask, as its setting has it.

    painted: the numbers of the colours in it, which are those of the LoRAs that compete. problem: why it cannot be
    read, or empty.
    """
    try:
        return {"painted": colours_in(str(SETTINGS["mask"].kind("mask", mask))), "problem": ""}
    except SettingsError as error:
        return {"painted": [], "problem": untold(str(error))}


def as_mask(image: Image | None) -> dict[str, str]:
    """An image as the mask's setting has it; empty for none."""
    if image is None:
        return {"mask": ""}
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"mask": base64.b64encode(file.getvalue()).decode()}
