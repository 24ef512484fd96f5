"""AdapterBank: adds each adapter's effect to its own rows of one batch, the model's weights untouched.

Every layer kind here is linear in its weight, so a changed weight `W + D` means `op(x, W) + op(x, D)`.
Low-rank deltas are kept as factors, stacked over adapters and padded to the largest rank: two batched
products a layer. Dense deltas (kinds without cheap factors) are computed by the host's own rule, applied
to their rows only, and cached within a memory budget. A forward hook sits on each layer that any
adapter touches; other layers cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lib_loratorio.methods import BASE


@dataclass(frozen=True)
class LowRank:
    """`D = up @ down`: `down [r, C, *kernel]`, `up [O, r]`, the strength folded into `up`."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True)
class Dense:
    """A delta of the layer's full shape. `compute()` gives `(weight delta, bias delta or None)`.

    It reads the layer's own weight, so it is called only while that is the base model's.
    """

    compute: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]



class Block(NamedTuple):
    """Consecutive rows of a batch that belong to one model: `BASE` or an adapter's number."""

    adapter: int
    rows: int


class _Run(NamedTuple):
    """Consecutive blocks of equal size whose adapters are consecutive in a layer's stack."""

    start: int
    rows: int
    first: int
    count: int


@dataclass(frozen=True)
class Layout:
    """How one batch's rows are divided among the models."""

    blocks: tuple[Block, ...]
    _runs: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    def runs(self, members: tuple[int, ...]) -> list[_Run]:
        """The row runs of these adapters, which is where a layer with this stack has work to do."""
        if members not in self._runs:
            self._runs[members] = self._find_runs(members)
        return self._runs[members]

    def _find_runs(self, members: tuple[int, ...]) -> list[_Run]:
        runs: list[_Run] = []
        start = 0
        for adapter, rows in self.blocks:
            if adapter in members:
                place = members.index(adapter)
                last = runs[-1] if runs else None
                if last and last.rows == rows and last.start + last.rows * last.count == start and last.first + last.count == place:
                    runs[-1] = last._replace(count=last.count + 1)
                else:
                    runs.append(_Run(start, rows, place, 1))
            start += rows
        return runs


class MemoryBudget:
    """Bytes that cached dense deltas may take."""

    def __init__(self, size: int):
        self.left = size

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a CUDA device or on the CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error).lower() or "can't allocate memory" in str(error))


def _add(rows: torch.Tensor, delta: torch.Tensor) -> None:
    rows.add_(delta.reshape(rows.shape))


def _is_linear(layer: nn.Module) -> bool:
    """Also for hosts whose linear layers are classes of their own, the quantised ones without any sizes."""
    return isinstance(layer, nn.Linear) or hasattr(layer, "in_features") or type(layer).__name__ == "Linear"


def _kernel(layer: nn.Module) -> tuple[int, ...]:
    return tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """The weight's shape as a layer, which a quantised layer's storage does not have.

    Raises RuntimeError for kinds of layers that cannot be changed for some rows only.
    """
    if hasattr(layer, "in_features"):
        return layer.out_features, layer.in_features
    if _is_linear(layer):
        # bitsandbytes keeps the shape of what it has packed; GGUF's weights tell it as their own.
        return tuple((getattr(layer.weight, "quant_state", None) or layer.weight).shape)
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) and layer.weight is not None:
        return tuple(layer.weight.shape)
    raise RuntimeError(f"a layer of the kind {type(layer).__name__} cannot be changed for some rows only")


def fits_low_rank(layer: nn.Module, delta: LowRank) -> bool:
    """Whether the factors have the layer's own shape, so that they can be applied as a layer."""
    if not (_is_linear(layer) or isinstance(layer, nn.Conv2d)) or getattr(layer, "groups", 1) != 1:
        return False
    outputs, *inputs = weight_shape(layer)
    return delta.down.shape[1:] == tuple(inputs) and delta.up.shape == (outputs, delta.down.shape[0])


class _LowRankStack:
    """The factors of all adapters that touch one layer, stacked and padded to the largest rank."""

    def __init__(self, layer: nn.Module, deltas: Mapping[int, LowRank]):
        self.layer = layer
        self.members = tuple(sorted(deltas))
        rank = max(delta.down.shape[0] for delta in deltas.values())
        pad = [(deltas[member].down, deltas[member].up, rank - deltas[member].down.shape[0]) for member in self.members]
        self.down = torch.stack([F.pad(down.flatten(1), (0, 0, 0, missing)) for down, _, missing in pad])
        self.up = torch.stack([F.pad(up, (0, missing)) for _, up, missing in pad])
        self.rank = rank
        kernel = _kernel(layer)
        self.pointwise = isinstance(layer, nn.Conv2d) and set(kernel + layer.stride) == {1} and set(layer.padding) == {0}

    def to(self, output: torch.Tensor) -> None:
        if self.down.device != output.device or self.down.dtype != output.dtype:
            self.down, self.up = self.down.to(output), self.up.to(output)

    def add(self, x: torch.Tensor, output: torch.Tensor, layout: Layout, scale: int) -> None:
        self.to(output)
        for run in layout.runs(self.members):
            rows = slice(run.start * scale, (run.start + run.rows * run.count) * scale)
            stack = slice(run.first, run.first + run.count)
            inputs = x[rows].to(output.dtype)
            if _is_linear(self.layer):
                self._add_linear(inputs, output[rows], stack, run.count)
            else:
                self._add_convolution(inputs, output[rows], stack, run.count)

    def _add_linear(self, x: torch.Tensor, output: torch.Tensor, stack: slice, count: int) -> None:
        hidden = torch.bmm(x.reshape(count, -1, x.shape[-1]), self.down[stack].transpose(1, 2))
        _multiply_into(output, (count, -1, output.shape[-1]), hidden, self.up[stack].transpose(1, 2))

    def _add_convolution(self, x: torch.Tensor, output: torch.Tensor, stack: slice, count: int) -> None:
        images = x.shape[0] // count
        down, up = self.down[stack], self.up[stack]
        if self.pointwise:
            hidden = torch.bmm(down.repeat_interleave(images, 0), x.reshape(*x.shape[:2], -1))
        else:
            side_by_side = x.unflatten(0, (count, images)).transpose(0, 1).flatten(1, 2)
            kernels = down.reshape(count * self.rank, x.shape[1], *_kernel(self.layer))
            hidden = _convolve(self.layer, side_by_side, kernels, groups=count)
            hidden = hidden.unflatten(1, (count, self.rank)).transpose(0, 1).flatten(0, 1).flatten(2)
        shape = (*output.shape[:2], output.shape[2] * output.shape[3])
        _multiply_into(output, shape, up.repeat_interleave(images, 0), hidden)


def _multiply_into(output: torch.Tensor, shape: tuple[int, ...], left: torch.Tensor, right: torch.Tensor) -> None:
    """`output += left @ right`, in one kernel where the output's memory allows it."""
    if output.is_contiguous():
        output.view(shape).baddbmm_(left, right)
    else:
        _add(output, torch.bmm(left, right))


def _convolve(layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, groups: int = 1) -> torch.Tensor:
    """A convolution with this layer's geometry, the tiling hosts' circular padding included."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, groups)


class _DenseDelta:
    """One adapter's dense delta of one layer, cached where the budget allows it."""

    def __init__(self, layer: nn.Module, delta: Dense, budget: MemoryBudget):
        self.layer, self.delta, self.budget = layer, delta, budget
        self.cached: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def compute(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The delta in the layer's shape. Raises RuntimeError where the host's rule does not fit the layer."""
        weight, bias = self.delta.compute()
        return weight.expand(weight_shape(self.layer)), bias

    def prepare(self) -> None:
        """Computes the delta once, so that a rule that fails does so before the sampling."""
        weight, bias = self.compute()
        if self.budget.take(weight.numel() * weight.element_size()):
            self.cached = weight, bias

    def on(self, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight, bias = self.cached or self.compute()
        norm = isinstance(self.layer, (nn.GroupNorm, nn.LayerNorm))
        dtype = torch.promote_types(output.dtype, torch.float32) if norm else output.dtype
        placed = weight.to(output.device, dtype), None if bias is None else bias.to(output.device, dtype)
        if self.cached:
            self.cached = placed
        return placed

    def add(self, x: torch.Tensor, output: torch.Tensor) -> None:
        weight, bias = self.on(output)
        layer, x = self.layer, x.to(weight.dtype)
        if _is_linear(layer):
            delta = F.linear(x, weight, bias)
        elif isinstance(layer, nn.Conv2d):
            delta = _convolve(layer, x, weight, bias, layer.groups)
        elif isinstance(layer, nn.GroupNorm):
            delta = F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        else:
            delta = F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        _add(output, delta)


class _LayerRows:
    """Everything that adapters add to one layer's output."""

    def __init__(self, layer: nn.Module, low_rank: Mapping[int, LowRank], dense: Mapping[int, _DenseDelta]):
        self.stack = _LowRankStack(layer, low_rank) if low_rank else None
        self.dense = dict(dense)

    def add(self, x: torch.Tensor, output: torch.Tensor, layout: Layout) -> None:
        scale, rest = divmod(output.shape[0], layout.rows)
        if rest or x.shape[0] != output.shape[0]:
            raise RuntimeError(f"a layer got {output.shape[0]} rows, which are not a multiple of the batch's {layout.rows}")
        if self.stack:
            self.stack.add(x, output, layout, scale)
        for adapter, delta in self.dense.items():
            for run in layout.runs((adapter,)):
                rows = slice(run.start * scale, (run.start + run.rows * run.count) * scale)
                delta.add(x[rows], output[rows])


class AdapterBank:
    """The deltas of several adapters, for the layers of one model.

    Args:
        layers: the model's layers by name.
        adapters: per adapter its deltas by layer name.
        budget: bytes that cached dense deltas may take.

    After construction `failures[i]` holds adapter i's layers whose delta the host's rule could not
    compute, with the reason; they are left out, as the host itself leaves them out.
    """

    def __init__(self, layers: Mapping[str, nn.Module], adapters: Sequence[Mapping[str, LowRank | Dense]], budget: int):
        self.layers = layers
        self.layout: Layout | None = None
        self.failures: list[dict[str, str]] = [{} for _ in adapters]
        self.counts = [0] * len(adapters)
        self._handles: list = []
        shared_budget = MemoryBudget(budget)
        self._layers: list[tuple[nn.Module, _LayerRows]] = []
        for name in dict.fromkeys(name for adapter in adapters for name in adapter):
            low_rank, dense = {}, {}
            for number, adapter in enumerate(adapters):
                delta = adapter.get(name)
                if isinstance(delta, LowRank):
                    low_rank[number] = delta
                elif delta is not None:
                    prepared = self._prepared(layers[name], name, number, delta, shared_budget)
                    if prepared:
                        dense[number] = prepared
            for number in (*low_rank, *dense):
                self.counts[number] += 1
            if low_rank or dense:
                self._layers.append((layers[name], _LayerRows(layers[name], low_rank, dense)))

    def _prepared(self, layer: nn.Module, name: str, number: int, delta: Dense, budget: MemoryBudget) -> _DenseDelta | None:
        prepared = _DenseDelta(layer, delta, budget)
        try:
            prepared.prepare()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.failures[number][name] = str(error)
            return None
        return prepared

    @contextmanager
    def attached(self) -> Iterator[AdapterBank]:
        """Hooks on the touched layers for the time of the block; they act only within `rows`."""
        try:
            for layer, rows in self._layers:
                self._handles.append(layer.register_forward_hook(self._hook(rows)))
            yield self
        finally:
            while self._handles:
                self._handles.pop().remove()

    def _hook(self, rows: _LayerRows):
        def add(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if self.layout is not None:
                rows.add(inputs[0], output, self.layout)

        return add

    @contextmanager
    def rows(self, layout: Layout) -> Iterator[None]:
        """For the time of the block, batches are divided among the models as `layout` says."""
        self.layout = layout if any(block.adapter != BASE for block in layout.blocks) else None
        try:
            yield
        finally:
            self.layout = None
