"""What the LoRAs in a pipeline change in its denoiser, in the engine's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.deltas.precision import in_floats
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.offloading import weights_at_hand
from lib_loratorio.hosts.diffusers.other_kinds import changed
from lib_loratorio.hosts.diffusers.resting import awake, low_rank_of
from lib_loratorio.loras.adapter import Adapter, merged_below


def bank_of(denoiser: torch.nn.Module, component: str, adapters: Sequence[Adapter], budget: int) -> AdapterBank:
    """The adapters' deltas of the denoiser, at the strengths that are set in its layers; `budget` in bytes.

    `component` is the denoiser's name in the pipeline. Raises LoratorioError.
    """
    lora_layers = {name: module for name, module in denoiser.named_modules() if isinstance(module, LoraLayer)}
    plain = {name: layer.get_base_layer() for name, layer in lora_layers.items()}
    for adapter in adapters:
        for name in adapter.source.layers_of(component):
            plain.setdefault(name, denoiser.get_submodule(name))
    parts = {name: _Layer(name, plain[name], lora_layers.get(name), component) for name in plain}
    deltas = []
    for adapter, below in zip(adapters, merged_below(adapters)):
        deltas.append({name: part.delta(adapter, below) for name, part in parts.items() if part.is_changed(adapter)})
    bank = AdapterBank(plain, deltas, budget)
    for adapter, failures, damaged in zip(adapters, bank.failures, bank.damaged):
        if damaged:
            raise LoratorioError(
                f"{len(damaged)} layers of the LoRA {adapter.name} become values that are no finite numbers, such as "
                f"{damaged[0]}: it cannot be used with this model."
            )
        if failures:
            layer, reason = next(iter(failures.items()))
            raise LoratorioError(
                f"{len(failures)} layers of the LoRA {adapter.name} cannot be applied, such as {layer}: {reason}"
            )
    return bank


class _Layer:
    """One layer of the denoiser, and peft's around it, if there is one."""

    def __init__(self, name: str, layer: torch.nn.Module, lora: LoraLayer | None, component: str):
        self.name, self.layer, self.lora, self.component = name, layer, lora, component

    def is_changed(self, adapter: Adapter) -> bool:
        return self._in_lora(adapter) or self.name in adapter.source.layers_of(self.component)

    def _in_lora(self, adapter: Adapter) -> bool:
        return self.lora is not None and adapter.source.name in self.lora.lora_A

    def delta(self, adapter: Adapter, below: Sequence[Adapter]) -> LowRank | Dense:
        """`below` are the adapters on top of which this one is merged."""
        name = adapter.source.name
        if self._in_lora(adapter):
            low_rank = low_rank_of(self.lora, name)
            if low_rank:
                return low_rank
        loras = [one.source.name for one in (adapter, *below) if self._in_lora(one)]
        scaling = {one: self.lora.scaling[one] for one in loras}  # merges in the meantime may set others

        def at(factor: float) -> tuple[torch.Tensor, torch.Tensor | None]:
            own = {name: factor * scaling[name]} if name in scaling else {}
            wrapped = self.layer if self.lora is None else self.lora
            with self._scaled({**scaling, **own}), weights_at_hand(wrapped), awake(self.lora, loras):
                return self._dense(adapter.times(factor), below)

        return Dense(lambda: at(1.0), None if self._is_proportional(adapter) else at)

    def _is_proportional(self, adapter: Adapter) -> bool:
        """Whether the change is in proportion to the strength: of DoRA as peft has it and of BOFT it is not."""
        tensors, _ = adapter.source.layers_of(self.component).get(self.name, ({}, 1.0))
        is_variant = self._in_lora(adapter) and adapter.source.name in getattr(self.lora, "lora_variant", {})
        return not is_variant and "oft_blocks" not in tensors

    @contextmanager
    def _scaled(self, scaling: Mapping[str, float]) -> Iterator[None]:
        """These scales of peft's for the time of the block."""
        if not scaling:
            yield
            return
        before = dict(self.lora.scaling)
        self.lora.scaling.update(scaling)
        try:
            yield
        finally:
            self.lora.scaling.update(before)

    @torch.no_grad()
    def _dense(self, adapter: Adapter, below: Sequence[Adapter]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the merge changes."""
        if self.name in adapter.source.layers_of(self.component):
            # Plain LoRAs are added beside the weight, which such a kind reads without them.
            below = [other for other in below if not self._in_lora(other)]
        bias = getattr(self.layer, "bias", None)
        before = in_floats(self.layer.weight.detach()), bias if bias is None else bias.detach()
        for other in below:
            before = self._merged(other, *before)
        weight, bias = self._merged(adapter, *before)
        same_bias = bias is before[1]
        if same_bias:
            return weight - before[0], None
        return weight - before[0], bias if before[1] is None else bias - before[1]

    def _merged(
        self, adapter: Adapter, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with an adapter more."""
        source = adapter.source
        if self.name in source.layers_of(self.component):
            tensors, factor = source.layers_of(self.component)[self.name]
            return changed(tensors, adapter.denoiser_strength * factor, weight, bias)
        if not self._in_lora(adapter):
            return weight, bias
        # DoRA and other variants know only the changed weight.
        variant = getattr(self.lora, "lora_variant", {}).get(source.name)
        up_bias = self.lora.lora_B[source.name].bias
        if up_bias is not None:
            added = up_bias.detach() * self.lora.scaling[source.name]
            bias = added if bias is None else bias + added
        if variant is None:
            return weight + self.lora.get_delta_weight(source.name), bias
        return variant.merge_safe(self.lora, source.name, weight.clone()), bias
