"""AdapterBank: adds each adapter's effect to its own rows of one batch, the model's weights untouched.

Every layer kind here is linear in its weight, so a changed weight `W + D` means `op(x, W) + op(x, D)`.
Low-rank deltas are kept as factors, stacked over adapters and padded to the largest rank: two batched
products a layer. Of many adapters only those of the batch at hand are stacked on the model's device, the
others wait in host memory. Dense deltas (kinds without cheap factors) are computed by the host's own rule,
applied to their rows only, and cached within a memory budget. A forward hook sits on each layer that any
adapter touches; other layers cost nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

RESIDENT = 8
"""Adapters whose factors may all stay on the model's device; of more, only those of two calls are there at a time."""


@dataclass(frozen=True)
class LowRank:
    """`D = scale * up @ down`: `down [r, C, *kernel]`, `up [O, r]`; `scale` holds the strength."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float | torch.Tensor = 1.0


@dataclass(frozen=True)
class Dense:
    """A delta of the layer's full shape. `compute()` gives `(weight delta, bias delta or None)`.

    It reads the layer's own weight, so it is called only while that is the base model's.
    """

    compute: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]



class Block(NamedTuple):
    """Consecutive rows of a batch that belong to one model: the base with these adapters."""

    adapters: tuple[int, ...]
    rows: int


class _Run(NamedTuple):
    """Consecutive spans of rows, of equal size, whose adapters are consecutive in a layer's stack."""

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

    @cached_property
    def adapters(self) -> tuple[int, ...]:
        return tuple(sorted({adapter for block in self.blocks for adapter in block.adapters}))

    def runs(self, members: tuple[int, ...]) -> list[_Run]:
        """The row runs of these adapters, which is where a layer with this stack has work to do."""
        if members not in self._runs:
            self._runs[members] = self._find_runs(members)
        return self._runs[members]

    def _find_runs(self, members: tuple[int, ...]) -> list[_Run]:
        runs: list[_Run] = []
        for place, adapter in enumerate(members):
            for start, rows in self._spans(adapter):
                last = runs[-1] if runs else None
                if last and last.rows == rows and last.start + last.rows * last.count == start and last.first + last.count == place:
                    runs[-1] = last._replace(count=last.count + 1)
                else:
                    runs.append(_Run(start, rows, place, 1))
        return runs

    def _spans(self, adapter: int) -> list[tuple[int, int]]:
        """The adapter's rows as `(start, rows)`, blocks that touch as one."""
        spans: list[tuple[int, int]] = []
        start = 0
        for adapters, rows in self.blocks:
            if adapter in adapters:
                if spans and sum(spans[-1]) == start:
                    spans[-1] = spans[-1][0], spans[-1][1] + rows
                else:
                    spans.append((start, rows))
            start += rows
        return spans


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


class _Stack(NamedTuple):
    """Factors side by side, padded to the largest rank: `down [n, r, C * kernel]`, `up [n, O, r]`."""

    members: tuple[int, ...]
    down: torch.Tensor
    up: torch.Tensor


class _LowRankLayer:
    """The low-rank deltas of all adapters that touch one layer, and the stacks made of them on its device.

    `stacks` maps adapters to the stack of those of them that touch the layer; `placed` is where the layer computes, and
    in what, None before its first call.
    """

    def __init__(self, layer: nn.Module, deltas: Mapping[int, LowRank]):
        self.layer, self.deltas = layer, dict(sorted(deltas.items()))
        self.stacks: dict[tuple[int, ...], _Stack] = {}
        self.placed: tuple[torch.device, torch.dtype] | None = None
        kernel = _kernel(layer)
        self.pointwise = isinstance(layer, nn.Conv2d) and set(kernel + layer.stride) == {1} and set(layer.padding) == {0}

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
            precise = torch.promote_types(delta.down.dtype, torch.float32)
            missing = rank - delta.down.shape[0]
            downs.append(F.pad(delta.down.flatten(1), (0, 0, 0, missing)).to(dtype))
            ups.append(F.pad(delta.up.to(precise) * delta.scale, (0, missing)).to(dtype))
        return _Stack(tuple(deltas), torch.stack(downs).to(device), torch.stack(ups).to(device))

    def add(self, x: torch.Tensor, output: torch.Tensor, layout: Layout, scale: int, adapters: tuple[int, ...]) -> None:
        if not any(adapter in self.deltas for adapter in layout.adapters):
            return
        stack = self.stack(adapters, output.device, output.dtype)
        for run in layout.runs(stack.members):
            rows = slice(run.start * scale, (run.start + run.rows * run.count) * scale)
            of_run = slice(run.first, run.first + run.count)
            inputs, down, up = x[rows].to(output.dtype), stack.down[of_run], stack.up[of_run]
            if _is_linear(self.layer):
                self._add_linear(inputs, output[rows], down, up)
            else:
                self._add_convolution(inputs, output[rows], down, up)

    def _add_linear(self, x: torch.Tensor, output: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        count = down.shape[0]
        hidden = torch.bmm(x.reshape(count, -1, x.shape[-1]), down.transpose(1, 2))
        _multiply_into(output, (count, -1, output.shape[-1]), hidden, up.transpose(1, 2))

    def _add_convolution(self, x: torch.Tensor, output: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> None:
        count, rank = down.shape[:2]
        images = x.shape[0] // count
        if self.pointwise:
            hidden = torch.bmm(down.repeat_interleave(images, 0), x.reshape(*x.shape[:2], -1))
        else:
            side_by_side = x.unflatten(0, (count, images)).transpose(0, 1).flatten(1, 2)
            kernels = down.reshape(count * rank, x.shape[1], *_kernel(self.layer))
            hidden = _convolve(self.layer, side_by_side, kernels, groups=count)
            hidden = hidden.unflatten(1, (count, rank)).transpose(0, 1).flatten(0, 1).flatten(2)
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
        self.low_rank = _LowRankLayer(layer, low_rank) if low_rank else None
        self.dense = dict(dense)

    def add(self, x: torch.Tensor, output: torch.Tensor, layout: Layout, adapters: tuple[int, ...]) -> None:
        scale, rest = divmod(output.shape[0], layout.rows)
        if rest or x.shape[0] != output.shape[0]:
            raise RuntimeError(f"a layer got {output.shape[0]} rows, which are not a multiple of the batch's {layout.rows}")
        if self.low_rank:
            self.low_rank.add(x, output, layout, scale, adapters)
        for adapter, delta in self.dense.items():
            for run in layout.runs((adapter,)):
                rows = slice(run.start * scale, (run.start + run.rows * run.count) * scale)
                delta.add(x[rows], output[rows])


def _uncompiled() -> AbstractContextManager:
    """Within it models run as they are written: what torch.compile has made of them knows nothing of later hooks. Needs torch 2.6."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


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
        self.streams = len(adapters) > RESIDENT
        self._everyone = self._stacked = tuple(range(len(adapters)))
        self._beside: torch.cuda.Stream | None = None
        self._handles: list = []
        self._met = False
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
        self._met = False
        with _uncompiled():
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
                self._met = True
                rows.add(inputs[0], output, self.layout, self._stacked)

        return add

    @contextmanager
    def rows(self, layout: Layout) -> Iterator[None]:
        """For the time of the block, batches are divided among the models as `layout` says.

        Raises RuntimeError where the model has not run any of the layers that adapters touch.
        """
        self.layout = layout if layout.adapters else None
        if self.layout:
            self._stacked = layout.adapters if self.streams else self._everyone
            self._keep(self._stacked)
        try:
            yield
            if self.layout and self._layers and not self._met:
                raise RuntimeError("the model computes without its layers, so that no LoRA acts on it. Switch off what compiles it, or LoRAtorio")
        finally:
            self.layout = None

    # Factors of many adapters, on the device for a call only

    def prefetch(self, adapters: Sequence[int]) -> None:
        """Brings the factors of a coming call of a bank that streams to a CUDA device, while that computes the call before."""
        low_rank = [rows.low_rank for _, rows in self._layers if rows.low_rank and rows.low_rank.placed]
        if not (low_rank and low_rank[0].placed[0].type == "cuda"):
            return
        self._beside = self._beside or torch.cuda.Stream(low_rank[0].placed[0])
        with torch.cuda.stream(self._beside):
            for layer in low_rank:
                if any(adapter in layer.deltas for adapter in adapters):
                    layer.stack(tuple(sorted(adapters)), *layer.placed)

    def _keep(self, adapters: tuple[int, ...]) -> None:
        """Gives the memory of stacks back that this call has no use for, and waits for those on their way."""
        if not self.streams:
            return
        for low_rank in (rows.low_rank for _, rows in self._layers if rows.low_rank):
            low_rank.stacks = {key: stack for key, stack in low_rank.stacks.items() if key == adapters}
            for stack in low_rank.stacks.values() if self._beside else ():
                stack.down.record_stream(torch.cuda.current_stream())
                stack.up.record_stream(torch.cuda.current_stream())
        if self._beside:
            torch.cuda.current_stream().wait_stream(self._beside)
