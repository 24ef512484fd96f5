"""A model's layers, whichever class the host made them of: their shapes, and their computation with another weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def is_linear(layer: nn.Module) -> bool:
    """Also for hosts whose linear layers are classes of their own, the quantised ones without any sizes."""
    return isinstance(layer, nn.Linear) or hasattr(layer, "in_features") or type(layer).__name__ == "Linear"


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """The weight's shape as a layer, which a quantised layer's storage does not have.

    Raises RuntimeError for kinds of layers that cannot be changed for some rows only.
    """
    if hasattr(layer, "in_features"):
        return layer.out_features, layer.in_features
    if is_linear(layer):
        # bitsandbytes keeps the shape of what it has packed; GGUF's weights tell it as their own.
        return tuple((getattr(layer.weight, "quant_state", None) or layer.weight).shape)
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) and layer.weight is not None:
        return tuple(layer.weight.shape)
    raise RuntimeError(f"a layer of the kind {type(layer).__name__} cannot be changed for some rows only")


def convolve(
    layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, groups: int = 1
) -> torch.Tensor:
    """A convolution with this layer's geometry, the tiling hosts' circular padding included."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, groups)


def add_to(rows: torch.Tensor, delta: torch.Tensor) -> None:
    """Adds a delta to these rows of an output, in place, whatever shape it was computed in."""
    rows.add_(delta.reshape(rows.shape))
