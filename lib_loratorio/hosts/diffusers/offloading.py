"""Sequential offloading: accelerate keeps weights in host memory, and a layer has its own only while it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, remove_hook_from_module
from peft.tuners.lora import LoraLayer
from torch import nn

from lib_loratorio.errors import LoratorioError
from lib_loratorio.loras.adapter import Adapter


def offloading_hook(module: nn.Module) -> AlignDevicesHook | None:
    """What brings a layer's weights for its calls; None where they are at hand."""
    hook = getattr(module, "_hf_hook", None)
    found = (one for one in getattr(hook, "hooks", (hook,)) if isinstance(one, AlignDevicesHook) and one.offload)
    return next(found, None)


def is_sequential(model: nn.Module) -> bool:
    """Whether a model is offloaded as `enable_sequential_cpu_offload` does it, layer by layer to host memory."""
    hooks = [hook for module in model.modules() if (hook := offloading_hook(module))]
    return bool(hooks) and all(
        isinstance(getattr(hook.weights_map, "dataset", None), dict) and not hook.place_submodules for hook in hooks
    )


class SequentialOffloading:
    """That of a pipeline's models, which is taken back while layers are put into them and read; it is nothing where
    there is none.
    """

    def __init__(self, pipe: Any):
        self._pipe = pipe
        self._models: list[tuple[nn.Module, Any, bool]] = []  # with the device that computes, and whether buffers go

    @property
    def is_on(self) -> bool:
        """Whether any model is offloaded so, within the block in which it is paused too."""
        return bool(self._models)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For the time of the block the models have their weights, in host memory."""
        for model in getattr(self._pipe, "components", {}).values():
            if isinstance(model, nn.Module) and is_sequential(model):
                hook = next(filter(None, map(offloading_hook, model.modules())))
                self._models.append((model, hook.execution_device, hook.offload_buffers))
        self._take_back()
        try:
            yield
        finally:
            self._offload()

    @contextmanager
    def resumed(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        """Within a block in which it is paused, it is as it was, for the layers that are there now, those of these
        adapters among them. Raises LoratorioError for adapters whose layers cannot be offloaded.
        """
        self._require_no_dora(adapters)
        self._offload()
        try:
            yield
        finally:
            self._take_back()

    def _require_no_dora(self, adapters: Sequence[Adapter]) -> None:
        """PEFT hands a DoRA layer's weight on as it is between the layer's calls."""
        layers = [layer for model, *_ in self._models for layer in model.modules() if isinstance(layer, LoraLayer)]
        for adapter in adapters:
            if any(adapter.source.name in getattr(layer, "lora_variant", {}) for layer in layers):
                raise LoratorioError(
                    f"the LoRA {adapter.name} is DoRA, which PEFT cannot compute with enable_sequential_cpu_offload; "
                    "use enable_model_cpu_offload or group offloading."
                )

    def _take_back(self) -> None:
        for model, *_ in self._models:
            remove_hook_from_module(model, recurse=True)

    def _offload(self) -> None:
        for model, device, with_buffers in self._models:
            cpu_offload(model, device, offload_buffers=with_buffers)


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """For the time of the block a layer and those in it have their weights, where they compute."""
    hooks = [(part, hook) for part in module.modules() if (hook := offloading_hook(part))]
    for part, hook in hooks:
        hook.pre_forward(part)
    try:
        yield
    finally:
        for part, hook in hooks:
            hook.post_forward(part, None)


def values_of(layer: nn.Module, name: str) -> torch.Tensor | None:
    """The values of a layer's parameter, wherever they are between its calls; None where it has no such parameter."""
    parameter, hook = getattr(layer, name, None), offloading_hook(layer)
    if parameter is None:
        return None
    return parameter.data if hook is None else hook.weights_map[name]


def set_values(layer: nn.Module, name: str, values: torch.Tensor) -> None:
    """Gives a parameter of the layer other values, of the same shape."""
    hook = offloading_hook(layer)
    if hook is None:
        getattr(layer, name).data = values
    else:
        hook.weights_map.dataset[f"{hook.weights_map.prefix}{name}"] = values
