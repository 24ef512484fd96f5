"""The captions: sets of skills with what their pictures are to show, in splits that share neither set nor seed, but for
those that look at the captions of "test" and "dev" again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lab import world

COUNTS = (2, 3, 4, 5)  # skills in a set
CAPTIONS = 4  # of every set


class Split(NamedTuple):
    """Captions with one purpose: the first of their seeds, and the number of sets for each count of skills."""

    first_seed: int
    sets: int
    counts: tuple[int, ...] = COUNTS


SPLITS = {
    "dev": Split(1_000_000, 2),
    "test": Split(2_000_000, 13),
    "style": Split(3_000_000, 26, (3,)),
    "speed": Split(4_000_000, 5, (3,)),
    "pool": Split(5_000_000, 6),
    "places": Split(6_000_000, 6, (2, 3)),
    "price": Split(2_000_000, 13),  # those of "test"
    "samplings": Split(2_000_000, 3),
    "large": Split(2_000_000, 2),
    "strengths": Split(1_000_000, 2),  # those of "dev"
    "pools": Split(2_000_000, 3),
    "textures": Split(3_000_000, 4, (3,)),  # those of "style"
}


STYLED = ("style", "textures")
"""The splits whose sets have exactly one style."""


@dataclass(frozen=True)
class SkillSet:
    """One set of `count` skills with its captions, the `number`-th of this count in its split."""

    split: str
    number: int
    count: int

    @property
    def seed(self) -> int:
        return SPLITS[self.split].first_seed + 1000 * (self.count * 100 + self.number)

    def contents(self) -> tuple[tuple[str, ...], list[world.Content]]:
        """The skills, and what each of the pictures is to show.

        Sets of the splits "style" and "textures" have exactly one style. Those of the split "places" are figures alone,
        in a drawn order, which is that of their boxes from left to right; the captions have them in their own orders.
        """
        rng = np.random.default_rng(self.seed)
        if self.split == "places":
            skills = tuple(rng.choice(world.FIGURES, self.count, replace=False).tolist())
            return skills, [world.content(skills, rng, shapes=0) for _ in range(CAPTIONS)]
        skills = world.random_skills(rng, self.count)
        while self.split in STYLED and sum(map(world.is_style, skills)) != 1:
            skills = world.random_skills(rng, self.count)
        return skills, [world.content(skills, rng) for _ in range(CAPTIONS)]


def skill_sets(split: str, limit: int | None = None) -> list[SkillSet]:
    """The sets of a split; with `limit`, another number of them for each count of skills."""
    _, sets, counts = SPLITS[split]
    return [SkillSet(split, number, count) for number in range(limit or sets) for count in counts]
