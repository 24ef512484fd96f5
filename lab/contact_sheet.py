"""A contact sheet: rows of titled pictures with some lines under each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from lab import world
from lib_loratorio.page.weight_panel import OTHERS, dominant
from lib_loratorio.palette import COLOURS

TILE, GAP, INK, PAPER = 192, 8, (30, 30, 30), (250, 250, 250)
HEADING, LINE, MARK = 28, 18, 18  # heights of a heading and a line; what a legend's mark takes of its line
BETWEEN = 4 * GAP  # groups in a row

OF_LORAS = (*COLOURS, OTHERS)
"""A colour for each of the world's nine LoRAs, where all are loaded."""

Line = str | tuple[str, world.Colour]
"""Under a tile: a text, or the text and the colour of a legend's entry."""

Tile = tuple[Image.Image, Sequence[Line]]


class Sheet:
    """Rows of titled tiles, all of one size, on one page. A row has one group of tiles or several side by side."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[str, Sequence[Tile]]]] = []
        self.font, self.small = ImageFont.load_default(18), ImageFont.load_default(13)

    def row(self, heading: str, tiles: Sequence[Tile]) -> None:
        self.rows.append([(heading, tiles)])

    def beside(self, heading: str, tiles: Sequence[Tile]) -> None:
        """One more group in the latest row."""
        self.rows[-1].append((heading, tiles))

    def image(self) -> Image.Image:
        lines = [max((len(texts) for _, tiles in row for _, texts in tiles), default=0) for row in self.rows]
        heights = [HEADING + 2 + TILE + LINE * n + GAP for n in lines]
        page = Image.new("RGB", (max(map(_width, self.rows)), sum(heights) + GAP), PAPER)
        draw, top = ImageDraw.Draw(page), GAP
        for row, height in zip(self.rows, heights):
            left = GAP
            for heading, tiles in row:
                draw.text((left, top), heading, font=self.font, fill=INK)
                for picture, texts in tiles:
                    tile = picture.resize((TILE, TILE), Image.Resampling.NEAREST)
                    page.paste(tile, (left, top + HEADING))
                    self._write(draw, texts, left, top + HEADING + 2 + TILE)
                    left += TILE + GAP
                left += BETWEEN - GAP
            top += height
        return page

    def too_long(self) -> list[str]:
        """The texts that do not fit into their tile's width, or their group's."""
        found = []
        for heading, tiles in (group for row in self.rows for group in row):
            if self.font.getlength(heading) > len(tiles) * (TILE + GAP) - GAP:
                found.append(heading)
            for text in (text for _, texts in tiles for text in texts):
                words, room = (text, TILE) if isinstance(text, str) else (text[0], TILE - MARK)
                if self.small.getlength(words) > room:
                    found.append(words)
        return found

    def _write(self, draw: ImageDraw.ImageDraw, texts: Sequence[Line], left: int, top: int) -> None:
        for j, line in enumerate(texts):
            x, y, text = left, top + LINE * j, line
            if isinstance(line, tuple):
                text, colour = line
                draw.rectangle((left, y + 2, left + 12, y + 14), fill=colour)
                x += MARK
            draw.text((x, y), text, font=self.small, fill=INK)


def _width(row: Sequence[tuple[str, Sequence[Tile]]]) -> int:
    """Of a row in pixels, margins included."""
    return GAP + sum(len(tiles) * (TILE + GAP) for _, tiles in row) + (len(row) - 1) * (BETWEEN - GAP)


def winners(picture: Image.Image, weights: torch.Tensor) -> Image.Image:
    """The dominant LoRA of each patch, one colour each, over the grey picture; weights `[N, h, w]`."""
    over = dominant(weights, OF_LORAS).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), over, 0.55)
