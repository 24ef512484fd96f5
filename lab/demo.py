"""`make demo`: composes the tiny model's LoRAs in every way and shows the pictures side by side.

    python -m lab.demo [--out outputs/demo.png]

Writes a contact sheet and, beside it, a page for the browser (outputs/demo.html), and prints a table. The pictures are
kept (outputs/demo/): a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from lab.progress import Progress

# diffusers and torch take seconds to import: what happens is told before, and what needs them imported after.

STOPPED = 130
"""The exit code of a command that Ctrl-C stopped, by the shells' convention."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo.png"), help="the sheet; the page is beside it")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes")
    args = parser.parse_args()
    print("The tiny model draws pictures that ask for several LoRAs at once: merged, and composed by LoRAtorio.")
    print(f"In about a minute: a table here, a sheet of all pictures ({args.out}) and a page for the browser.")
    kept = args.out.with_suffix("")
    print(f"Ctrl-C stops it; finished pictures are kept in {kept}/.", flush=True)
    try:
        return _run(args.out, kept, args.weights, args.workers)
    except KeyboardInterrupt:
        # The line of the progress ends where it is.
        print(f"\nStopped. The same command goes on from the pictures in {kept}/.", flush=True)
        return STOPPED


def _run(out: Path, folder: Path, weights: Path, workers: int) -> int:
    Progress(0, sys.stdout).tell(0, "starting torch and diffusers")
    from lab.demo_kept import Kept, make
    from lab.demo_page import page
    from lab.demo_plan import RULE, sections
    from lab.demo_sheet import sheet
    from lab.demo_words import aligned, table

    begin, story, kept = time.perf_counter(), sections(), Kept(folder, weights)
    shots = [shot for section in story for shot in section.shots]
    missing = [shot for shot in shots if kept.read(shot) is None]
    progress, there = Progress(len(shots), sys.stdout), len(shots) - len(missing)
    progress.tell(there, "loading the tiny model")
    for done, shot in enumerate(make(missing, kept, workers), there + 1):
        progress.tell(done, f"{shot.shown.caption}: {shot.title}")
    pictures = {shot: kept.read(shot) for shot in shots}
    progress.tell(len(shots), "drawing the sheet and the page")
    kept.drop_others(shots)
    compared = [shot for section in story if section.name == "compared" for shot in section.shots]
    rows = table((shot, pictures[shot]) for shot in compared)
    intro = [
        "A tiny diffusion model and nine LoRAs, all trained from scratch for this project, composed in every way.",
        RULE,
        "Below each picture: how many of the asked skills the detector sees in it, and the model evaluations and "
        "seconds that it took on the machine that made it, on one thread.",
    ]
    beside = out.with_suffix(".html")
    sheet(story, pictures).image().save(out)
    beside.write_text(page(intro, story, pictures, rows), encoding="utf-8")
    progress.clear()
    print()
    print(aligned(rows))
    print(f"\n{RULE}")
    seconds = time.perf_counter() - begin
    if missing:
        print(f"{len(missing)} pictures made, {len(shots) - len(missing)} kept from before, in {seconds:.0f} s.")
    else:
        print(f"All {len(shots)} pictures were there already; delete {folder}/ to make them anew.")
    print(f"Sheet: {out}\nPage:  {beside.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
