"""How far a picture is from what its caption asks for, told by its patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab import world

PATCH = 3  # blocks along a patch's edge
DIRECTIONS = 128
RENDERS = 8  # of the same content, that a picture is compared with


def patch_distance(images: np.ndarray, contents: Sequence[world.Content], seed: int) -> np.ndarray:
    """Sliced Wasserstein distance (as in Karras et al. 2018) between a picture's patches and those of ground-truth
    renders of its caption: the mean over RENDERS renders, times 100.

    A scene's figures may stand anywhere, so no pixel-wise measure fits; the patches of a picture with the right
    figures, grounds and style are the same wherever they stand. Unlike the detector's features it has seen no training,
    so blur, wrong colours and half-drawn figures count as well.

    Args:
        images: `[B, SIZE, SIZE, 3]` uint8.
        contents: B contents, what each picture is to show.
        seed: of the renders.

    Returns `[B]`; 0 is no distance.
    """
    distances = np.empty(len(images))
    for i, (own, shown) in enumerate(zip(_sorted_projections(images), contents)):
        renders = np.stack([world.render(shown, seed + i * RENDERS + j) for j in range(RENDERS)])
        distances[i] = 100 * np.abs(_sorted_projections(renders) - own).mean()
    return distances


def _sorted_projections(images: np.ndarray) -> np.ndarray:
    """Each picture's patches along fixed random directions, sorted: `[B, patches, DIRECTIONS]`."""
    directions = np.random.default_rng(0).normal(size=(PATCH * PATCH * 3, DIRECTIONS))
    return np.sort(_patches(images) @ (directions / np.linalg.norm(directions, axis=0)), axis=1)


def _patches(images: np.ndarray) -> np.ndarray:
    """Pictures `[B, SIZE, SIZE, 3]` uint8 -> patches of blocks `[B, patches, PATCH * PATCH * 3]` in 0..1."""
    count = len(images)
    blocks = images.reshape(count, world.CANVAS, world.PIXEL, world.CANVAS, world.PIXEL, 3).mean((2, 4)) / 255
    windows = np.lib.stride_tricks.sliding_window_view(blocks, (PATCH, PATCH), axis=(1, 2))
    return windows.reshape(count, -1, PATCH * PATCH * 3)
