"""Low-rank deltas of several adapters in one layer: two products for a run of rows, however many adapters it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lib_loratorio.deltas.factors import NONE, Factors
from lib_loratorio.deltas.layers import add_to, convolve, is_linear, weight_shape
from lib_loratorio.deltas.precision import in_floats, in_full
from lib_loratorio.deltas.row_layout import Layout


@dataclass(frozen=True)
class LowRank:
    """`D = scale * up @ down`: `down [r, C, *kernel]`, `up [O, r]`; `scale` holds the strength."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float | torch.Tensor = 1.0

    @property
    def is_finite(self) -> bool:
        return all(torch.isfinite(in_floats(torch.as_tensor(part))).all() for part in (self.down, self.up, self.scale))

    @property
    def has_effect(self) -> bool:
        """Whether it changes a layer at all, as far as its factors tell."""
        return all(in_floats(torch.as_tensor(part)).any() for part in (self.down, self.up, self.scale))


def fits_low_rank(layer: nn.Module, delta: LowRank) -> bool:
    """Whether the factors have the layer's own shape, so that they can be applied as a layer."""
    if not (is_linear(layer) or isinstance(layer, nn.Conv2d)) or getattr(layer, "groups", 1) != 1:
        return False
    outputs, *inputs = weight_shape(layer)
    return delta.down.shape[1:] == tuple(inputs) and delta.up.shape == (outputs, delta.down.shape[0])


class _Stack(NamedTuple):
    """Factors side by side, padded to the largest rank: `down [n, r, C * kernel]`, `up [n, r, O]`.

    So several adapters' factors, seen as one's of as many ranks, are the same memory.
    """

    adapters: tuple[int, ...]
    down: torch.Tensor
    up: torch.Tensor


class LowRankLayer:
    """The low-rank deltas of all adapters that touch one layer, and the stacks made of them on its device.

    `stacks` maps adapters to the stack of those of them that touch the layer; `placed` is where the layer computes, and
    in what, None before its first call.
    """

    def __init__(self, layer: nn.Module, deltas: Mapping[int, LowRank]):
        self.layer, self.deltas = layer, dict(sorted(deltas.items()))
        self.stacks: dict[tuple[int, ...], _Stack] = {}
        self.placed: tuple[torch.device, torch.dtype] | None = None
        kernel = _kernel(layer)
        self.pointwise = (
            isinstance(layer, nn.Conv2d) and set(kernel + layer.stride) == {1} and set(layer.padding) == {0}
        )

    def stack(self, adapters: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> _Stack:
        stack = self.stacks.get(adapters)
        if stack is None or (stack.down.device, stack.down.dtype) != (device, dtype):
            stack = self.stacks[adapters] = self._stacked(adapters, device, dtype)
            self.placed = device, dtype
        return stack

    def _stacked(self, adapters: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> _Stack:
        deltas = {adapter: self.deltas[adapter] for adapter in adapters if adapter in self.deltas}
        rank = max(delta.down.shape[0] for delta in deltas.values())
        downs, ups = [], []
        for delta in deltas.values():
            missing = rank - delta.down.shape[0]
            downs.append(F.pad(in_floats(delta.down).flatten(1), (0, 0, 0, missing)).to(dtype))
            ups.append(F.pad((in_full(delta.up) * delta.scale).mT, (0, 0, 0, missing)).to(dtype))
        return _Stack(tuple(deltas), torch.stack(downs).to(device), torch.stack(ups).to(device))

    def add(
        self,
        x: torch.Tensor,
        output: torch.Tensor,
        layout: Layout,
        scale: int,
        adapters: tuple[int, ...],
        factors: Factors = NONE,
    ) -> None:
        if not any(adapter in self.deltas and adapter in layout.adapters for adapter in adapters):
            return
        stack = self.stack(adapters, output.device, output.dtype)
        for run in layout.runs(stack.adapters):
            rows = slice(run.start * scale, run.end * scale)
            down = factors.scaled(stack.down[run.adapters], stack.adapters[run.adapters])
            down, up = (part.reshape(run.count, -1, part.shape[-1]) for part in (down, stack.up[run.adapters]))
            add = self._add_linear if is_linear(self.layer) else self._add_convolution
            add(x[rows].to(output.dtype), output[rows], down, up)

    def _add_linear(self, x: torch.Tensor, output: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        count = down.shape[0]
        hidden = torch.bmm(x.reshape(count, -1, x.shape[-1]), down.mT)
        _multiply_into(output, (count, -1, output.shape[-1]), hidden, up)

    def _add_convolution(self, x: torch.Tensor, output: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        count, rank = down.shape[:2]
        images = x.shape[0] // count
        if self.pointwise:
            hidden = torch.bmm(_for_each(down, images), x.reshape(*x.shape[:2], -1))
        else:
            side_by_side = x.unflatten(0, (count, images)).transpose(0, 1).flatten(1, 2)
            kernels = down.reshape(count * rank, x.shape[1], *_kernel(self.layer))
            hidden = convolve(self.layer, side_by_side, kernels, groups=count)
            hidden = hidden.unflatten(1, (count, rank)).transpose(0, 1).flatten(0, 1).flatten(2)
        shape = (*output.shape[:2], output.shape[2] * output.shape[3])
        _multiply_into(output, shape, _for_each(up.mT, images), hidden)


def _for_each(factors: torch.Tensor, images: int) -> torch.Tensor:
    """Factors `[n, ...]` for so many images each: `[n * images, ...]`."""
    return factors.expand(images, -1, -1) if factors.shape[0] == 1 else factors.repeat_interleave(images, 0)


def _kernel(layer: nn.Module) -> tuple[int, ...]:
    return tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()


def _multiply_into(output: torch.Tensor, shape: tuple[int, ...], left: torch.Tensor, right: torch.Tensor) -> None:
    """`output += left @ right`, in one kernel where the output's memory allows it."""
    if output.is_contiguous():
        output.view(shape).baddbmm_(left, right)
    else:
        add_to(output, torch.bmm(left, right))
