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
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from lib_loratorio.deltas.dense import Dense, DenseDelta
from lib_loratorio.deltas.factors import NONE, Factors
from lib_loratorio.deltas.low_rank import LowRank, LowRankLayer
from lib_loratorio.deltas.memory import MemoryBudget, is_out_of_memory
from lib_loratorio.deltas.row_layout import Layout

RESIDENT = 8
"""Adapters whose factors may all stay on the model's device; of more, only those of two calls are there at a time."""


class RowsError(RuntimeError):
    """A layer got other rows than the batch that several models share: something else has made a batch of its own."""


class _LayerRows:
    """Everything that adapters add to one layer's output."""

    def __init__(self, layer: nn.Module, low_rank: Mapping[int, LowRank], dense: Mapping[int, DenseDelta]):
        self.low_rank = LowRankLayer(layer, low_rank) if low_rank else None
        self.dense = dict(dense)
        self.adapters = {*low_rank, *dense}

    def add(
        self,
        x: torch.Tensor,
        output: torch.Tensor,
        layout: Layout,
        groups: Sequence[tuple[int, ...]],
        in_place: bool,
        factors: Factors = NONE,
    ) -> None:
        """Adds the low-rank deltas group by group: of several, each group's factors are on the device only meanwhile.

        Raises RowsError where it cannot be told whose rows these are.
        """
        rows, scale = output.shape[0], 1
        if len(layout.blocks) == 1:
            layout = layout.of_rows(rows)
        elif rows != layout.rows:
            scale, rest = divmod(rows, layout.rows)
            if rest or not in_place:
                raise RowsError(f"a layer got {rows} rows of a batch of {layout.rows}")
        for group in groups if self.low_rank else ():
            self.low_rank.add(x, output, layout, scale, group, factors)
            if len(groups) > 1:
                self.low_rank.stacks.pop(group, None)
        for adapter, delta in self.dense.items():
            for run in layout.runs((adapter,)):
                rows = slice(run.start * scale, (run.start + run.rows * run.count) * scale)
                delta.add(x[rows], output[rows], factors[adapter])


class SideStream:
    """Work on a CUDA device beside what it computes."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def work(self) -> AbstractContextManager:
        """What is started within it runs beside the computation."""
        return torch.cuda.stream(self.stream)

    def join(self, tensors: Sequence[torch.Tensor]) -> None:
        """Has the computation wait for the work so far, and keeps these tensors' memory until it has used them."""
        computation = torch.cuda.current_stream(self.stream.device)
        for tensor in tensors:
            tensor.record_stream(computation)
        computation.wait_stream(self.stream)


def side_stream(device: torch.device) -> SideStream | None:
    """None for devices other than CUDA's."""
    return SideStream(device) if device.type == "cuda" else None


class _Uncompiled:
    """Within it models run as they are written, as compiled ones know nothing of later hooks. Needs torch 2.6.

    The compiler's stance is the whole process's: of blocks in several threads the last to end puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._blocks, self._stance = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._stance is None and "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *_) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks and self._stance is not None:
                stance, self._stance = self._stance, None
                stance.__exit__(None, None, None)


_uncompiled = _Uncompiled()


def _alone(error: RuntimeError) -> RuntimeError:
    """The error without its traceback and causes, which would keep alive all that was at hand where it was raised."""
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


def _chunks(adapters: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    return (adapters[first : first + size] for first in range(0, len(adapters), size))


class AdapterBank:
    """The deltas of several adapters, for the layers of one model.

    Args:
        layers: the model's layers by name.
        adapters: per adapter its deltas by layer name.
        budget: bytes that cached dense deltas may take.

    After construction `failures[i]` holds adapter i's layers whose delta the host's rule could not compute, with the
    error; they are left out, as the host itself leaves them out, but for a weight or bias that fits where the host goes
    on with it. `counts[i]` is the number of its other layers;
    `damaged[i]` are the names of those with values that are no finite numbers, and `effective[i]` tells whether any of
    them changes anything.

    A batch of one model's rows alone may reach a layer as any number of rows. One that several models share must reach
    it as it is, or with each row repeated in its place where `rows_repeat_in_place` is set.
    """

    def __init__(self, layers: Mapping[str, nn.Module], adapters: Sequence[Mapping[str, LowRank | Dense]], budget: int):
        self.layers = layers
        self.layout: Layout | None = None
        self.factors = NONE
        self.rows_repeat_in_place = False
        self.failures: list[dict[str, RuntimeError]] = [{} for _ in adapters]
        self.counts = [0] * len(adapters)
        self.damaged: list[list[str]] = [[] for _ in adapters]
        self.effective = [False] * len(adapters)
        self.factors_wait = len(adapters) > RESIDENT
        self._everyone = tuple(range(len(adapters)))
        self._groups = (self._everyone,)
        self._beside: SideStream | None = None
        self._is_full = False
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
                    computed = self._computed(layers[name], name, number, delta, shared_budget)
                    if computed:
                        dense[number] = computed
            for number, delta in {**low_rank, **dense}.items():
                self.counts[number] += name not in self.failures[number]
                self.effective[number] |= delta.has_effect
                if not delta.is_finite:
                    self.damaged[number].append(name)
            if low_rank or dense:
                self._layers.append((layers[name], _LayerRows(layers[name], low_rank, dense)))
        self._low_rank = [rows.low_rank for _, rows in self._layers if rows.low_rank]

    def _computed(
        self, layer: nn.Module, name: str, number: int, delta: Dense, budget: MemoryBudget
    ) -> DenseDelta | None:
        dense = DenseDelta(layer, delta, budget)
        try:
            dense.compute_once()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.failures[number][name] = _alone(error)
            return None
        if dense.left_out:
            self.failures[number][name] = _alone(dense.left_out)
        return dense

    def adds_up(self, adapters: Sequence[int]) -> bool:
        """Whether what these change together is the sum of what each changes alone, by any host's rule."""
        return not any(rows.dense and len(rows.adapters.intersection(adapters)) > 1 for _, rows in self._layers)

    @contextmanager
    def attached(self) -> Iterator[AdapterBank]:
        """Hooks on the touched layers for the time of the block; they act only within `rows`.

        They are each layer's first, so that others' hooks find there what the layer gives with its adapters.
        """
        self._met = False
        with _uncompiled:
            try:
                for layer, rows in self._layers:
                    self._handles.append(layer.register_forward_hook(self._hook(rows), prepend=True))
                yield self
            finally:
                while self._handles:
                    self._handles.pop().remove()

    def _hook(self, rows: _LayerRows):
        def add(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if self.layout is not None:
                self._met = True
                rows.add(inputs[0], output, self.layout, self._groups, self.rows_repeat_in_place, self.factors)

        return add

    @contextmanager
    def rows(self, layout: Layout, staying: Collection[int] = (), factors: Factors = NONE) -> Iterator[None]:
        """For the time of the block, batches are divided among the models as `layout` says, and strengths are times
        their `factors`.

        Where factors wait in host memory, those of the layout's adapters and of the `staying` ones are on the device
        meanwhile; where one model has more than may stay there, those of a layer at a time.

        Raises RuntimeError where the model has not run any of the layers that adapters touch.
        """
        self.layout, self.factors = layout if layout.adapters else None, factors
        if self.layout:
            stacked = tuple(sorted({*layout.adapters, *staying})) if self.factors_wait else self._everyone
            many = max(len(block.adapters) for block in layout.blocks) > RESIDENT
            self._groups = tuple(_chunks(stacked, RESIDENT)) if self.factors_wait and many else (stacked,)
            self._keep(stacked)
        try:
            yield
            if self.layout and self._layers and not self._met:
                raise RuntimeError(
                    "the model computes without its layers, so that no LoRA acts on it. Switch off what compiles "
                    "it, or LoRAtorio"
                )
        finally:
            self.layout, self.factors = None, NONE

    # Factors of many adapters, on the device for a call only

    def prefetch(self, adapters: Collection[int]) -> None:
        """Brings a coming call's factors to the device while that computes the call before, where it can.

        Where memory runs out meanwhile, calls bring their own from then on.
        """
        low_rank = [layer for layer in self._low_rank if layer.placed]
        self._beside = self._beside or (side_stream(low_rank[0].placed[0]) if low_rank else None)
        if not self._beside or self._is_full:
            return
        try:
            with self._beside.work():
                for layer in low_rank:
                    if any(adapter in layer.deltas for adapter in adapters):
                        layer.stack(tuple(sorted(adapters)), *layer.placed)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._is_full = True

    def _keep(self, adapters: tuple[int, ...]) -> None:
        """Gives the memory of stacks back that this call has no use for, and waits for those on their way."""
        if not self.factors_wait:
            return
        for layer in self._low_rank:
            layer.stacks = {key: stack for key, stack in layer.stacks.items() if key == adapters}
        if self._beside:
            self._beside.join(
                [
                    tensor
                    for layer in self._low_rank
                    for stack in layer.stacks.values()
                    for tensor in (stack.down, stack.up)
                ]
            )
