"""Numbers as files store them, and as arithmetic needs them."""

from __future__ import annotations

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Storage that computes as it is. Others, as fp8 and integers, are cast first, and nothing is rounded to them."""


def in_floats(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in float32 where its storage does not compute."""
    return tensor if tensor.dtype in FLOATS else tensor.float()


def in_full(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
