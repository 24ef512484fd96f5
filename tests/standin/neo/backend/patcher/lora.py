"""Networks' patches as adapters that change a weight in place; plain differences are none. What does not fit is logged
and left out.
"""

import logging
from types import SimpleNamespace

import torch

from backend.patcher.kinds import DELTAS

logger = logging.getLogger("lora")


class WeightAdapterBase:
    def __init__(self, name, weights):
        self.name, self.weights = name, weights


class LoRAAdapter(WeightAdapterBase):
    """Its last value is a shape for weights that grow."""

    def __init__(self, name, weights):
        super().__init__(name, (*weights, None))


weight_adapter = SimpleNamespace(WeightAdapterBase=WeightAdapterBase, LoRAAdapter=LoRAAdapter)


def as_patch(kind, values):
    if kind == "diff":
        return kind, values
    return LoRAAdapter(kind, values) if kind == "lora" else WeightAdapterBase(kind, values)


def merge_lora_to_weight(patches, weight, key="online_lora", computation_dtype=torch.float32):
    """Patches are `(strength, adapter or difference, strength of the weight, offset, function, online)`."""
    for strength, value, strength_model, offset, function, _ in patches:
        kind, values = (
            value if isinstance(value, tuple) else (value.name, value.weights[: 5 if value.name == "lora" else None])
        )
        part = weight if offset is None else weight.narrow(*offset)
        part *= strength_model
        values = [value.to(weight) if isinstance(value, torch.Tensor) else value for value in values]
        try:
            delta = strength * DELTAS[kind](part, *values)
        except RuntimeError as error:
            (logger.warning if kind == "diff" else logging.error)(f"{kind} {key} {error}")
            continue
        part += delta if function is None else function(delta)
    return weight
