"""Two figures with a region each, and the same seed with the regions swapped.

python -m lab.swapped [--out docs/places.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from lab import model, world
from lab.contact_sheet import Sheet
from lab.evaluation.ways import CFG, DEFAULT, STEPS
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.loras.tag import LoraTag

FIGURES, GROUND, SEED = ("cat", "robot"), "white", 77
PLACES = (("left", "right"), ("right", "left"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/places.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same picture on every number of processors
    pipe, caption, tiles = model.load(model.WEIGHTS / "model"), world.Content(FIGURES, GROUND, None).caption, []
    for places in PLACES:
        loras = [
            Lora(model.WEIGHTS / "loras" / f"{name}.safetensors", 1.0, LoraTag.read({"ltat": place}, name))
            for name, place in zip(FIGURES, places)
        ]
        with composed(pipe, loras, DEFAULT):
            picture = model.sample(pipe, [caption], SEED, STEPS, CFG)[0]
        lines = [f"{name}: ltat={place}" for name, place in zip(FIGURES, places)]
        tiles.append((Image.fromarray(picture), lines))
    sheet = Sheet()
    sheet.row(caption, tiles)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.image().save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
