"""docs/evaluation-places.md: figures with a box each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lab import detector
from lab.evaluation import boxes, tables
from lab.evaluation.captions import skill_sets
from lab.evaluation.measurements import Measured, Record
from lab.evaluation.ways import CAPTIONED, CFG, COLOURED, NO_REGION, PLACED, STEPS

PAGE = """# Regions and own words in the tiny world

Written by `python -m lab.evaluate --only places`, from `lab/results/places.jsonl`; figures in brackets are 95%
intervals (bootstrap over sets of figures). {warning}Real models may rank the ways differently.

{pictures} captions, 4 of each random set of two or three figures on a ground (sets measured: {sets}).
Two have the left and right half as their boxes,
three the thirds, in a drawn order that the captions do not have. The same noise for every way;
DDIM, {steps} steps, CFG {cfg:g}, every LoRA at strength 1. "Every 2nd", "every 3rd": lambda 1, each LoRA alone in
so many steps, the presets balanced and fast. "Own words": the prompt is the ground alone, and each LoRA
reads its own figure's word behind it, a form of captions that the tiny model was not trained with. "Attention couple":
merged LoRAs, and each box attends to a caption of its own figure and the ground (`lab/evaluation/couple.py`); its
evaluations are those of the merge, the cross-attention of each box beside.

The detector looks for figures in the cut-out of a box. On renders whose figures' boxes are known, it finds
{accuracy}.

{qualities}
Against "{reference}", caption by caption:

{differences}"""

WORDS = """
## Captions of their own

Words behind a ground, as above, are no form of captions that the tiny model knows. Here each LoRA alone reads a whole
caption, of its own figure and the ground, and all read nothing else ({pictures} captions, sets measured: {sets}):

{captioned}
With a ground for each box, of different colours, which must not be in the other boxes ({coloured_pictures} captions,
sets measured: {coloured_sets}; LoRAtorio with regions and lambda 1). "One caption": all read "zorbo on a white ground
and mippa on a grey ground", from left to right; "own captions": each LoRA reads its part; attention couple: each box
attends to its part. A box has the ground that most of its pixels have.

{coloured}"""

FEW = 6
"""Sets below which an interval says little."""


def write(records: Sequence[Record], path: Path, judge: detector.Detector) -> None:
    """The page, from the sets that every way has been measured on."""
    whole = complete(records)
    measured = Measured(whole, "places")
    if not whole:
        return
    sets = len({(record["count"], record["number"]) for record in whole})
    found = (
        f"{inside:.1%} of {n} in their own box, and {astray:.1%} in each other one" for n, inside, astray in _of(judge)
    )
    page = PAGE.format(
        warning=_warning(whole) if sets < FEW else "",
        pictures=measured.pictures,
        sets=sets,
        steps=STEPS,
        cfg=CFG,
        accuracy="; ".join(found),
        qualities=tables.variants(measured, PLACED, tables.PLACE_QUALITIES),
        reference=NO_REGION,
        differences=tables.against(
            measured,
            NO_REGION,
            [way for way in PLACED if way != NO_REGION],
            ("inside", "astray", "present", "distance"),
        ),
    )
    path.write_text(page + _own_captions(records))
    print(f"{path}: {measured.pictures} captions")


def _own_captions(records: Sequence[Record]) -> str:
    captioned, coloured = complete(records, CAPTIONED), complete(records, COLOURED)
    if not captioned or not coloured:
        return ""
    of_captions, of_colours = Measured(captioned, "places"), Measured(coloured, "places")
    return WORDS.format(
        pictures=of_captions.pictures,
        sets=len(captioned) // len(CAPTIONED),
        captioned=tables.variants(of_captions, CAPTIONED, tables.PLACE_QUALITIES),
        coloured_pictures=of_colours.pictures,
        coloured_sets=len(coloured) // len(COLOURED),
        coloured=tables.variants(of_colours, COLOURED, tables.COLOUR_QUALITIES),
    )


def complete(records: Sequence[Record], asked: Collection[str] = PLACED) -> list[Record]:
    """The records of the split "places", of sets that every one of these ways has."""
    own = [record for record in records if record["split"] == "places" and record["way"] in asked]
    ways = {}
    for record in own:
        ways.setdefault((record["count"], record["number"]), set()).add(record["way"])
    return [record for record in own if ways[record["count"], record["number"]] == set(asked)]


def _warning(records: Sequence[Record]) -> str:
    sets = {(record["count"], record["number"]) for record in records}
    each = " and ".join(f"{sum(of == n for of, _ in sets)} of {n} figures" for n in boxes.WORDS)
    return (
        f"**Only {len(sets)} of {len(skill_sets('places'))} sets so far ({each}): nothing can be concluded from "
        "them, and the intervals of a single set have no width.** "
    )


def _of(judge: detector.Detector) -> list[tuple[int, float, float]]:
    return [(count, *boxes.accuracy(judge, count)) for count in boxes.WORDS]
