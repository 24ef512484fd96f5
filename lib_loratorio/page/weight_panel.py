"""A weight matrix as an image: where each LoRA weighed most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont as Font

from lib_loratorio.engine.painted import Painted
from lib_loratorio.loras.region import Box
from lib_loratorio.palette import COLOURS

TILE = 256
"""Least width of a panel's tile in pixels; smaller images are enlarged."""

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

NOBODY, NOBODY_IS = (0, 0, 0), "no LoRA"
"""What the base has where adapters' regions leave anything to it."""

BACKGROUND, INK = (24, 24, 24), (235, 235, 235)
MARGIN = 8

LEAST_REST = 0.005
"""The least share of the base that is told; less is rounding."""


def weight_panel(
    image: Image.Image,
    weights: torch.Tensor,
    names: Sequence[str],
    patch: int,
    font: Callable[[int], Font] = ImageFont.load_default,
    regions: Sequence[Sequence[Box]] = (),
    painted: Painted | None = None,
) -> Image.Image:
    """One row of tiles: the image, a heat map with its share for each adapter, and who wins where.

    Adapters' regions and painted places are outlined in their colours. Of more than `MOST` adapters those with the
    largest shares are shown, and the last line tells what the others have.

    Args:
        image: the finished image.
        weights: `[N, h, w]`, its patch weights.
        names: N names.
        patch: edge of a patch in pixels of the image; the last row and column may be cut off by its border.
        font: gives a font of a size in pixels; the default needs Pillow 10.1.
        regions: of each adapter the boxes that it may be in, in fractions of the image; none for everywhere.
        painted: what is painted for adapters, in their order.
    """
    weights = weights.detach().float().cpu()
    shown = weights.mean((-2, -1)).topk(min(MOST, len(weights))).indices.sort().values.tolist()
    colours = [COLOURS[shown.index(n)] if n in shown else OTHERS for n in range(len(names))]
    factor = max(1, -(-TILE // image.width))
    size = (image.width * factor, image.height * factor)
    plain = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    grey = plain.convert("L").convert("RGB")
    shares = weights.mean((-2, -1))
    tiles = [(plain, [("picture", None)])]
    outlines = {n: _painted_edge(painted, n, size) if painted else None for n in shown}

    def outline(tile: Image.Image, n: int) -> None:
        _outline(tile, regions[n] if n < len(regions) else (), colours[n])
        if outlines[n] is not None:
            tile.paste(colours[n], mask=outlines[n])

    for n in shown:
        heat = Image.blend(grey, _on_image(_heat(weights[n].numpy()), patch, image.size, size), 0.6)
        outline(heat, n)
        tiles.append((heat, [(f"{names[n]} {shares[n]:.0%}", None)]))
    legend = [(names[n], colours[n]) for n in shown]
    if len(shown) < len(names):
        legend.append((f"{len(names) - len(shown)} others {1 - shares[shown].sum():.0%}", OTHERS))
    rest = 1 - weights.sum(0, keepdim=True)
    if rest.mean() > LEAST_REST:
        weights, colours = torch.cat([weights, rest]), [*colours, NOBODY]
        legend.append((f"{NOBODY_IS} {rest.mean():.0%}", NOBODY))
    winners = Image.blend(grey, _on_image(dominant(weights, colours), patch, image.size, size), 0.6)
    for n in shown:
        outline(winners, n)
    tiles.append((winners, legend))
    return _row(tiles, size, font(max(14, size[0] // 20)))


def as_painted(weights: torch.Tensor) -> Image.Image | None:
    """Who wins where as a mask, `weights [N, h, w]`: each LoRA's places in its colour, black what none wins; None for
    more LoRAs than there are colours.
    """
    if len(weights) > MOST:
        return None
    rest = (1 - weights.sum(0, keepdim=True)).clamp(min=0)
    return dominant(torch.cat([weights, rest]), [*COLOURS[: len(weights)], NOBODY])


def dominant(weights: torch.Tensor, colours: Sequence[tuple[int, int, int]] = COLOURS) -> Image.Image:
    """Who wins where: one pixel a patch, in the colour of the adapter that weighs most; `weights [N, h, w]`, at least N
    colours.
    """
    return Image.fromarray(np.array(colours, np.uint8)[weights.argmax(0).cpu().numpy()])


def _outline(tile: Image.Image, boxes: Sequence[Box], colour: tuple[int, int, int]) -> None:
    draw, line = ImageDraw.Draw(tile), _line(tile.width)
    for left, top, right, bottom in boxes:
        across, down = tile.width - 1, tile.height - 1
        draw.rectangle((left * across, top * down, right * across, bottom * down), outline=colour, width=line)


def _painted_edge(painted: Painted, number: int, size: tuple[int, int]) -> Image.Image:
    """The inner edge of an adapter's painted places, as a mask of a tile; nothing without such places."""
    line = _line(size[0])
    there = Image.fromarray((painted.numbers == number).byte().mul(255).cpu().numpy())
    outside = torch.from_numpy(np.array(there.resize(size, Image.Resampling.NEAREST))) == 0
    near = F.pad(outside[None, None].float(), (line,) * 4, value=1.0)
    near = F.max_pool2d(F.max_pool2d(near, (1, 2 * line + 1), 1), (2 * line + 1, 1), 1)[0, 0] > 0
    return Image.fromarray((near & ~outside).byte().mul(255).numpy())


def _line(width: int) -> int:
    return max(1, width // 128)


def _heat(weight: np.ndarray) -> Image.Image:
    stops = [stop for stop, _ in HEAT]
    channels = [np.interp(weight, stops, [colour[channel] for _, colour in HEAT]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def _on_image(patches: Image.Image, patch: int, image: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """One pixel a patch, brought over the image: nearest, because a patch has one weight, with what the border cuts
    off.
    """
    whole = patches.resize((patches.width * patch, patches.height * patch), Image.Resampling.NEAREST)
    return whole.crop((0, 0, *image)).resize(size, Image.Resampling.NEAREST)


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
