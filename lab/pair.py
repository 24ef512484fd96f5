"""One caption with several LoRAs, merged and composed from the same noise: the picture at the top of the README.

python -m lab.pair [--out docs/pair.png]

It is LoRAtorio's best case, by a rule: of the 208 test captions of which LoRAtorio (preset balanced) shows all skills
by the detector and Merge does not, the one where it comes nearer to what is asked for by most, in patch distance.
How often either shows what was asked for tells docs/evaluation-price.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lab import world
from lab.contact_sheet import Sheet
from lab.detector import detect
from lab.evaluation import measurements
from lab.evaluation.captions import skill_sets
from lab.evaluation.measurements import Record
from lab.evaluation.studio import Studio
from lab.evaluation.ways import LAMBDA_1, PRICED

RESULTS = Path("lab/results/price.jsonl")
MERGED, BALANCED = "Merge", f"{LAMBDA_1}, each alone every 2nd step"


def best(records: Sequence[Record]) -> tuple[tuple[int, int], int]:
    """What the rule chooses: a set of skills, as their count and its number, and the number of the caption in it."""
    merged, composed = (
        {
            (record["count"], record["number"]): record
            for record in records
            if record["split"] == "price" and record["way"] == way
        }
        for way in (MERGED, BALANCED)
    )
    gains = [
        (merged[chosen]["distance"][caption] - record["distance"][caption], chosen, caption)
        for chosen, record in composed.items()
        for caption in range(len(record["complete"]))
        if record["complete"][caption] and not merged[chosen]["complete"][caption]
    ]
    _, chosen, caption = max(gains)
    return chosen, caption


def found(present: np.ndarray, skills: Sequence[str]) -> str:
    """What the detector found of the skills; `present [all skills]` bool."""
    shown = [name for name in skills if present[world.NAMES.index(name)]]
    return f"found: {', '.join(shown) or 'nothing'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pair.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same picture on every number of processors
    studio = Studio()
    chosen, caption = best(measurements.read(RESULTS))
    (skill_set,) = [one for one in skill_sets("price") if (one.count, one.number) == chosen]
    skills, contents = skill_set.contents()
    shown = contents[caption]
    tiles = [(Image.fromarray(world.render(shown, skill_set.seed)), ["what is asked for"])]
    for title, way in (("merged", MERGED), ("LoRAtorio", BALANCED)):
        pictures, _ = studio.pictures(PRICED[way], skills, contents, skill_set.seed)
        present = detect(studio.judge, pictures)[caption]
        tiles.append((Image.fromarray(pictures[caption]), [title, found(present, skills)]))
    sheet = Sheet()
    sheet.row(f"{', '.join(skills)}: {shown.caption}", tiles)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.image().save(args.out)
    print(args.out, f"{chosen[0]} skills, set {chosen[1]}, caption {caption}")


if __name__ == "__main__":
    main()
