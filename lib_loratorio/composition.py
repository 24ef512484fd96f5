"""The equations of LoRAtorio (arXiv 2508.11624) as pure tensor functions.

Shapes: `base [B,C,H,W]`, `adapted [N,B,C,H,W]`, similarity and patch weights `[N,B,h,w]` with
`h = ceil(H/d)`, `w = ceil(W/d)`, expanded weights `[N,B,H,W]`, composed `[B,C,H,W]`.
Arithmetic is in float32 (float64 stays float64); results have the dtype of `adapted`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def _working_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _patch_sums(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Sums `[..., H, W]` over patches to `[..., h, w]`; zeros fill up the border patches."""
    height, width = pixels.shape[-2:]
    h, w = -(-height // patch_size), -(-width // patch_size)
    pixels = F.pad(pixels, (0, w * patch_size - width, 0, h * patch_size - height))
    return pixels.reshape(*pixels.shape[:-2], h, patch_size, w, patch_size).sum((-3, -1))


def patch_means(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Means `[..., H, W]` over patches, `[..., h, w]`; a patch cut off by the border has that of the pixels it has."""
    return _patch_sums(pixels, patch_size) / _patch_sums(torch.ones_like(pixels), patch_size)


def patch_similarity(base: torch.Tensor, adapted: torch.Tensor, patch_size: int) -> torch.Tensor:
    """`S[i,p] = cos(patch_p(e_i(c)), patch_p(e_0(c)))`, each patch flattened over `C x d x d`.

    A patch cut off by the border uses the pixels it has. Where either patch has zero norm the
    similarity is 1: no divergence. Raises ValueError for a patch size below 1 or shapes that differ.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
    if adapted.shape[1:] != base.shape:
        raise ValueError(f"adapted {tuple(adapted.shape)} must be [N, *{tuple(base.shape)}]")
    dtype = torch.promote_types(_working_dtype(base), _working_dtype(adapted))
    base, adapted = base.to(dtype), adapted.to(dtype)
    dot = _patch_sums((adapted * base).sum(-3), patch_size)
    base_norm = _patch_sums(base.square().sum(-3), patch_size).sqrt()
    norms = _patch_sums(adapted.square().sum(-3), patch_size).sqrt() * base_norm
    cosine = (dot / norms).clamp(-1, 1)
    return torch.where(norms == 0, torch.ones_like(cosine), cosine)


def softmin_weights(similarity: torch.Tensor, temperature: float, top_k: int | None = None) -> torch.Tensor:
    """`Omega[:,p] = exp(-S/tau) / sum exp(-S/tau)` over the `top_k` least similar adapters of each patch.

    `top_k` None or 0 keeps all. Sums to 1 over dim 0. Raises ValueError for a temperature that is not
    above 0 or a negative `top_k`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must not be negative")
    logits = -similarity.to(_working_dtype(similarity)) / temperature
    if top_k and top_k < similarity.shape[0]:
        kept = similarity.topk(top_k, dim=0, largest=False).indices
        dropped = torch.ones_like(similarity, dtype=torch.bool).scatter(0, kept, False)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits.softmax(0)


def expand_weights(weights: torch.Tensor, patch_size: int, size: tuple[int, int]) -> torch.Tensor:
    """Repeats patch weights `[N,B,h,w]` to latent pixels `[N,B,H,W]`, `size = (H, W)`."""
    height, width = size
    pixels = weights.repeat_interleave(patch_size, -2).repeat_interleave(patch_size, -1)
    return pixels[..., :height, :width]


def resized(pixels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`[B,C,H,W]` at another size `(h, w)`: some samplers evaluate a smaller latent too within a step."""
    return pixels if pixels.shape[-2:] == tuple(size) else F.interpolate(pixels, size=tuple(size), mode="bilinear")


def compose(adapted: torch.Tensor, weights: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
    """`e~ = sum_i Omega_up[i] * e_i`, from `adapted [N,B,C,H,W]` and expanded `weights [N,B,H,W]`.

    With `base [B,C,H,W]` the weights need not sum to 1: it has what is left, `(1 - sum_i Omega_up[i]) * e_0`.
    """
    dtype = torch.promote_types(_working_dtype(adapted), _working_dtype(weights))
    weights = weights.to(dtype).unsqueeze(-3)
    composed = (adapted.to(dtype) * weights).sum(0)
    if base is not None:
        composed = composed + (1 - weights.sum(0)) * base.to(dtype)
    return composed.to(adapted.dtype)


def recenter(base: torch.Tensor, composed: torch.Tensor, lam: float) -> torch.Tensor:
    """`e~() = lambda * e_0() + (1 - lambda) * sum_i Omega_up[i] * e_i()`; both `[B,C,H,W]`."""
    dtype = torch.promote_types(_working_dtype(base), _working_dtype(composed))
    return (lam * base.to(dtype) + (1 - lam) * composed.to(dtype)).to(composed.dtype)
