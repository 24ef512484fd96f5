"""Measures ways of composing LoRAs in the tiny world and writes docs/evaluation.md with its plots.

    python -m lab.evaluate              everything; goes on where an earlier run stopped
    python -m lab.evaluate --report     only the report, from what was measured so far

For N = 2..5 skills: sets of skills drawn at random, several captions each, one picture a caption and method, the same
starting noise for every method. Defaults are chosen on the "dev" captions (the ablation) and the "pool" captions (how a
pool is scouted); the reported methods use other captions, skills' sets and seeds ("test"). "style" has sets of three
skills with one style each; "speed" takes every method's time in turn, in one process with one thread. "places" has
figures with a box each, and a report of its own, docs/evaluation-places.md. "price" has fewer
evaluations on the captions of "test", and Merge at other strengths, chosen on those of "dev" ("strengths"), with other
samplings ("samplings") and all LoRAs loaded ("large") on fewer; its report is docs/evaluation-price.md. "pools"
compares LoRAs that were trained on with regularisation pictures (--regularised) with the shipped ones, all loaded and
the asked ones alone, and "textures" what makes styles worse; their report is docs/evaluation-pools.md. Measurements
lie in --results, one JSON line a set and method.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lab import detector, model
from lab.evaluation import divergence, measurements, places_report, pools_report, price_report, report
from lab.evaluation.captions import SPLITS, skill_sets
from lab.evaluation.choices import choices
from lab.evaluation.studio import Task, run
from lab.evaluation.ways import BY_SPLIT

PUBLISHED = {
    "places": ("places",),
    "price": ("price", "samplings", "large", "strengths"),
    "pools": ("pools", "textures"),
}
"""The splits with a report of their own, whose results the repository has, and what is measured for each."""


KEPT = Path("lab/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="by default outputs/evaluation.jsonl, or in lab/results")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=tuple(SPLITS), help="one of the splits; the report needs dev, pool and test")
    parser.add_argument("--sets", type=int, help="sets of skills for each N, for a shorter run than the published one")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--regularised",
        type=Path,
        default=Path.home() / ".cache" / "loratorio-lab" / "regularised",
        help="what `lab.train regularised` has written",
    )
    args = parser.parse_args()
    known = KEPT / f"{args.only}.jsonl" if args.only in PUBLISHED else Path("outputs/evaluation.jsonl")
    args.results = args.results or known
    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for split, ways in BY_SPLIT.items():
            if split in PUBLISHED.get(args.only, (args.only or split,)):
                made = {n: way for n, way in ways.items() if not way.regularised or args.regularised.exists()}
                tasks = [Task(name, way, s) for s in skill_sets(split, args.sets) for name, way in made.items()]
                run(tasks, args.results, args.workers if split != "speed" else 1, args.regularised)
    records = measurements.read(args.results)
    if {"dev", "pool", "test"} <= {record["split"] for record in records}:
        report.write(records, args.docs)
    if "places" in {record["split"] for record in records}:
        judge = detector.load(model.WEIGHTS / "detector.safetensors")
        places_report.write(records, args.docs / "evaluation-places.md", judge)
    if {*PUBLISHED["price"]} <= {record["split"] for record in records}:
        price_report.write(records, args.docs)
    if "textures" in {record["split"] for record in records}:
        price, divergences = measurements.read(KEPT / "price.jsonl"), divergence.read(KEPT / "divergence.jsonl")
        pools_report.write(records, price, divergences, args.docs)
    for kind, way in choices(records).items():
        print(f"best of {kind}: {way}")


if __name__ == "__main__":
    main()
