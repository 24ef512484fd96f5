"""`make demo`: composes the tiny model's LoRAs in every way and shows the pictures side by side.

    python -m lab.demo [--out outputs/demo.png]

Writes a contact sheet (each skill alone; then the same captions and noise with Merge, Switch, Composite and LoRAtorio,
and where LoRAtorio gave each LoRA its weight) and prints what the skill detector found in it.
"""

import argparse
import time
from pathlib import Path

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


class Sheet:
    """Rows of titled tiles, all of one size, on one page."""

    def __init__(self):
        self.rows, self.font, self.small = [], ImageFont.load_default(18), ImageFont.load_default(13)

    def row(self, heading, tiles):
        """tiles: (picture, lines of text under it, each a text or a (text, colour) of a legend)."""
        self.rows.append((heading, tiles))

    def image(self):
        lines = [max((len(captions) for _, captions in tiles), default=0) for _, tiles in self.rows]
        heights = [30 + TILE + 18 * n + GAP for n in lines]
        page = Image.new(
            "RGB", (GAP + max(len(tiles) for _, tiles in self.rows) * (TILE + GAP), sum(heights) + GAP), PAPER
        )
        draw, top = ImageDraw.Draw(page), GAP
        for (heading, tiles), height in zip(self.rows, heights):
            draw.text((GAP, top), heading, font=self.font, fill=INK)
            for i, (picture, captions) in enumerate(tiles):
                left = GAP + i * (TILE + GAP)
                page.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top + 28))
                for j, caption in enumerate(captions):
                    y, text = top + 30 + TILE + 18 * j, caption
                    if isinstance(caption, tuple):
                        text, colour = caption
                        draw.rectangle((left, y + 2, left + 12, y + 14), fill=colour)
                    draw.text((left + (18 if isinstance(caption, tuple) else 0), y), text, font=self.small, fill=INK)
            top += height
        return page


def winners(picture, weights):
    """The dominant LoRA of each patch, one colour each, over the grey picture; weights [N, h, w]."""
    over = dominant(weights).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), over, 0.55)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo.png"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    begin = time.time()
    pipe, judge, sheet = (
        model.load(args.weights / "model"),
        detector.load(args.weights / "detector.safetensors"),
        Sheet(),
    )

    def loras(names):
        return [(args.weights / "loras" / f"{name}.safetensors", 1.0) for name in names]

    def found(images):
        return detector.detect(judge, images)

    tiles = []
    for number, name in enumerate(world.NAMES):
        with composed(pipe, loras([name]), METHODS["Merge"].settings):
            image = model.sample(pipe, [world.content((name,), SEED + number).caption], SEED + number, STEPS, CFG)[0]
        tiles.append((Image.fromarray(image), [f"{name}  ({world.SKILLS[name].trigger})"]))
        print(f"\rskills alone: {number + 1}/{len(world.NAMES)}", end="", flush=True)
    sheet.row("Nine LoRAs, each alone", tiles)

    totals = {way: {"found": 0, "asked": 0, "complete": 0, "seconds": 0.0} for way in WAYS}
    for number, skills in enumerate(SKILLS):
        shown = world.content(skills, SEED + number)
        asked, tiles = np.array([name in skills for name in world.NAMES]), []
        truth = world.render(shown, SEED)
        tiles.append((Image.fromarray(truth), ["what the caption asks for"]))
        for way in WAYS:
            with composed(pipe, loras(skills), METHODS[way].settings) as composition:
                start = time.time()
                image = model.sample(pipe, [shown.caption], SEED + number, STEPS, CFG)
                seconds = time.time() - start
            present = found(image)[0, asked]
            total = totals[way]
            total["found"] += int(present.sum())
            total["asked"] += len(skills)
            total["complete"] += int(present.all())
            total["seconds"] += seconds / len(SKILLS)
            tiles.append((Image.fromarray(image[0]), [f"{way}: {present.sum()} of {len(skills)} skills"]))
        weights = composition.maps.mean[:, 0]
        shares = composition.maps.shares()[:, 0].tolist()
        legend = [
            (f"{name} {share:.0%}", COLOURS[n % len(COLOURS)]) for n, (name, share) in enumerate(zip(skills, shares))
        ]
        tiles.append((winners(Image.fromarray(image[0]), weights), legend))
        sheet.row(f"{len(skills)} LoRAs: {shown.caption}", tiles)
        print(f"\rcomposed: {number + 1}/{len(SKILLS)}       ", end="", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.image().save(args.out)
    print("\r" + summary(totals))
    print(f"{args.out}: {time.time() - begin:.0f} s, {torch.get_num_threads()} threads")


def summary(totals):
    """The table of what was found and what it cost, from each way's totals over the captions."""
    rows = [
        [
            way,
            f"{t['found']} of {t['asked']}",
            f"{t['complete']} of {len(SKILLS)}",
            f"{t['seconds']:.1f}",
            " / ".join(str(evaluations_a_step(METHODS[way], n)) for n in (2, 4)),
        ]
        for way, t in totals.items()
    ]
    return table(
        ["", "skills found", "pictures with all skills", "s a picture", "model evaluations a step (2 / 4 LoRAs)"], rows
    )


if __name__ == "__main__":
    main()
