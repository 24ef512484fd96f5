"""The patch weights in plain loops, and comparisons of latents."""

import math

import torch


def patch_weights(base, adapted, size, temperature, top_k):
    """`Omega [N,H,W]` from the noise predictions `[C,H,W]`."""
    weights = torch.zeros(len(adapted), *base.shape[1:], dtype=base.dtype)
    for y in range(0, base.shape[1], size):
        for x in range(0, base.shape[2], size):
            patch = (slice(None), slice(y, y + size), slice(x, x + size))
            cosines = [float((e[patch] * base[patch]).sum() / (e[patch].norm() * base[patch].norm())) for e in adapted]
            kept = sorted(range(len(adapted)), key=cosines.__getitem__)[: top_k or len(adapted)]
            shares = {adapter: math.exp((min(cosines) - cosines[adapter]) / temperature) for adapter in kept}
            for adapter, share in shares.items():
                weights[adapter][patch[1:]] = share / sum(shares.values())
    return weights


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def differs(one, other):
    return (one - other).abs().max() > 1e-4 * other.abs().max()
