"""Patches as adapters that change a weight in place; plain differences are none. What does not fit is logged and left
out.
"""

import logging

import torch

from bases.deltas import change


class WeightAdapterBase:
    name: str

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def values(self):
        """What the kind's delta is computed from."""
        return self.weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        try:
            changed = change(self.name, weight.to(intermediate_dtype), self.values(), strength)
            weight += (changed if function is None else function(changed)).type(weight.dtype)
        except Exception as error:
            logging.error(f"ERROR {self.name} {key} {error}")
        return weight


class LoRAAdapter(WeightAdapterBase):
    """Its last value is a shape for weights that grow."""

    name = "lora"

    def values(self):
        return self.weights[:5]


class LoHaAdapter(WeightAdapterBase):
    name = "loha"


class ScaledAdapter(WeightAdapterBase):
    name = "scaled"


class SquaredAdapter(WeightAdapterBase):
    name = "squared"


def as_patch(kind, values):
    """A file's patch in the host's form."""
    if kind == "diff":
        return kind, values
    if kind == "lora":
        return LoRAAdapter(set(), (*values, None))
    return {"loha": LoHaAdapter, "scaled": ScaledAdapter, "squared": SquaredAdapter}[kind](set(), values)


def calculate_weight(patches, weight, key, intermediate_dtype=torch.float32, original_weights=None, log=logging):
    """Patches are `(strength, adapter or difference, strength of the weight, offset, function, ...)`."""
    for strength, value, strength_model, offset, function, *_ in patches:
        part = weight if offset is None else weight.narrow(*offset)
        if strength_model != 1.0:
            part *= strength_model
        if isinstance(value, WeightAdapterBase):
            value.calculate_weight(
                part, key, strength, strength_model, offset, function, intermediate_dtype, original_weights
            )
            continue
        kind, (difference, *_) = value
        if kind != "diff":
            log.warning(f"patch type not recognized {kind} {key}")
        elif difference.shape != part.shape:
            log.warning(f"WARNING SHAPE MISMATCH {key} WEIGHT NOT MERGED {difference.shape} != {part.shape}")
        else:
            change = strength * difference.to(part)
            part += change if function is None else function(change)
    return weight
