"""LoRA files read by diffusers into a pipeline for a while, and what they change in the engine's terms."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.utils.peft_utils import (
    delete_adapter_layers,
    recurse_remove_peft_layers,
    set_adapter_layers,
    set_weights_and_activate_adapters,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.loras.adapter import Adapter, merged_below
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts

PREFIX = "loratorio_"
"""The adapters' names in diffusers: file names can hold dots, which peft forbids, and can repeat."""

FOREIGN = {
    "dora_scale": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "b1.weight": "GLoRA",
    "on_input": "IA3",
}
"""Parts of tensor names that tell kinds which diffusers cannot read, or reads as another kind."""

LAYER_ENDS = (
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
)


class Lora(NamedTuple):
    """A LoRA file in kohya's or diffusers' layout, and its strength; of strength 0 it is left out.

    `tag` says when and as what it takes part; the method merge has it in the whole sampling. `pooled` LoRAs may be
    left out of steps in which they would matter little, as the settings say, and are never merged; of them, files that
    do not suit the model are left out and named.
    """

    path: str | os.PathLike
    strength: float = 1.0
    tag: LoraTag = LOCAL
    pooled: bool = False


def text_encoders(pipe) -> list[torch.nn.Module]:
    found = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
    return [model for model in found if model is not None]


def activate(model: torch.nn.Module, adapters: Sequence[Adapter]) -> None:
    """What `pipe.set_adapters` does, for one model; without adapters, the model is the base."""
    if adapters:
        set_weights_and_activate_adapters(
            model, [adapter.source for adapter in adapters], [adapter.denoiser_strength for adapter in adapters]
        )
    set_adapter_layers(model, enabled=bool(adapters))


@contextmanager
def loaded(pipe, loras: Sequence[Lora]) -> Iterator[list[Adapter]]:
    """For the time of the block the LoRAs are in the pipeline, at their strengths and all of them active.

    LoRAs that the pipeline had are inactive meanwhile. Afterwards it is what it was. Raises LoratorioError.
    """
    models = [pipe.unet, *text_encoders(pipe)]
    _check_loras_in(models)
    wanted = [_checked(lora) for lora in loras]
    wanted = [lora for lora in wanted if acts(lora.strength)]
    if not wanted:
        raise LoratorioError("there is no LoRA of a strength other than 0.")
    before = [_LoraState(model) for model in models]
    try:
        adapters = _loaded(pipe, wanted)
        for model in models:
            activate(model, adapters)
        yield adapters
    finally:
        for state in before:
            state.restore()


def _tuner_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _check_loras_in(models: Sequence[torch.nn.Module]) -> None:
    for layer in (layer for model in models for layer in _tuner_layers(model)):
        if any(name.startswith(PREFIX) for name in getattr(layer, "lora_A", ())):
            raise LoratorioError("this pipeline is being composed already.")
        if layer.merged:
            raise LoratorioError("the pipeline's LoRAs are fused into its weights; call pipe.unfuse_lora() first.")


class _LoraState:
    """What diffusers and peft keep in one model about LoRAs, to be put back."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.attributes = {
            name: model.__dict__[name] for name in ("peft_config", "_hf_peft_config_loaded") if name in model.__dict__
        }
        if "peft_config" in self.attributes:
            self.attributes["peft_config"] = dict(self.attributes["peft_config"])
        self.layers = [
            (layer, list(layer.active_adapters), layer.disable_adapters, dict(layer.scaling))
            for layer in _tuner_layers(model)
        ]
        self.gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        if self.layers:
            ours = {
                name
                for layer in _tuner_layers(self.model)
                for name in getattr(layer, "lora_A", ())
                if name.startswith(PREFIX)
            }
            for name in ours:
                delete_adapter_layers(self.model, name)
            for layer, active, disabled, scaling in self.layers:
                layer.scaling = scaling
                layer.set_adapter(active)
                layer.enable_adapters(not disabled)
        else:
            recurse_remove_peft_layers(self.model)
        for name in ("peft_config", "_hf_peft_config_loaded"):
            self.model.__dict__.pop(name, None)
        self.model.__dict__.update(self.attributes)
        for parameter, required in self.gradients:
            parameter.requires_grad_(required)


def _checked(lora: Lora) -> Lora:
    path, strength, tag, pooled = Lora(*lora)
    if not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise LoratorioError(f"the strength of {path} is {strength!r}; it must be a number.")
    if not Path(path).is_file():
        raise LoratorioError(f"there is no LoRA file {path}.")
    return Lora(Path(path), float(strength), tag, pooled)


def _loaded(pipe, loras: Sequence[Lora]) -> list[Adapter]:
    """Those of the pool that cannot be loaded are left out, and named: a folder may hold LoRAs for several models."""
    adapters, refused = [], []
    for number, lora in enumerate(loras):
        name = f"{PREFIX}{number}"
        try:
            adapters.append(_load(pipe, name, lora))
        except LoratorioError:
            if not lora.pooled:
                raise
            refused.append(lora.path.stem)
            for model in (pipe.unet, *text_encoders(pipe)):
                delete_adapter_layers(model, name)
    if refused:
        message = (
            f"{len(refused)} LoRAs of the pool cannot be read, or match nothing in this model: {', '.join(refused)}"
        )
        if not adapters:
            raise LoratorioError(f"{message}; there is no other LoRA.")
        logging.warning(told(f"{message}; left out."))
    return adapters


def _load(pipe, name: str, lora: Lora) -> Adapter:
    in_file = _layers_in(lora.path)
    mismatch = f"the LoRA {lora.path} matches no layer of this model: it is for another kind of model"
    try:
        pipe.load_lora_weights(
            str(lora.path.resolve().parent), weight_name=lora.path.name, adapter_name=name, local_files_only=True
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LoratorioError(f"{mismatch}, or not a LoRA that diffusers can read ({reason[:200]}).") from error
    unet, *texts = (
        [layer for layer in _tuner_layers(model) if name in layer.lora_A] for model in (pipe.unet, *text_encoders(pipe))
    )
    found = len(unet) + sum(map(len, texts))
    if not found:
        raise LoratorioError(f"{mismatch}.")
    if found < in_file:
        logging.warning(
            told(
                f"{in_file - found} of {in_file} layers of the LoRA {lora.path} match nothing in this "
                "model and are left out."
            )
        )
    return Adapter(
        name=lora.path.stem,
        path=str(lora.path),
        text_strength=lora.strength,
        denoiser_strength=lora.strength,
        changes_text=any(texts),
        changes_denoiser=bool(unet),
        source=name,
        tag=lora.tag,
        pooled=lora.pooled,
    )


def _layers_in(path: Path) -> int:
    """How many layers a file has factors for. Raises LoratorioError for kinds that diffusers cannot read."""
    if path.suffix.lower() != ".safetensors":
        return 0
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise LoratorioError(f"{path} cannot be read as a safetensors file ({error}).") from error
    for part, kind in FOREIGN.items():
        if any(part in key for key in keys):
            raise LoratorioError(f"{path} is a {kind} file, which diffusers cannot read; use a plain LoRA.")
    return sum(key.endswith(LAYER_ENDS) for key in keys)


# Deltas


def bank_of(unet: torch.nn.Module, adapters: Sequence[Adapter], budget: int) -> AdapterBank:
    """The adapters' deltas of the UNet, at the strengths that are set in its layers; `budget` in bytes."""
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    deltas = []
    for adapter, below in zip(adapters, merged_below(adapters)):
        names = [other.source for other in below]
        deltas.append(
            {
                name: _delta(layer, adapter.source, names)
                for name, layer in layers.items()
                if adapter.source in layer.lora_A
            }
        )
    bank = AdapterBank({name: layer.get_base_layer() for name, layer in layers.items()}, deltas, budget)
    for adapter, failures in zip(adapters, bank.failures):
        if failures:
            layer, reason = next(iter(failures.items()))
            raise LoratorioError(
                f"{len(failures)} layers of the LoRA {adapter.name} cannot be applied, such as {layer}: {reason}"
            )
    return bank


def _delta(layer: LoraLayer, name: str, below: Sequence[str]) -> LowRank | Dense:
    """`below` are the adapters on top of which this one is merged."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    plain = (
        name not in getattr(layer, "lora_variant", {})
        and up.bias is None
        and not getattr(layer, "fan_in_fan_out", False)
    )
    if plain:
        low_rank = LowRank(down.weight.detach(), up.weight.detach().flatten(1), layer.scaling[name])
        if fits_low_rank(layer.get_base_layer(), low_rank):
            return low_rank
    return Dense(lambda: _dense(layer, name, below))


@torch.no_grad()
def _dense(layer: LoraLayer, name: str, below: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What peft's own merge changes."""
    base = layer.get_base_layer().weight.detach()
    for other in below:
        base = _merged(layer, other, base) if other in layer.lora_A else base
    bias = layer.lora_B[name].bias
    return _merged(layer, name, base) - base, None if bias is None else bias.detach() * layer.scaling[name]


def _merged(layer: LoraLayer, name: str, weight: torch.Tensor) -> torch.Tensor:
    """DoRA and other variants know only the changed weight."""
    variant = getattr(layer, "lora_variant", {}).get(name)
    return weight + layer.get_delta_weight(name) if variant is None else variant.merge_safe(layer, name, weight.clone())
