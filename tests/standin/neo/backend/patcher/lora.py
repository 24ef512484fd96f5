"""The host's merge, which complains of differences in a log of its own."""

import logging
from types import SimpleNamespace

import torch
from bases.adapters import LoRAAdapter, WeightAdapterBase, as_patch, calculate_weight

__all__ = ["as_patch", "merge_lora_to_weight"]

logger = logging.getLogger("lora")
weight_adapter = SimpleNamespace(WeightAdapterBase=WeightAdapterBase, LoRAAdapter=LoRAAdapter)


def merge_lora_to_weight(patches, weight, key="online_lora", computation_dtype=torch.float32):
    return calculate_weight(patches, weight, key, computation_dtype, log=logger)
