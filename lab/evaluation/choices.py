"""Which variant becomes the default: the rules that docs/evaluation.md states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lab.evaluation.measurements import Measured, Record
from lab.evaluation.ways import EVERY_STEP, SCOUTING, VARIANTS

POINT = 0.01
"""How much smaller a share of asked skills still counts as the same."""


def best(measured: Measured, ways: Iterable[str]) -> str:
    """The way with the most asked skills; among those within one point of it, the one of smallest patch distance."""
    ways = [w for w in ways if w in measured.ways]
    most = max(measured.mean(w, "present") for w in ways)
    close = [w for w in ways if measured.mean(w, "present") > most - POINT]
    return min(close, key=lambda w: measured.mean(w, "distance"))


def cheapest(measured: Measured, ways: Iterable[str], reference: str) -> str:
    """Of the ways whose share of asked skills is at most one point below the reference's the one with the fewest
    evaluations; if there is none, the one with the most skills.
    """
    ways = [w for w in ways if w in measured.ways]
    least = measured.mean(reference, "present") - POINT
    good = [w for w in ways if measured.mean(w, "present") >= least]
    return min(good, key=measured.evaluations) if good else max(ways, key=lambda w: measured.mean(w, "present"))


def most_skills(measured: Measured, ways: Iterable[str], count: int) -> str:
    """The way with the most asked skills on the captions with so many of them."""
    return max((w for w in ways if w in measured.ways), key=lambda w: measured.mean(w, "present", count))


def choices(records: Sequence[Record]) -> dict[str, str]:
    """The chosen variant of each kind of `VARIANTS` that was measured, and of how a pool is scouted."""
    dev, pool = Measured(records, "dev"), Measured(records, "pool")
    # In the order in which they were measured: of variants that are equal, it decides.
    found = {kind: [way for way in dev.ways if way in group] for kind, group in VARIANTS.items()}
    chosen = {kind: best(dev, ways) for kind, ways in found.items() if ways}
    scouted = [way for way in pool.ways if way in SCOUTING and way != EVERY_STEP]
    return chosen | ({"scout": cheapest(pool, scouted, EVERY_STEP)} if scouted else {})
