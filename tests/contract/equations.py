"""The patch weights in plain loops, and comparisons of latents."""

import math

import torch


def patch_weights(base, adapted, size, temperature, top_k, masks=None):
    """`Omega [N,H,W]` from the noise predictions `[C,H,W]`; `masks [N,H,W]` are where each adapter may be."""
    weights = torch.zeros(len(adapted), *base.shape[1:], dtype=base.dtype)
    for y in range(0, base.shape[1], size):
        for x in range(0, base.shape[2], size):
            patch = (slice(None), slice(y, y + size), slice(x, x + size))
            cosines = [float((e[patch] * base[patch]).sum() / (e[patch].norm() * base[patch].norm())) for e in adapted]
            there = [
                1.0 if masks is None else float(masks[adapter][patch[1:]].mean()) for adapter in range(len(adapted))
            ]
            logits = {n: math.log(m) - cosines[n] / temperature for n, m in enumerate(there) if m}
            kept = sorted(logits, key=lambda n: -logits[n])[: top_k or len(adapted)]
            shares = {n: math.exp(logits[n] - max(logits.values())) for n in kept}
            for adapter, share in shares.items():
                weights[adapter][patch[1:]] = min(1.0, sum(there)) * share / sum(shares.values())
    return weights


def window_mask(box, size, window, feather):
    """How much of each latent pixel `[H,W]` a box has: the share of a square around it, in fractions of the picture.

    The square's edge is `feather` of the picture's shorter edge, and at least a pixel. At the picture's border the box
    goes on.
    """
    (height, width), (left, top, right, bottom) = size, window
    pixel = (right - left) / width, (bottom - top) / height
    edge = max(1.0, feather * min(1 / pixel[0], 1 / pixel[1]))
    mask = torch.empty(size, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            share = 1.0
            for place, low, high, one in (
                (left + (column + 0.5) * pixel[0], box[0], box[2], pixel[0]),
                (top + (row + 0.5) * pixel[1], box[1], box[3], pixel[1]),
            ):
                low, high = -9.0 if low == 0 else low, 9.0 if high == 1 else high
                begin, end = place - edge * one / 2, place + edge * one / 2
                share *= max(0.0, min(end, high) - max(begin, low)) / (edge * one)
            mask[row, column] = share if share > 1e-9 else 0.0
    return mask


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def differs(one, other):
    return (one - other).abs().max() > 1e-4 * other.abs().max()
