"""What is measured on a picture, and how sure a mean of it is."""

import numpy as np

from lab import world

PATCH = 3  # blocks along a patch's edge
DIRECTIONS = 128
RENDERS = 8  # of the same content, that a picture is compared with


def _patches(images):
    """Pictures [B, SIZE, SIZE, 3] uint8 -> patches of blocks [B, patches, PATCH * PATCH * 3] in 0..1."""
    count = len(images)
    blocks = images.reshape(count, world.CANVAS, world.PIXEL, world.CANVAS, world.PIXEL, 3).mean((2, 4)) / 255
    windows = np.lib.stride_tricks.sliding_window_view(blocks, (PATCH, PATCH), axis=(1, 2))
    return windows.reshape(count, -1, PATCH * PATCH * 3)


def _sorted_projections(images):
    """[B, patches, DIRECTIONS]: each picture's patches along fixed random directions, sorted."""
    directions = np.random.default_rng(0).normal(size=(PATCH * PATCH * 3, DIRECTIONS))
    return np.sort(_patches(images) @ (directions / np.linalg.norm(directions, axis=0)), axis=1)


def patch_distance(images, contents, seed):
    """Sliced Wasserstein distance (as in Karras et al. 2018) between a picture's patches and those of ground-truth
    renders of its caption: [B], the mean over RENDERS renders, times 100.

    A scene's figures may stand anywhere, so no pixel-wise measure fits; the patches of a picture with the right
    figures, grounds and style are the same wherever they stand. Unlike the detector's features it has seen no training,
    so blur, wrong colours and half-drawn figures count as well.
    """
    distances = np.empty(len(images))
    for i, (own, shown) in enumerate(zip(_sorted_projections(images), contents)):
        renders = np.stack([world.render(shown, seed + i * RENDERS + j) for j in range(RENDERS)])
        distances[i] = 100 * np.abs(_sorted_projections(renders) - own).mean()
    return distances


def bootstrap(values, groups, repeats=2000, seed=0):
    """Mean of `values` [n] with its 95% interval: (mean, low, high). Whole `groups` [n] are drawn, because the pictures
    of one set of LoRAs are not independent of each other.
    """
    values = np.asarray(values, float)
    _, members = np.unique(groups, return_inverse=True)
    totals, counts = np.bincount(members, values), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (repeats, len(counts)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    return float(values.mean()), *(float(q) for q in np.quantile(means, (0.025, 0.975)))
