"""Networks merged into a model's weights, from a backup, whenever the set of names and strengths changes."""

import torch
from bases.deltas import change
from bases.patcher import place


def as_patch(kind, values):
    return kind, values


def merge_lora_to_weight(patches, weight, key="online_lora", computation_dtype=torch.float32):
    """The weight with patches `[strength, (kind, values), strength of the weight, offset, function]`, one after the
    other.
    """
    merged = weight.to(computation_dtype, copy=True)
    for strength, (kind, values), strength_model, offset, function in patches:
        part = merged if offset is None else merged.narrow(*offset)
        part *= strength_model
        changed = change(kind, part, values, strength)
        part += changed if function is None else function(changed)
    return merged.to(weight.dtype)


class LoraLoader:
    """Knows what is merged by its name only, which it notes down last: after a merge that failed it is wrong about the
    weights.
    """

    def __init__(self, model):
        self.model = model
        self.backup = {}
        self.online_layers = []
        self.loaded_hash = str([])

    @torch.no_grad()
    def refresh(self, lora_patches):
        wanted = str(list(lora_patches))
        if wanted == self.loaded_hash:
            return
        for layer in self.online_layers:
            vars(layer).pop("forge_online_loras", None)
        for key, weight in self.backup.items():
            self._put(key, weight)
        self.online_layers, self.backup = [], {}
        together = {}
        for (*_, online), of_network in lora_patches.items():
            for key, patches in of_network.items():
                together.setdefault((key, online), []).extend(patches)
        for (key, online), patches in together.items():
            layer, name = place(self.model, key)
            weight = getattr(layer, name)
            if online:
                layer.forge_online_loras = {**vars(layer).get("forge_online_loras", {}), name: patches}
                self.online_layers.append(layer)
                continue
            self.backup[key] = weight
            # In the weight's own precision, where that is the higher one, so that a test can be exact.
            merged = merge_lora_to_weight(patches, weight, key, torch.promote_types(weight.dtype, torch.float32))
            self._put(key, torch.nn.Parameter(merged, requires_grad=False))
        self.loaded_hash = wanted

    def _put(self, key, weight):
        layer, name = place(self.model, key)
        setattr(layer, name, weight)
