"""What was measured: a line of the results for each set of skills and way, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from lab.evaluation.ways import BY_SPLIT, STEPS, evaluations_a_step


class Record(TypedDict, total=False):
    """One line of the results; the lists have an entry for each of the set's captions.

    split, way, count, number: which captions, and how their pictures were made. skills: the set. present: share of the
    asked skills that the detector finds. complete: 1 where it finds all of them. others: how many it finds that were
    not asked for. distance: patch distance. style, places: of the split "style" alone, share of the asked styles and of
    the other asked skills. inside, astray: of the split "places" alone, share of the asked figures that stand in their
    box, and how often one stands in another's. seconds, evaluations: a picture; lines without a count of evaluations
    are taken as planned.
    """

    split: str
    way: str
    count: int
    number: int
    skills: list[str]
    present: list[float]
    complete: list[int]
    others: list[int]
    distance: list[float]
    style: list[float]
    places: list[float]
    inside: list[float]
    astray: list[int]
    seconds: float
    evaluations: float


QUANTITIES = (
    "present",
    "complete",
    "others",
    "distance",
    "style",
    "places",
    "inside",
    "astray",
    "own_ground",
    "bled",
)
"""What a record has for each of its pictures."""


def read(results: Path) -> list[Record]:
    """The records in a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def line(record: Record) -> str:
    return json.dumps(record) + "\n"


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], groups: Sequence[int], repeats: int = 2000, seed: int = 0) -> Interval:
    """The mean of `values` `[n]` with its 95% interval.

    Whole `groups` `[n]` are drawn, because the pictures of one set of LoRAs are not independent of each other.
    """
    values = np.asarray(values, float)
    _, members = np.unique(groups, return_inverse=True)
    totals, counts = np.bincount(members, values), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (repeats, len(counts)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


class Wins(NamedTuple):
    """Of one way against another: shares of captions on which it shows more, as many and fewer of the asked skills,
    and share on which its patch distance is the smaller one.
    """

    more: float
    as_many: float
    fewer: float
    closer: Interval


class Measured:
    """The records of one split as arrays, one entry a picture, in the same order for every way.

    ways: by name, in the records' order, what was measured: `QUANTITIES`, and of the picture's set the count of skills,
    the group, the seconds and the evaluations a picture; each an array `[pictures]`.
    """

    def __init__(self, records: Iterable[Record], split: str):
        of_split = [r for r in records if r["split"] == split]
        self.ways: dict[str, dict[str, np.ndarray]] = {}
        for way in dict.fromkeys(r["way"] for r in of_split):
            own = sorted((r for r in of_split if r["way"] == way), key=lambda r: (r["count"], r["number"]))
            self.ways[way] = {key: np.concatenate([r[key] for r in own]) for key in QUANTITIES if key in own[0]}
            of_sets = {
                "count": [r["count"] for r in own],
                "group": [r["count"] * 1000 + r["number"] for r in own],
                "seconds": [r["seconds"] for r in own],
                "evaluations": [_evaluations(r) for r in own],
            }
            self.ways[way] |= {key: np.repeat(values, len(own[0]["present"])) for key, values in of_sets.items()}

    @property
    def pictures(self) -> int:
        """How many each way has."""
        return len(next(iter(self.ways.values()))["present"]) if self.ways else 0

    def mean(self, way: str, key: str, count: int | None = None) -> float:
        """The mean over the pictures with `count` skills, or all."""
        return self._of(way, key, count).mean()

    def interval(self, way: str, key: str, count: int | None = None) -> Interval:
        """The mean over the pictures with `count` skills, or all, with its interval."""
        return bootstrap(self._of(way, key, count), self._of(way, "group", count))

    def difference(self, way: str, other: str, key: str) -> Interval:
        """The mean of `way` less `other`, caption by caption."""
        a, b = self.ways[way], self.ways[other]
        return bootstrap(a[key] - b[key], a["group"])

    def wins(self, one: str, other: str) -> Wins:
        a, b = self.ways[one], self.ways[other]
        more, closer = np.sign(a["present"] - b["present"]), (a["distance"] < b["distance"]).astype(float)
        return Wins((more > 0).mean(), (more == 0).mean(), (more < 0).mean(), bootstrap(closer, a["group"]))

    def evaluations(self, way: str, count: int | None = None) -> float:
        """Mean model evaluations a picture, guidance included, of the pictures with `count` skills, or all."""
        return self.mean(way, "evaluations", count)

    def seconds(self, way: str) -> float:
        """Seconds a picture: the median over the sets, of which each has every way's time in turn; NaN where they were
        not measured.
        """
        return np.median(self.ways[way]["seconds"]) if way in self.ways else np.nan

    def _of(self, way: str, key: str, count: int | None) -> np.ndarray:
        values = self.ways[way]
        return values[key] if count is None else values[key][values["count"] == count]


def _evaluations(record: Record) -> float:
    """Model evaluations a picture: as counted, or of records without a count, as planned."""
    if "evaluations" in record:
        return record["evaluations"]
    return STEPS * evaluations_a_step(BY_SPLIT[record["split"]][record["way"]], record["count"])
