"""`make demo`: composes the tiny model's LoRAs in every way and shows the pictures side by side.

    python -m lab.demo [--out outputs/demo.png]

Writes a contact sheet (each skill alone; then the same captions and noise with Merge, Switch, Composite and LoRAtorio,
and where LoRAtorio gave each LoRA its weight) and prints what the skill detector found in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from lab import detector, model, world
from lab.evaluation.tables import table
from lab.evaluation.ways import CFG, METHODS, STEPS, evaluations_a_step
from lab.model import WEIGHTS
from lib_loratorio.hosts.diffusers import composed
from lib_loratorio.page.weight_panel import COLOURS, dominant

WAYS = ("Merge", "Switch", "Composite", "LoRAtorio")
SKILLS = (
    ("alien", "robot"),
    ("cat", "bricks"),
    ("alien", "mushroom", "gem", "waves"),
    ("cat", "robot", "bricks", "hatching"),
)
SEED = 5
TILE, GAP, INK, PAPER = 192, 8, (30, 30, 30), (250, 250, 250)

Line = str | tuple[str, world.Colour]
"""Under a tile: a text, or the text and the colour of a legend's entry."""

Tile = tuple[Image.Image, Sequence[Line]]


class Total(TypedDict):
    """What one way showed on all captions: skills found of those asked for, pictures with all of them; and the seconds
    a picture.
    """

    found: int
    asked: int
    complete: int
    seconds: float


class Sheet:
    """Rows of titled tiles, all of one size, on one page."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Sequence[Tile]]] = []
        self.font, self.small = ImageFont.load_default(18), ImageFont.load_default(13)

    def row(self, heading: str, tiles: Sequence[Tile]) -> None:
        self.rows.append((heading, tiles))

    def image(self) -> Image.Image:
        lines = [max((len(captions) for _, captions in tiles), default=0) for _, tiles in self.rows]
        heights = [30 + TILE + 18 * n + GAP for n in lines]
        width = GAP + max(len(tiles) for _, tiles in self.rows) * (TILE + GAP)
        page = Image.new("RGB", (width, sum(heights) + GAP), PAPER)
        draw, top = ImageDraw.Draw(page), GAP
        for (heading, tiles), height in zip(self.rows, heights):
            draw.text((GAP, top), heading, font=self.font, fill=INK)
            for i, (picture, captions) in enumerate(tiles):
                left = GAP + i * (TILE + GAP)
                page.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top + 28))
                self._write(draw, captions, left, top + 30 + TILE)
            top += height
        return page

    def _write(self, draw: ImageDraw.ImageDraw, captions: Sequence[Line], left: int, top: int) -> None:
        for j, caption in enumerate(captions):
            x, y, text = left, top + 18 * j, caption
            if isinstance(caption, tuple):
                text, colour = caption
                draw.rectangle((left, y + 2, left + 12, y + 14), fill=colour)
                x += 18
            draw.text((x, y), text, font=self.small, fill=INK)


def winners(picture: Image.Image, weights: torch.Tensor) -> Image.Image:
    """The dominant LoRA of each patch, one colour each, over the grey picture; weights `[N, h, w]`."""
    over = dominant(weights).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), over, 0.55)


class Demo:
    """The tiny model with its LoRAs and the detector, and what the pictures have shown so far."""

    def __init__(self, weights: Path):
        self.pipe = model.load(weights / "model")
        self.judge = detector.load(weights / "detector.safetensors")
        self.loras = weights / "loras"
        self.totals = {way: Total(found=0, asked=0, complete=0, seconds=0.0) for way in WAYS}

    def alone(self, number: int, name: str) -> Tile:
        """A picture of the `number`-th skill, made with its LoRA alone."""
        caption, way = world.content((name,), SEED + number).caption, METHODS["Merge"]
        with composed(self.pipe, way.loras((name,), self.loras), way.settings):
            image = model.sample(self.pipe, [caption], SEED + number, STEPS, CFG)[0]
        return Image.fromarray(image), [f"{name}  ({world.SKILLS[name].trigger})"]

    def compared(self, number: int, skills: Sequence[str]) -> tuple[str, list[Tile]]:
        """The `number`-th caption and its tiles: a render of it, the picture of each way, and where LoRAtorio, the last
        of them, gave each LoRA its weight.
        """
        shown = world.content(skills, SEED + number)
        asked = np.array([name in skills for name in world.NAMES])
        tiles: list[Tile] = [(Image.fromarray(world.render(shown, SEED)), ["what the caption asks for"])]
        for way in WAYS:
            with composed(self.pipe, METHODS[way].loras(skills, self.loras), METHODS[way].settings) as composition:
                start = time.time()
                images = model.sample(self.pipe, [shown.caption], SEED + number, STEPS, CFG)
                seconds = time.time() - start
            present = detector.detect(self.judge, images)[0, asked]
            self._add(way, present, seconds)
            tiles.append((Image.fromarray(images[0]), [f"{way}: {present.sum()} of {len(skills)} skills"]))
        shares = composition.maps.shares()[:, 0].tolist()
        legend = [
            (f"{name} {share:.0%}", COLOURS[n % len(COLOURS)]) for n, (name, share) in enumerate(zip(skills, shares))
        ]
        tiles.append((winners(Image.fromarray(images[0]), composition.maps.mean[:, 0]), legend))
        return shown.caption, tiles

    def _add(self, way: str, present: np.ndarray, seconds: float) -> None:
        """Takes one picture into the way's total; `present` `[asked skills]` bool."""
        total = self.totals[way]
        total["found"] += int(present.sum())
        total["asked"] += len(present)
        total["complete"] += int(present.all())
        total["seconds"] += seconds / len(SKILLS)


def summary(totals: Mapping[str, Total]) -> str:
    """The table of what was found and what it cost, from each way's total over the captions."""
    rows = [
        [
            way,
            f"{t['found']} of {t['asked']}",
            f"{t['complete']} of {len(SKILLS)}",
            f"{t['seconds']:.1f}",
            " / ".join(f"{evaluations_a_step(METHODS[way], n):g}" for n in (2, 4)),
        ]
        for way, t in totals.items()
    ]
    return table(
        ["", "skills found", "pictures with all skills", "s a picture", "model evaluations a step (2 / 4 LoRAs)"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo.png"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    begin = time.time()
    demo, sheet, alone = Demo(args.weights), Sheet(), []
    for number, name in enumerate(world.NAMES):
        alone.append(demo.alone(number, name))
        print(f"\rskills alone: {number + 1}/{len(world.NAMES)}", end="", flush=True)
    sheet.row("Nine LoRAs, each alone", alone)
    for number, skills in enumerate(SKILLS):
        caption, tiles = demo.compared(number, skills)
        sheet.row(f"{len(skills)} LoRAs: {caption}", tiles)
        print(f"\rcomposed: {number + 1}/{len(SKILLS)}       ", end="", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.image().save(args.out)
    print("\r" + summary(demo.totals))
    print(f"{args.out}: {time.time() - begin:.0f} s, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
