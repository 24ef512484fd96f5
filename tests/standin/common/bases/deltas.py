"""What a patch changes in a weight, by kind."""

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


DELTAS = {"lora": _lora, "loha": _loha, "diff": _diff, "scaled": _scaled, "squared": _scaled}


def change(kind, weight, values, strength):
    """At a strength, to which "squared" is not in proportion, as reForge's OFT is not."""
    return strength ** (2 if kind == "squared" else 1) * delta(kind, weight, values)


def delta(kind, weight, values):
    return DELTAS[kind](weight, *[value.to(weight) if isinstance(value, torch.Tensor) else value for value in values])
