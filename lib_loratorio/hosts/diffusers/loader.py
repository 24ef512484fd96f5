"""LoRA files read by diffusers into a pipeline for a while, and what they change in the engine's terms."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank
from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.diffusers.blocks import weighted
from lib_loratorio.hosts.diffusers.files import LoraFileError, main_file, read
from lib_loratorio.hosts.diffusers.fitting import ModelLayers, fitted
from lib_loratorio.hosts.diffusers.layouts import embeddings, layers
from lib_loratorio.loras.adapter import Adapter, merged_below
from lib_loratorio.loras.argument import name_of
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts
from lib_loratorio.loras.trigger_words import joined

PREFIX = "loratorio_"
"""The adapters' names in diffusers: file names can hold dots, which peft forbids, and can repeat."""


class Lora(NamedTuple):
    """A LoRA file or folder, and its strength; of strength 0 it is left out.

    `tag` says when and as what it takes part; the method merge has it in the whole sampling. `pooled` LoRAs may be
    left out of steps in which they would matter little, as the settings say, and are never merged; of them, files that
    do not suit the model are left out and named. `prompt` are words that it alone reads, behind the prompt.
    """

    path: str | os.PathLike
    strength: float = 1.0
    tag: LoraTag = LOCAL
    pooled: bool = False
    prompt: str = ""


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
    path, strength, tag, pooled, words = Lora(*lora)
    words = joined(tag.words, words)
    if words and tag.is_global and not tag.has_place:
        raise LoratorioError(f"the LoRA {path} is global, and has no prompt of its own; write it into the prompt.")
    if not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise LoratorioError(f"the strength of {path} is {strength!r}; it must be a number.")
    if tag.elements:
        raise LoratorioError(f"the LoRA {path} has lbwe={tag.elements}; of block weights only lbw is known.")
    if not Path(path).exists():
        raise LoratorioError(f"there is no LoRA file {path}.")
    return Lora(Path(path), float(strength), replace(tag, words=words), pooled)


def _loaded(pipe, loras: Sequence[Lora]) -> list[Adapter]:
    """Those of the pool that cannot be used are left out, and named: a folder may hold LoRAs for several models.

    So are those without effect, whoever has asked for them: they would take a share of the picture from the others.
    """
    adapters, refused, idle, notes = [], [], [], []
    for number, lora in enumerate(loras):
        name = f"{PREFIX}{number}"
        try:
            adapter = _load(pipe, name, lora, notes)
        except LoraFileError as error:
            if not lora.pooled:
                raise
            refused.append(f"{name_of(lora.path)} ({error.reason})")
            for model in (pipe.unet, *text_encoders(pipe)):
                delete_adapter_layers(model, name)
            continue
        if adapter is None:
            idle.append(name_of(lora.path))
        else:
            adapters.append(adapter)
    left_out = []
    if refused:
        left_out.append(f"{len(refused)} LoRAs of the pool cannot be used: {'; '.join(refused)}")
    if idle:
        left_out.append(
            f"{len(idle)} LoRAs have no effect, as their factors, alphas or block weights are 0: {', '.join(idle)}"
        )
    if not adapters:
        raise LoratorioError(f"{'; '.join(left_out)}; there is no other LoRA.")
    for note in (*(f"{message}; left out." for message in left_out), *notes):
        logging.warning(told(note))
    return adapters


def _load(pipe, name: str, lora: Lora, notes: list[str]) -> Adapter | None:
    """None for a LoRA that has no effect on this model; to `notes` goes what is to be told. Raises LoraFileError."""
    file = read(lora.path)
    fit = fitted(pipe, lora.path, layers(lora.path, file))
    acting = weighted(fit.acting, lora.tag.blocks, name_of(lora.path))
    if not acting:
        return None
    _put(pipe, name, lora.path, acting)
    if fit.missing:
        of_all = fit.missing + sum(map(len, fit.layers.values()))
        notes.append(
            f"{fit.missing} of {of_all} layers of the LoRA {lora.path} match nothing in this model and are left out."
        )
    if bundled := embeddings(file):
        notes.append(f"the embeddings that the LoRA {lora.path} brings with it are not used: {', '.join(bundled)}.")
    return Adapter(
        name=name_of(lora.path),
        path=str(main_file(lora.path)),
        text_strength=lora.strength,
        denoiser_strength=lora.strength,
        changes_text=acting.keys() != {"unet"},
        changes_denoiser="unet" in acting,
        source=name,
        tag=lora.tag,
        pooled=lora.pooled,
    )


def _put(pipe, name: str, path: Path, of_models: ModelLayers) -> None:
    """Has diffusers load these layers as the adapter of this name. Raises LoraFileError."""
    state = {}
    for component, of_model in of_models.items():
        # Of text encoders diffusers does not know every layer by PEFT's names.
        down, up = ("lora_A", "lora_B") if component == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        for layer, factors in of_model.items():
            layer = f"{component}.{layer}"
            state |= {f"{layer}.{down}.weight": factors.down, f"{layer}.{up}.weight": factors.up}
            if factors.bias is not None:
                state[f"{layer}.{up}.bias"] = factors.bias
            if factors.magnitude is not None:
                state[f"{layer}.lora_magnitude_vector"] = factors.magnitude
    try:
        pipe.load_lora_weights(state, adapter_name=name)
        for component, of_model in of_models.items():
            for layer, factors in of_model.items():
                # diffusers reads the alphas of files where they differ between layers as if they did not.
                tuned = getattr(pipe, component).get_submodule(layer)
                tuned.lora_alpha[name] = factors.scale * tuned.r[name]
    except Exception as error:  # whatever diffusers, PEFT and transformers come across in a file that is not ours
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoraFileError(path, f"cannot be loaded by diffusers ({reason[:200]})") from error


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
    scaling = {one: layer.scaling[one] for one in (name, *below) if one in layer.scaling}

    def at(factor: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        with _scaled(layer, {**scaling, name: factor * scaling[name]}):
            return _dense(layer, name, below)

    is_variant = name in getattr(layer, "lora_variant", {})  # whose change is not in proportion to the strength: DoRA
    return Dense(lambda: at(1.0), at if is_variant else None)


@contextmanager
def _scaled(layer: LoraLayer, scaling: Mapping[str, float]) -> Iterator[None]:
    """The adapters' scales for the time of the block; merges in the meantime may have set others."""
    before = dict(layer.scaling)
    layer.scaling.update(scaling)
    try:
        yield
    finally:
        layer.scaling.update(before)


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
