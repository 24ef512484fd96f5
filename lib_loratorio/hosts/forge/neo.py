"""Forge Neo: Forge's sampling over patchers like reForge's. Written after its sources; not run yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from backend import memory_management
from backend.patcher.lora import merge_lora_to_weight, weight_adapter

from lib_loratorio.hosts.forge import flat_patches
from lib_loratorio.hosts.forge.backend import Factors
from lib_loratorio.hosts.forge.flat_patches import merging, patches, with_patches, without_networks
from lib_loratorio.hosts.forge.main import (
    Condition,
    area_and_mult,
    base_weight,
    bracket,
    compile_conditions,
    compile_weighted_conditions,
    cond_cat,
    fits,
    install,
)

__all__ = [
    "Condition", "area_and_mult", "base_weight", "bracket", "compile_conditions", "compile_weighted_conditions", "cond_cat", "fits", "install",
    "merging", "patches", "with_patches", "without_networks",
]


def apply(patcher: Any) -> None:
    memory_management.load_models_gpu([patcher])


def factors(patch: Any) -> Factors | None:
    return flat_patches.factors(patch, weight_adapter.LoRAAdapter)


def merged(patches: Sequence, weight: torch.Tensor, key: str) -> torch.Tensor:
    return merge_lora_to_weight(patches, weight.to(torch.float32, copy=True), key, computation_dtype=torch.float32)
