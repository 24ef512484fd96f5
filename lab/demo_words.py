"""What the demo tells in words and numbers: a picture's lines, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lab.contact_sheet import OF_LORAS
from lab.demo_pictures import Picture
from lab.demo_plan import Shot

Pairs = Iterable[tuple[Shot, Picture]]

HEADER = ("", "skills shown", "pictures with all", "evaluations a picture", "seconds a picture")


def told(shot: Shot, picture: Picture) -> list[str]:
    """The lines under a picture: what it shows, and what it took."""
    shown = f"{len(shot.asked & set(picture.found))} of {len(shot.skills)} skills"
    if shot.placed and shot.way.regions:
        shown += f", {picture.in_place} in their half"
    return [shown, f"{picture.evaluations:g} evaluations, {picture.seconds:.1f} s"]


def legend(picture: Picture) -> list[tuple[str, tuple[int, int, int]]]:
    """Each LoRA that has a share, with it and its colour, in the LoRAs' order."""
    shares = picture.weights.mean((1, 2))
    return [
        (f"{label} {share:.0%}", OF_LORAS[number])
        for number, (label, share) in enumerate(zip(picture.labels, shares))
        if share >= 0.005
    ]


def table(pairs: Pairs) -> list[Sequence[str]]:
    """A row for each way after `HEADER`: its pictures together, in the order in which they come."""
    of_way: dict[str, list[tuple[Shot, Picture]]] = {}
    for shot, picture in pairs:
        of_way.setdefault(shot.title, []).append((shot, picture))
    return [HEADER, *(_row(title, made) for title, made in of_way.items())]


def _row(title: str, made: Sequence[tuple[Shot, Picture]]) -> Sequence[str]:
    found = [len(shot.asked & set(picture.found)) for shot, picture in made]
    asked = [len(shot.skills) for shot, _ in made]
    return (
        title,
        f"{sum(found)} of {sum(asked)}",
        f"{sum(one == all_of for one, all_of in zip(found, asked))} of {len(made)}",
        f"{sum(picture.evaluations for _, picture in made) / len(made):.0f}",
        f"{sum(picture.seconds for _, picture in made) / len(made):.1f}",
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
