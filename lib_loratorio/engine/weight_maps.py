"""The weight matrix as pictures: where each LoRA weighed most.

Patch weights are `[N, B, h, w]`, of N adapters and B pictures, and sum to 1 over N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont as Font

TILE = 256
"""Least width of a panel's tile in pixels; smaller pictures are enlarged."""

COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 150, 150),
)
"""Okabe and Ito's palette, which colour-blind people can tell apart too."""

MOST, OTHERS = len(COLOURS), (60, 60, 60)
"""How many adapters are shown, and the colour of the places that others win."""

HEAT = (
    (0.0, (13, 8, 135)),
    (0.25, (126, 3, 168)),
    (0.5, (204, 71, 120)),
    (0.75, (248, 149, 64)),
    (1.0, (240, 249, 33)),
)
"""Weight 0 to 1 in colours, after matplotlib's plasma."""

BACKGROUND, INK = (24, 24, 24), (235, 235, 235)
MARGIN = 8


class WeightMaps:
    """The running mean of the weights over a sampling's calls; its size does not depend on their number.

    mean: `[N, B, h, w]`, None before the first call.
    """

    def __init__(self) -> None:
        self.mean: torch.Tensor | None = None
        self._by_call: list[torch.Tensor] = []

    @property
    def shares_by_call(self) -> list[list[float]]:
        """Per call, each adapter's mean weight over all places and pictures; sums to 1."""
        return [shares.tolist() for shares in self._by_call]

    def add(self, weights: torch.Tensor) -> None:
        """Takes in one call's patch weights. Raises ValueError where their shape is not that of the calls before."""
        weights = weights.detach().float()
        if self.mean is None:
            self.mean = torch.zeros_like(weights)
        if weights.shape != self.mean.shape:
            raise ValueError(f"weights are {tuple(weights.shape)}, those before were {tuple(self.mean.shape)}")
        self._by_call.append(weights.mean((1, 2, 3)))  # not read out here, where a GPU would have to be waited for
        self.mean += (weights - self.mean) / len(self._by_call)

    def shares(self) -> torch.Tensor:
        """Each adapter's mean weight in each picture, `[N, B]`; sums to 1 over N. Raises ValueError before the first
        call.
        """
        if self.mean is None:
            raise ValueError("no weights have been added yet")
        return self.mean.mean((-2, -1))


def of_pictures(
    weights: torch.Tensor, adapters: Sequence[int], members: Sequence[int], picture_of: torch.Tensor
) -> torch.Tensor:
    """A call's patch weights `[n, C, h, w]`, of those adapters that took part and of C conditional rows, as `[N, B, h,
    w]` of all N members: 0 for adapters that took no part, and for each picture the mean over its rows.
    """
    pictures = int(picture_of.max()) + 1
    every = weights.new_zeros(len(members), pictures, *weights.shape[2:])
    rows = torch.bincount(picture_of, minlength=pictures).to(weights).view(1, -1, 1, 1)
    every[[members.index(adapter) for adapter in adapters]] = (
        weights.new_zeros(len(adapters), *every.shape[1:]).index_add_(1, picture_of, weights) / rows
    )
    return every


def weight_panel(
    picture: Image.Image,
    weights: torch.Tensor,
    names: Sequence[str],
    patch: int,
    font: Callable[[int], Font] = ImageFont.load_default,
) -> Image.Image:
    """One row of tiles: the picture, a heat map with its share for each adapter, and who wins where.

    Of more than `MOST` adapters those with the largest shares are shown, and the last line tells what the others have.

    Args:
        picture: the finished picture.
        weights: `[N, h, w]`, its patch weights.
        names: N names.
        patch: edge of a patch in pixels of the picture; the last row and column may be cut off by its border.
        font: gives a font of a size in pixels; the default needs Pillow 10.1.
    """
    weights = weights.detach().float().cpu()
    shown = weights.mean((-2, -1)).topk(min(MOST, len(weights))).indices.sort().values.tolist()
    colours = [COLOURS[shown.index(n)] if n in shown else OTHERS for n in range(len(names))]
    factor = max(1, -(-TILE // picture.width))
    size = (picture.width * factor, picture.height * factor)
    plain = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    grey = plain.convert("L").convert("RGB")
    shares = weights.mean((-2, -1))
    tiles = [(plain, [("picture", None)])]
    for n in shown:
        heat = Image.blend(grey, _on_picture(_heat(weights[n].numpy()), patch, picture.size, size), 0.6)
        tiles.append((heat, [(f"{names[n]} {shares[n]:.0%}", None)]))
    legend = [(names[n], colours[n]) for n in shown]
    if len(shown) < len(names):
        legend.append((f"{len(names) - len(shown)} others {1 - shares[shown].sum():.0%}", OTHERS))
    tiles.append((Image.blend(grey, _on_picture(dominant(weights, colours), patch, picture.size, size), 0.6), legend))
    return _row(tiles, size, font(max(14, size[0] // 20)))


def dominant(weights: torch.Tensor, colours: Sequence[tuple[int, int, int]] = COLOURS) -> Image.Image:
    """Who wins where: one pixel a patch, in the colour of the adapter that weighs most; `weights [N, h, w]`, at least N
    colours.
    """
    return Image.fromarray(np.array(colours, np.uint8)[weights.argmax(0).cpu().numpy()])


def _heat(weight: np.ndarray) -> Image.Image:
    stops = [stop for stop, _ in HEAT]
    channels = [np.interp(weight, stops, [colour[channel] for _, colour in HEAT]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def _on_picture(patches: Image.Image, patch: int, picture: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """One pixel a patch, brought over the picture: nearest, because a patch has one weight, with what the border cuts
    off.
    """
    whole = patches.resize((patches.width * patch, patches.height * patch), Image.Resampling.NEAREST)
    return whole.crop((0, 0, *picture)).resize(size, Image.Resampling.NEAREST)


def _row(tiles: Sequence[tuple[Image.Image, list]], size: tuple[int, int], font: Font) -> Image.Image:
    line = sum(font.getmetrics()) + 4
    width, height = size
    heading = line * max(len(captions) for _, captions in tiles)
    panel = Image.new("RGB", (MARGIN + (width + MARGIN) * len(tiles), height + heading + 3 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for number, (tile, captions) in enumerate(tiles):
        x = MARGIN + (width + MARGIN) * number
        panel.paste(tile, (x, MARGIN))
        for place, (text, colour) in enumerate(captions):
            y, left = height + 2 * MARGIN + place * line, x
            if colour:
                draw.rectangle((x, y + 3, x + line - 8, y + line - 5), fill=colour)
                left += line
            draw.text((left, y), _fitted(text, font, x + width - left), font=font, fill=INK)
    return panel


def _fitted(text: str, font: Font, width: int) -> str:
    """The text, its middle left out where it is too long; the end holds the share."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
        if font.getlength(short) <= width:
            return short
    return ""
