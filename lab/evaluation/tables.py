"""What was measured, as Markdown tables: figures with their intervals, and differences from a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lab.evaluation.captions import COUNTS
from lab.evaluation.measurements import Interval, Measured

Show = Callable[[Interval], str]


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


# Figures


def share(interval: Interval) -> str:
    """A share of 0..1, in %."""
    mean, low, high = (100 * v for v in interval)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def number(interval: Interval) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*interval)


def points(interval: Interval) -> str:
    """A difference of shares, in points of a hundred."""
    mean, low, high = (100 * v for v in interval)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def change(interval: Interval) -> str:
    """A difference of numbers."""
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*interval)


QUALITIES = {
    "skills present %": ("present", share),
    "all skills %": ("complete", share),
    "not asked for, a picture": ("others", number),
    "patch distance": ("distance", number),
}
"""Columns of ways measured on sets of skills: the quantity, and how it is shown."""

PLACE_QUALITIES = {
    "in their box %": ("inside", share),
    "in another's box, a picture": ("astray", number),
    "present anywhere %": ("present", share),
    "patch distance": ("distance", number),
}

COLOUR_QUALITIES = {
    "boxes with their ground %": ("own_ground", share),
    "of a box in another's ground %": ("bled", share),
    "in their box %": ("inside", share),
    "in another's box, a picture": ("astray", number),
}

STYLE_QUALITIES = {
    "style present %": ("style", share),
    "other skills present %": ("places", share),
    "all three %": ("complete", share),
    "patch distance": ("distance", number),
}

DIFFERENCES = {
    "present": ("skills present, points", points),
    "complete": ("all skills, points", points),
    "distance": ("patch distance", change),
    "others": ("not asked for, a picture", change),
    "style": ("style present, points", points),
    "places": ("other skills present, points", points),
    "inside": ("in their box, points", points),
    "astray": ("in another's box, a picture", change),
}
"""Each quantity's column in a table of differences, and how it is shown there."""


# Tables


def overview(test: Measured, speed: Measured, ways: Iterable[str]) -> str:
    """Cost and quality of each way."""
    return table(
        ["", "model evaluations a picture", "s a picture, N = 3", *QUALITIES],
        [
            [way, f"{test.evaluations(way):.0f}", f"{speed.seconds(way):.2f}", *_figures(test, way, QUALITIES)]
            for way in ways
            if way in test.ways
        ],
    )


def variants(measured: Measured, ways: Iterable[str], qualities: dict[str, tuple[str, Show]] = QUALITIES) -> str:
    """Evaluations and qualities of each way."""
    return table(
        ["", "model evaluations a picture", *qualities],
        [
            [way, f"{measured.evaluations(way):.0f}", *_figures(measured, way, qualities)]
            for way in ways
            if way in measured.ways
        ],
    )


def _figures(measured: Measured, way: str, qualities: dict[str, tuple[str, Show]]) -> list[str]:
    return [show(measured.interval(way, key)) for key, show in qualities.values()]


def against(
    measured: Measured,
    reference: str,
    ways: Iterable[str],
    keys: Sequence[str] = ("present", "complete", "distance"),
) -> str:
    """What each way saves of the reference's evaluations, and what it changes, caption by caption."""
    columns = [(key, *DIFFERENCES[key]) for key in keys]
    return table(
        ["", f"evaluations, of {reference}'s", *(name for _, name, _ in columns)],
        [
            [
                way,
                f"{measured.evaluations(way) / measured.evaluations(reference):.0%}",
                *(show(measured.difference(way, reference, key)) for key, _, show in columns),
            ]
            for way in ways
            if way in measured.ways
        ],
    )


def pairs(
    measured: Measured,
    compared: dict[str, tuple[str, str]],
    keys: Sequence[str] = ("present", "complete", "distance"),
) -> str:
    """What a way changes against a reference, caption by caption: by the name of the row the two."""
    columns = [(key, *DIFFERENCES[key]) for key in keys]
    return table(
        ["", *(name for _, name, _ in columns)],
        [
            [name, *(show(measured.difference(way, reference, key)) for key, _, show in columns)]
            for name, (way, reference) in compared.items()
            if {way, reference} <= measured.ways.keys()
        ],
    )


def by_count(measured: Measured, key: str, show: Show, ways: Iterable[str]) -> str:
    """One quantity of each way, by the number of skills."""
    return table(
        ["", *(f"N = {n}" for n in COUNTS), "all"],
        [
            [way, *(show(measured.interval(way, key, n)) for n in (*COUNTS, None))]
            for way in ways
            if way in measured.ways
        ],
    )


def evaluations_by_count(measured: Measured, ways: Iterable[str] | None = None) -> str:
    return table(
        ["", *(f"N = {n}" for n in COUNTS)],
        [[way, *(f"{measured.evaluations(way, n):.0f}" for n in COUNTS)] for way in ways or measured.ways],
    )


def wins(measured: Measured, one: str) -> str:
    """One way against each other way, caption by caption."""
    rows = [(way, measured.wins(one, way)) for way in measured.ways if way != one]
    return table(
        ["", "more skills %", "as many %", "fewer %", "smaller patch distance %"],
        [
            [way, *(f"{100 * v:.0f}" for v in (won.more, won.as_many, won.fewer)), share(won.closer)]
            for way, won in rows
        ],
    )
