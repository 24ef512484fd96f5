"""The host's merge, which logs what it cannot merge and goes on without it."""

import torch
from bases import adapters


def calculate_weight(patches, weight, key, intermediate_dtype=torch.float32, original_weights=None):
    return adapters.calculate_weight(patches, weight, key, intermediate_dtype, original_weights)
