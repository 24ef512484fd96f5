"""Networks merged into a model's weights, from a backup, whenever the set of their names and strengths is another one."""

import torch


def _lora(weight, up, down, alpha, mid, dora_scale):
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    if mid is not None:
        down = torch.einsum("pqhw,qc->pchw", mid, down.flatten(1))
    delta = scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    if dora_scale is None:
        return delta
    changed = weight + delta
    return changed * dora_scale / changed.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1)) - weight


def _loha(weight, left_a, left_b, alpha, right_a, right_b):
    return alpha / left_b.shape[0] * ((left_a @ left_b) * (right_a @ right_b)).reshape(weight.shape)


def _diff(weight, delta):
    return delta.reshape(weight.shape)


def _scaled(weight, factor):
    """A kind whose delta depends on the weight as earlier patches have left it."""
    return weight * factor


KINDS = {"lora": _lora, "loha": _loha, "diff": _diff, "scaled": _scaled}


def merge_lora_to_weight(patches, weight, key="online_lora", computation_dtype=torch.float32):
    """The weight with patches `[strength, (kind, values), strength of the weight, offset, function]`, one after the other."""
    merged = weight.to(computation_dtype, copy=True)
    for strength, (kind, values), strength_model, offset, function in patches:
        part = merged if offset is None else merged.narrow(*offset)
        part *= strength_model
        values = [value.to(merged) if isinstance(value, torch.Tensor) else value for value in values]
        delta = strength * KINDS[kind](part, *values)
        part += delta if function is None else function(delta)
    return merged.to(weight.dtype)


class LoraLoader:
    """Knows what is merged by its name only, which it notes down last: after a merge that failed it is wrong about the weights."""

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
            layer, name = self._place(key)
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

    def _place(self, key):
        layer, _, name = key.rpartition(".")
        return self.model.get_submodule(layer), name

    def _put(self, key, weight):
        layer, name = self._place(key)
        setattr(layer, name, weight)
