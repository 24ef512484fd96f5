"""Forge Neo: Forge's sampling over patchers like reForge's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from backend import memory_management
from backend.args import dynamic_args
from backend.patcher import lora

from lib_loratorio.hosts.forge import flat_patches, main
from lib_loratorio.hosts.forge.backend import Factors
from lib_loratorio.hosts.forge.flat_patches import merging, patches, weighted, with_patches, without_networks
from lib_loratorio.hosts.forge.main import (
    Condition,
    area_and_mult,
    bracket,
    compile_conditions,
    compile_weighted_conditions,
    cond_cat,
    fits,
    install,
)

__all__ = [
    "Condition",
    "area_and_mult",
    "bracket",
    "compile_conditions",
    "compile_weighted_conditions",
    "cond_cat",
    "fits",
    "install",
    "merging",
    "patches",
    "weighted",
    "with_patches",
    "without_networks",
]


def declined(sd_model: Any) -> str | None:
    if dynamic_args.nunchaku:
        return "Nunchaku models are not supported"  # the host hands them LoRAs as files, and keeps no patches
    if dynamic_args.pid:
        return "PiD models are not supported"  # large pictures are evaluated in parts
    if sd_model.is_wan:
        return "models with frames in their latents (Wan, Qwen-Image, Krea, Anima) are not supported"
    return None


def apply(patcher: Any) -> None:
    memory_management.load_models_gpu([patcher])


def factors(patch: Any) -> Factors | None:
    return flat_patches.factors(patch, lora.weight_adapter.LoRAAdapter)


def merged(patches: Sequence, weight: torch.Tensor, key: str) -> torch.Tensor:
    with flat_patches.complaints_raised(key, logging.getLogger(), lora.logger):
        return lora.merge_lora_to_weight(
            patches, weight.to(torch.float32, copy=True), key, computation_dtype=torch.float32
        )


def base_weight(layer: torch.nn.Module, parameter: str) -> torch.Tensor:
    weight = main.base_weight(layer, parameter)
    convert = getattr(layer, f"convert_{parameter}", None)  # of layers whose weight looks like a plain one, and is not
    return convert(weight) if convert else weight
