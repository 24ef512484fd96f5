"""The factors of a pool's LoRAs, which wait in host memory: peft's layers hold them only while they are active."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from lib_loratorio.beside import Beside
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank

_VALUES: Beside[torch.Tensor] = Beside()
"""Of a parameter of peft's, its values in host memory; in the model it is empty meanwhile, so that nothing that moves
the model to another place moves them.
"""


def low_rank_of(layer: LoraLayer, name: str) -> LowRank | None:
    """An adapter's factors in one of peft's layers; None where the layer is changed in another way."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    if name in getattr(layer, "lora_variant", {}) or up.bias is not None or getattr(layer, "fan_in_fan_out", False):
        return None
    low_rank = LowRank(_values(down.weight), _values(up.weight).flatten(1), layer.scaling[name])
    return low_rank if fits_low_rank(layer.get_base_layer(), low_rank) else None


def rest(model: nn.Module, name: str) -> None:
    """From now on this adapter's factors wait, as far as it has any."""
    for layer in _layers(model):
        if name in layer.lora_A and low_rank_of(layer, name):
            for weight in _weights(layer, name):
                _VALUES.set(weight, weight.detach().cpu())
            _empty(layer, name)


def wake(model: nn.Module, names: Collection[str]) -> None:
    """Of the adapters that wait these are in the model, and no others."""
    for layer in _layers(model):
        for name in layer.lora_A:
            (_fill if name in names else _empty)(layer, name)


@contextmanager
def awake(layer: LoraLayer | None, names: Collection[str]) -> Iterator[None]:
    """For the time of the block, one of peft's layers has the factors of these adapters."""
    for name in names:
        _fill(layer, name)
    try:
        yield
    finally:
        for name in names:
            _empty(layer, name)


def _layers(model: nn.Module) -> list[LoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]


def _weights(layer: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _fill(layer: LoraLayer, name: str) -> None:
    for weight in _weights(layer, name):
        if (values := _VALUES.get(weight)) is not None:
            weight.data = values.to(weight.device, weight.dtype)


def _empty(layer: LoraLayer, name: str) -> None:
    """An empty parameter goes with the model to other devices and precisions, which tells them when it is filled."""
    for weight in _weights(layer, name):
        if _VALUES.get(weight) is not None:
            weight.data = weight.data.new_empty(0)


def _values(weight: nn.Parameter) -> torch.Tensor:
    values = _VALUES.get(weight)
    return weight.detach() if values is None else values
