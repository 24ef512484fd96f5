"""reForge."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ldm_patched.modules import model_management, samplers
from ldm_patched.modules.conds import CONDRegular as Condition
from ldm_patched.modules.lora import calculate_weight
from ldm_patched.modules.samplers import cond_cat, get_area_and_mult
from ldm_patched.modules.weight_adapter import LoRAAdapter
from modules_forge import forge_sampler

from lib_loratorio.hosts.forge.backend import Factors, Patches

__all__ = ["Condition", "cond_cat"]

area_and_mult = get_area_and_mult


def compile_conditions(cond: Any) -> list[dict]:
    return forge_sampler.cond_from_a1111_to_patched_ldm(cond)


def compile_weighted_conditions(cond: Any, weights: Any) -> list[dict]:
    return forge_sampler.cond_from_a1111_to_patched_ldm_weighted(cond, weights)


def patches(patcher: Any, original: Any) -> Patches:
    return _without(patcher.patches, original.patches)


def _without(patches: Patches, others: Patches) -> dict[str, list]:
    found = {}
    for key, of_weight in patches.items():
        known = [id(patch) for patch in others.get(key, ())]
        if rest := [patch for patch in of_weight if id(patch) not in known]:
            found[key] = rest
    return found


def without_networks(patcher: Any, merged: Any, original: Any) -> Any:
    return _with(patcher, _without(patcher.patches, patches(merged, original)), original)


def with_patches(patcher: Any, networks: Any, original: Any) -> Any:
    added = patches(networks, original)
    every = {key: [*patcher.patches.get(key, ()), *added.get(key, ())] for key in {**patcher.patches, **added}}
    return _with(patcher, every, original)


def _with(patcher: Any, patches: Patches, original: Any) -> Any:
    """A clone with these patches. Which they are the host tells by a number alone, so it must be a new one, or the original's
    where they are the original's, which saves the host from merging anew."""
    clone = patcher.clone()
    clone.patches = dict(patches)
    same = {key: list(map(id, value)) for key, value in patches.items()} == {key: list(map(id, value)) for key, value in original.patches.items()}
    clone.patches_uuid = original.patches_uuid if same else uuid.uuid4()
    return clone


def apply(patcher: Any) -> None:
    model_management.load_models_gpu([patcher])


def factors(patch: Any) -> Factors | None:
    strength, value, strength_model, offset, function = patch
    if strength_model != 1.0 or function is not None or not isinstance(value, LoRAAdapter):
        return None
    up, down, alpha, mid, dora_scale, *reshape = value.weights
    if dora_scale is not None or any(shape is not None for shape in reshape):
        return None
    return Factors(up, down, mid, alpha, strength, offset)


def merged(patches: list, weight: torch.Tensor, key: str) -> torch.Tensor:
    return calculate_weight(patches, weight.to(torch.float32, copy=True), key)


def base_weight(layer: torch.nn.Module, parameter: str) -> torch.Tensor:
    weight = getattr(layer, parameter)
    if not weight.dtype.is_floating_point:
        raise RuntimeError("quantised models can be composed with plain LoRAs only, as other kinds need the full weight")
    return weight


def fits(model: torch.nn.Module, shape: Sequence[int], device: torch.device) -> bool:
    return model.memory_required(list(shape)) * 1.5 < model_management.get_free_memory(device)  # as the host's sampler asks it


def install(patcher: Any, calc: Callable) -> None:
    former = patcher.model_options.get("sampler_calc_cond_batch_function")

    def original(model, cond, uncond, x, sigma, model_options):
        if former:
            return former({"conds": [cond, uncond], "input": x, "sigma": sigma, "model": model, "model_options": model_options})
        return samplers.calc_cond_batch(model, [cond, uncond], x, sigma, model_options)

    def bracketed(args):
        cond, uncond = args["conds"]
        return list(calc(original, args["model"], cond, uncond, args["input"], args["sigma"], args["model_options"]))

    patcher.model_options["sampler_calc_cond_batch_function"] = bracketed


@contextmanager
def bracket(calc: Callable) -> Iterator[None]:
    """Nothing to do: `install` has used the host's own slot."""
    yield
