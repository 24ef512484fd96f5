"""LoRA files read by diffusers into a pipeline for a while, and what they change in the engine's terms."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.utils.peft_utils import (
    delete_adapter_layers,
    recurse_remove_peft_layers,
    set_adapter_layers,
    set_weights_and_activate_adapters,
)
from peft.tuners.tuners_utils import BaseTunerLayer

from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.diffusers.arguments import Lora, read_loras
from lib_loratorio.hosts.diffusers.blocks import block_factors, weighted
from lib_loratorio.hosts.diffusers.denoisers import denoiser_name
from lib_loratorio.hosts.diffusers.files import LoraFileError
from lib_loratorio.hosts.diffusers.fitting import ModelLayers, components, fitted, matched
from lib_loratorio.hosts.diffusers.flux import named_by_diffusers
from lib_loratorio.hosts.diffusers.layouts import embeddings, layers
from lib_loratorio.hosts.diffusers.other_kinds import Scaled, acting_on, divided, ends_of, merge
from lib_loratorio.hosts.diffusers.resting import rest, wake
from lib_loratorio.hosts.diffusers.sources import Source, adapters_in, source_of
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.tag import acts

PREFIX = "loratorio_"
"""The adapters' names in diffusers: file names can hold dots, which peft forbids, and can repeat."""

LOADING = threading.RLock()
"""accelerate and transformers, which diffusers and PEFT load with, change classes of torch meanwhile."""


def text_encoders(pipe) -> list[str]:
    """Those that LoRAs can change."""
    return [name for name in components(pipe) if name.startswith("text_encoder")]


@dataclass(frozen=True)
class Loaded:
    """An adapter as a pipeline has it.

    name: in peft's layers. others: by part of the pipeline and name, the layers that peft does not hold.
    """

    name: str
    others: Mapping[str, Mapping[str, Scaled]] = field(default_factory=dict)

    def layers_of(self, component: str) -> Mapping[str, Scaled]:
        return self.others.get(component, {})


def activate(pipe, component: str, adapters: Sequence[Adapter]) -> None:
    """What `pipe.set_adapters` does, for one part of the pipeline; without adapters, it is the base."""
    model = getattr(pipe, component)
    wake(model, [adapter.source.name for adapter in adapters])
    activate_in(model, _in_peft(adapters))
    merge(model, [(adapter.source.layers_of(component), adapter.denoiser_strength) for adapter in adapters])


def activate_in(model: torch.nn.Module, adapters: Sequence[tuple[str, float]]) -> None:
    """What a model's `set_adapters` does with these names and strengths; without any, it is the base."""
    if adapters:
        set_weights_and_activate_adapters(model, *map(list, zip(*adapters)))
    set_adapter_layers(model, enabled=bool(adapters))


def _in_peft(adapters: Sequence[Adapter]) -> list[tuple[str, float]]:
    return [(adapter.source.name, adapter.denoiser_strength) for adapter in adapters]


@contextmanager
def loaded(pipe, loras: Any, pool_waits: bool = True) -> Iterator[list[Adapter]]:
    """For the time of the block the LoRAs are in the pipeline, at their strengths and all of them active.

    Those of the pool are not active, and wait in host memory if `pool_waits`.

    LoRAs that the pipeline had are inactive meanwhile, but for those that are asked for by their names. Afterwards it
    is what it was. Raises LoratorioError.
    """
    parts = components(pipe)
    models = [getattr(pipe, name) for name in parts]
    wanted = [lora for lora in read_loras(loras) if acts(lora.strength)]
    if not wanted:
        raise LoratorioError("there is no LoRA of a strength other than 0.")
    with LOADING:
        _check_loras_in(models)
        before = [LoraState(model) for model in models]
        asked = [(lora, source_of(lora, adapters_in(models))) for lora in wanted]
    _require_once([source.adapter for _, source in asked if source.adapter])
    try:
        with LOADING:
            adapters = _loaded(pipe, asked, pool_waits)
            for part in parts:
                activate_in(getattr(pipe, part), _in_peft(adapters))  # the pool's strengths too are read there
                activate(pipe, part, [adapter for adapter in adapters if not adapter.pooled])
        yield adapters
    finally:
        with LOADING:
            for model in models:
                merge(model, ())
            for state in before:
                state.restore()


def _require_once(names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise LoratorioError(f"the pipeline's LoRA {twice[0]} is asked for twice.")


def _tuner_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _check_loras_in(models: Sequence[torch.nn.Module]) -> None:
    for layer in (layer for model in models for layer in _tuner_layers(model)):
        if any(name.startswith(PREFIX) for name in getattr(layer, "lora_A", ())):
            raise LoratorioError("this pipeline is being composed already.")
        if layer.merged:
            raise LoratorioError("the pipeline's LoRAs are fused into its weights; call pipe.unfuse_lora() first.")


class LoraState:
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
        # By name, as offloading makes other parameters of them.
        self.gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

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
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.gradients[name])


def _loaded(pipe, loras: Sequence[tuple[Lora, Source]], pool_waits: bool) -> list[Adapter]:
    """Those of the pool that cannot be used are left out, and named: a folder may hold LoRAs for several models.

    So are those without effect, whoever has asked for them: they would take a share of the picture from the others.
    """
    adapters, refused, idle, notes = [], [], [], []
    for number, (lora, source) in enumerate(loras):
        name = f"{PREFIX}{number}"
        try:
            adapter = _load(pipe, name, lora, source, notes)
        except LoraFileError as error:
            if not lora.pooled:
                raise
            refused.append(f"{source.name} ({error.reason})")
            for part in components(pipe):
                delete_adapter_layers(getattr(pipe, part), name)
            continue
        if adapter is None:
            idle.append(source.name)
        else:
            adapters.append(adapter)
            if lora.pooled and pool_waits and not source.adapter:
                for part in components(pipe):
                    rest(getattr(pipe, part), name)
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


def _load(pipe, name: str, lora: Lora, source: Source, notes: list[str]) -> Adapter | None:
    """None for a LoRA that has no effect on this model; to `notes` goes what is to be told. Raises LoraFileError."""
    if source.adapter:
        if lora.tag.blocks:
            raise LoratorioError(f"the LoRA {source.name} has lbw={lora.tag.blocks.text}, which needs its file.")
        changes = {part for part in components(pipe) if source.adapter in adapters_in([getattr(pipe, part)])}
        return _adapter(pipe, lora, source, Loaded(source.adapter), changes)
    is_flux = isinstance(getattr(pipe, denoiser_name(pipe)), FluxTransformer2DModel)
    file = source.read()
    others, plain = divided(source.told, named_by_diffusers(source.told, file) if is_flux else file)
    missing, fitting, acting, of_others = 0, 0, {}, {}
    if plain.tensors or not others:
        fit = fitted(pipe, source.told, layers(source.told, plain))
        acting = weighted(fit.acting, lora.tag.blocks, source.name, is_flux)
        missing, fitting = fit.missing, sum(map(len, fit.layers.values()))
    if others:
        found, of_missing = matched(pipe, source.told, others, lambda tensors, shape: tensors, ends_of, norms=True)
        factors = block_factors(found, lora.tag.blocks, source.name, is_flux)
        of_others = acting_on(pipe, source.told, found, factors, lora.strength)
        missing, fitting = missing + of_missing, fitting + sum(map(len, found.values()))
    if not acting and not of_others:
        return None
    if acting:
        _put(pipe, name, source.told, acting)
    if missing:
        notes.append(
            f"{missing} of {missing + fitting} layers of the LoRA {source.told} match nothing in this model and are "
            "left out."
        )
    if bundled := embeddings(file):
        notes.append(f"the embeddings that the LoRA {source.told} brings with it are not used: {', '.join(bundled)}.")
    return _adapter(pipe, lora, source, Loaded(name, of_others), acting.keys() | of_others.keys())


def _adapter(pipe, lora: Lora, source: Source, in_pipe: Loaded, changes: Collection[str]) -> Adapter:
    """`changes` are the parts of the pipeline that it changes."""
    denoiser = denoiser_name(pipe)
    return Adapter(
        name=source.name,
        path=source.main_file,
        text_strength=lora.strength,
        denoiser_strength=lora.strength,
        changes_text=any(part != denoiser for part in changes),
        changes_denoiser=denoiser in changes,
        source=in_pipe,
        tag=lora.tag,
        pooled=lora.pooled,
    )


def _put(pipe, name: str, told: str, of_models: ModelLayers) -> None:
    """Has diffusers load these layers as the adapter of this name. Raises LoraFileError."""
    state = {}
    for component, of_model in of_models.items():
        # Of text encoders diffusers does not know every layer by PEFT's names.
        is_text = component.startswith("text_encoder")
        down, up = ("lora_linear_layer.down", "lora_linear_layer.up") if is_text else ("lora_A", "lora_B")
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
                for part, factor in ((tuned.lora_A[name], factors.down), (tuned.lora_B[name], factors.up)):
                    if part.weight.element_size() == 1:  # the model is stored in fp8, which is no way to compute
                        part.weight.data = factor.to(part.weight.device, torch.float32)
    except Exception as error:  # whatever diffusers, PEFT and transformers come across in a file that is not ours
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoraFileError(told, f"cannot be loaded by diffusers ({reason[:200]})") from error
