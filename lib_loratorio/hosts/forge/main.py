"""Forge main, and what Neo has of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from backend import memory_management
from backend.patcher.lora import merge_lora_to_weight
from backend.sampling import sampling_function
from backend.sampling.condition import Condition, compile_conditions, compile_weighted_conditions
from backend.sampling.sampling_function import cond_cat, get_area_and_mult

from lib_loratorio.deltas.dense import DeltaError
from lib_loratorio.deltas.precision import FLOATS
from lib_loratorio.hosts.forge.backend import (
    QUANTISED,
    Factors,
    Patches,
    declined,
    low_rank_factors,
    weighted_patches,
)
from lib_loratorio.loras.block_weights import BlockWeights, Evenly

__all__ = ["Condition", "compile_conditions", "compile_weighted_conditions", "cond_cat", "declined"]

area_and_mult = get_area_and_mult


def patches(patcher: Any, original: Any) -> Patches:
    found: dict[str, list] = {}
    for network in patcher.lora_patches.keys() - original.lora_patches.keys():
        for key, of_weight in patcher.lora_patches[network].items():
            found.setdefault(key, []).extend(of_weight)
    return found


def without_networks(patcher: Any, merged: Any, original: Any) -> Any:
    networks = merged.lora_patches.keys() - original.lora_patches.keys()
    clone = patcher.clone()
    clone.lora_patches = {key: value for key, value in patcher.lora_patches.items() if key not in networks}
    return clone


def weighted(patcher: Any, original: Any, weights: BlockWeights | Evenly) -> Any:
    """The host knows what is merged by these identities alone, so they get other names."""
    clone = patcher.clone()
    for identity in patcher.lora_patches.keys() - original.lora_patches.keys():
        name, *others = identity
        if of_network := weighted_patches(clone.lora_patches.pop(identity), weights):
            clone.lora_patches[(f"{name}:lbw={weights.listed}", *others)] = of_network
    return clone


def with_patches(patcher: Any, networks: Any, original: Any) -> Any:
    """A merge into a model in low bits would be rounded to them, so there it is one that the host makes anew in each
    forward.
    """
    clone = patcher.clone()
    low_bits = getattr(patcher.model, "storage_dtype", torch.float32) not in FLOATS  # text encoders have none
    for identity, of_network in networks.lora_patches.items():
        if identity not in original.lora_patches:
            *name, online = identity
            clone.lora_patches[(*name, online or low_bits)] = of_network
    return clone


@contextmanager
def merging(patcher: Any) -> Iterator[None]:
    # After a merge that failed on the way, a part of it is in the weights, and the host takes them for those of the
    # merge before.
    loader = patcher.lora_loader
    merged = {key for (*_, online), of_network in patcher.lora_patches.items() if not online for key in of_network}
    if loader.backup.keys() != merged:
        loader.loaded_hash = None
    try:
        yield
    except BaseException:
        loader.loaded_hash = None
        raise


def apply(patcher: Any) -> None:
    with merging(patcher):
        patcher.refresh_loras()


def factors(patch: Any) -> Factors | None:
    value = patch[1]
    return low_rank_factors(patch, value[1]) if value[0] == "lora" else None


def merged(patches: list, weight: torch.Tensor, key: str) -> torch.Tensor:
    return merge_lora_to_weight(patches, weight.float(), key, computation_dtype=torch.float32)


def base_weight(layer: torch.nn.Module, parameter: str) -> torch.Tensor:
    weight = getattr(layer, parameter)
    gguf = getattr(weight, "gguf_cls", None)
    if gguf is not None:
        gguf.bake(
            weight
        )  # into the order in which it is read, which the host does only when it loads the model for its first sampling
        return gguf.dequantize_pytorch(weight).float()
    if hasattr(weight, "bnb_quantized") or not weight.dtype.is_floating_point:
        raise DeltaError(QUANTISED)
    scale = getattr(layer, "scale_weight", None)
    return weight if scale is None or parameter != "weight" else weight.float() * scale.float()


def fits(model: torch.nn.Module, shape: Sequence[int], device: torch.device) -> bool:
    return model.memory_required(list(shape)) < memory_management.get_free_memory(device)


def install(patcher: Any, calc: Callable) -> None:
    """Nothing: this host has no slot of its own for it."""


@contextmanager
def bracket(calc: Callable) -> Iterator[None]:
    original = sampling_function.calc_cond_uncond_batch

    def bracketed(model, cond, uncond, x_in, timestep, model_options):
        return calc(original, model, cond, uncond, x_in, timestep, model_options)

    sampling_function.calc_cond_uncond_batch = bracketed
    try:
        yield
    finally:
        sampling_function.calc_cond_uncond_batch = original
