"""A factor on a LoRA's strength over the sampling, as its tag says it: `ltw=0@0,0.8@0.3,0.2@1`, `ltstart`, `ltend`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from lib_loratorio.errors import SettingsError

FORM = (
    "it must be factor@fraction, divided by commas, such as 0@0,1@0.3,0.2@1: numbers at fractions of the sampling from "
    "0 to 1 that do not go down; at most two at the same fraction, where the factor then jumps."
)


class Point(NamedTuple):
    """A factor at a fraction of the sampling."""

    fraction: float
    factor: float


@dataclass(frozen=True)
class Ramp:
    """Straight lines between points, whose fractions do not go down.

    Before the first and after the last point the factor is that point's. Of two points at one fraction the second holds
    there.
    """

    points: tuple[Point, ...]

    @classmethod
    def window(cls, start: float, end: float) -> Ramp:
        """1 in `[start, end)`, 0 outside; an end of 1 includes the last step, and samplers may run past it."""
        rise = (Point(start, 0.0), Point(start, 1.0)) if start > 0 else (Point(0.0, 1.0),)
        fall = (Point(end, 1.0), Point(end, 0.0)) if end < 1 else ()
        return cls((*rise, *fall))

    @classmethod
    def read(cls, named: Mapping[str, Any], lora: str) -> Ramp | None:
        """What `ltw` among the arguments of the LoRA called `lora` says; None without it. Raises SettingsError."""
        if "ltw" not in named:
            return None
        points = [_point(part) for part in str(named["ltw"]).split(",")]
        fractions = [point.fraction for point in points if point]
        in_order = all(before <= after for before, after in pairwise(fractions))
        if None in points or not in_order or any(fractions.count(fraction) > 2 for fraction in fractions):
            raise SettingsError(f"the LoRA '{lora}' has ltw={named['ltw']}; {FORM}")
        if not any(point.factor for point in points):
            raise SettingsError(f"the LoRA '{lora}' has ltw={named['ltw']}, which is 0 throughout; {FORM}")
        return cls(tuple(points))

    def at(self, fraction: float) -> float:
        """The factor at this fraction of the sampling."""
        before = [point for point in self.points if point.fraction <= fraction]
        after = self.points[len(before) :]
        if not before or not after:
            return (before or after)[-1 if before else 0].factor
        (begin, low), (end, high) = before[-1], after[0]
        return low + (high - low) * (fraction - begin) / (end - begin)

    def is_whole(self, start: float, end: float) -> bool:
        """Whether the factor is 1 everywhere in `[start, end)`."""
        inner = [point.fraction for point in self.points if start < point.fraction < end]
        edges = sorted({start, *inner, end})
        # Between two points it goes in a straight line, so that two places tell of all of them.
        between = (low + (high - low) * part for low, high in pairwise(edges) for part in (0.25, 0.75))
        return all(self.at(fraction) == 1 for fraction in between)

    @property
    def text(self) -> str:
        return ",".join(f"{point.factor:.10g}@{point.fraction:.10g}" for point in self.points)


def _point(text: str) -> Point | None:
    factor, divided, fraction = text.partition("@")
    try:
        point = Point(float(fraction), float(factor))
    except ValueError:
        return None
    return point if divided and 0 <= point.fraction <= 1 and math.isfinite(point.factor) else None
