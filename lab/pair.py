"""One caption with three LoRAs, merged and composed from the same noise: the picture at the top of the README.

python -m lab.pair [--out docs/pair.png]

It is the first caption with three LoRAs, none of them a style, in the order of the split "test", of which LoRAtorio
(preset quality) shows all three by the detector and Merge does not; how often that is so tells
docs/evaluation-price.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from lab import world
from lab.contact_sheet import Sheet
from lab.detector import detect
from lab.evaluation.captions import skill_sets
from lab.evaluation.studio import Studio
from lab.evaluation.ways import LAMBDA_1, PRICED

COUNT = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pair.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same picture on every number of processors
    studio = Studio()
    for skill_set in skill_sets("test"):
        skills, contents = skill_set.contents()
        if skill_set.count != COUNT or any(map(world.is_style, skills)):
            continue
        made = [studio.pictures(PRICED[way], skills, contents, skill_set.seed)[0] for way in ("Merge", LAMBDA_1)]
        asked = [name in skills for name in world.NAMES]
        merged, composed = (detect(studio.judge, pictures)[:, asked].all(1) for pictures in made)
        chosen = [number for number in range(len(contents)) if composed[number] and not merged[number]]
        if chosen:
            break
    number = chosen[0]
    wanted = Image.fromarray(world.render(contents[number], skill_set.seed))
    tiles = [(wanted, ["what the caption asks for"])]
    for title, pictures in zip(("merged", "LoRAtorio"), made):
        tiles.append((Image.fromarray(pictures[number]), [title]))
    sheet = Sheet()
    sheet.row(f"{', '.join(skills)}: {contents[number].caption}", tiles)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.image().save(args.out)
    print(args.out, f"set {skill_set.number}, caption {number}")


if __name__ == "__main__":
    main()
