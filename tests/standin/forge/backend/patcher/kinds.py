"""What the patchers and merges of all members of the family have in common."""

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


DELTAS = {"lora": _lora, "loha": _loha, "diff": _diff, "scaled": _scaled}


class Options:
    """A model and what is done around it."""

    def __init__(self, model):
        self.model = model
        self.model_options = {"transformer_options": {}}
        self.controlnet_linked_list = None

    def set_model_unet_function_wrapper(self, function):
        self.model_options["model_function_wrapper"] = function

    def _append(self, kind, function, disable_cfg1_optimization=False):
        self.model_options[kind] = [*self.model_options.get(kind, []), function]
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_sampler_pre_cfg_function(self, function, disable_cfg1_optimization=False):
        self._append("sampler_pre_cfg_function", function, disable_cfg1_optimization)

    def set_model_sampler_post_cfg_function(self, function, disable_cfg1_optimization=False):
        self._append("sampler_post_cfg_function", function, disable_cfg1_optimization)

    def set_model_sampler_cfg_function(self, function):
        self.model_options["sampler_cfg_function"] = function

    def add_conditioning_modifier(self, function):
        self._append("conditioning_modifiers", function)

    def add_patched_controlnet(self, controlnet):
        controlnet.previous_controlnet = self.controlnet_linked_list
        self.controlnet_linked_list = controlnet
