"""Boxes side by side, in which figures are to stand, and whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lab import detector, world

WORDS = {2: ("left", "right"), 3: ("left-third", "middle-third", "right-third")}
"""By the number of figures: the regions' words, from left to right."""

FROM_LEFT = {2: (0, 1), 3: (0, 2, 1)}
"""By the number of figures: which of `world.SLOTS` stand in the boxes, from left to right."""


class Found(NamedTuple):
    """Of each picture the share of the figures that stand in their box, and how often one stands in another's."""

    inside: np.ndarray
    astray: np.ndarray


def edges(count: int) -> list[tuple[float, float]]:
    """Left and right edge of each of `count` boxes, in fractions of the picture."""
    return [(i / count, (i + 1) / count) for i in range(count)]


def in_boxes(judge: detector.Detector, images: np.ndarray, skills: Sequence[str]) -> np.ndarray:
    """Whether the detector finds each figure in each box: `[B, boxes, figures]` bool, a box for each of the `skills`.

    The detector is convolutions, a maximum and a mean, so that it reads the cut-out of a box as it does a picture.
    """
    asked = [world.NAMES.index(name) for name in skills]
    found = []
    for left, right in edges(len(skills)):
        columns = slice(round(left * world.SIZE), round(right * world.SIZE))
        found.append(detector.detect(judge, np.ascontiguousarray(images[:, :, columns]))[:, asked])
    return np.stack(found, 1)


def found(judge: detector.Detector, images: np.ndarray, skills: Sequence[str]) -> Found:
    """Pictures `[B, SIZE, SIZE, 3]` uint8 whose n-th box is the n-th skill's."""
    return tally(in_boxes(judge, images, skills))


def tally(seen: np.ndarray) -> Found:
    """Of `[B, boxes, figures]` bool, where the n-th box is the n-th figure's."""
    own = np.eye(seen.shape[1], dtype=bool)
    return Found(seen[:, own].mean(1), seen[:, ~own].sum(1))


def grounds(shown: world.Content) -> list[str]:
    """A ground for each box of a content, all different, from left to right: its own first."""
    names = list(world.GROUNDS)
    first = names.index(shown.ground)
    return [names[(first + number) % len(names)] for number in range(len(shown.figures))]


class Grounds(NamedTuple):
    """Of each picture the share of the boxes that have their ground, and of their pixels that have another box's."""

    own_ground: np.ndarray
    bled: np.ndarray


NEAR = 40
"""How far a pixel's colour may be from a ground's, in the largest channel, to be taken for it."""


def grounds_found(images: np.ndarray, asked: Sequence[Sequence[str]]) -> Grounds:
    """Pictures `[B, SIZE, SIZE, 3]` uint8, each with the grounds of its boxes. A box has the ground that most of its
    pixels have, of those that are near any.
    """
    names = list(world.GROUNDS)
    colours = np.array([world.GROUNDS[name] for name in names])
    own, bled = [], []
    for image, of_boxes in zip(images.astype(int), asked, strict=True):
        near = (np.abs(image[:, :, None] - colours).max(-1) <= NEAR).astype(float)
        shares = [
            near[:, round(left * world.SIZE) : round(right * world.SIZE)].mean((0, 1))
            for left, right in edges(len(of_boxes))
        ]
        numbers = [names.index(name) for name in of_boxes]
        own.append(np.mean([share.argmax() == number for share, number in zip(shares, numbers)]))
        others = [sum(share[other] for other in numbers if other != number) for share, number in zip(shares, numbers)]
        bled.append(np.mean(others))
    return Grounds(np.array(own), np.array(bled))


def accuracy(judge: detector.Detector, count: int, renders: int = 200, seed: int = 6_900_000) -> tuple[float, float]:
    """On renders of `count` figures: share of the figures that are found in the box where they are drawn, and share of
    the looks into other boxes that find them too.
    """
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(renders):
        shown = world.content(rng.choice(world.FIGURES, count, replace=False).tolist(), rng, shapes=0)
        figures = [shown.figures[slot] for slot in FROM_LEFT[count]]
        seen.append(in_boxes(judge, world.render(shown, rng)[None], figures)[0])
    inside, astray = tally(np.stack(seen))
    return float(inside.mean()), float(astray.mean() / (count * (count - 1)))
