"""A model with what is to be merged into it and done around it; clones share the model."""

import copy

from backend.patcher.lora import LoraLoader


class ModelPatcher:
    def __init__(self, model):
        self.model = model
        self.lora_patches = {}
        self.model_options = {"transformer_options": {}}
        self.controlnet_linked_list = None
        if not hasattr(model, "lora_loader"):
            model.lora_loader = LoraLoader(model)
        self.lora_loader = model.lora_loader

    def clone(self):
        clone = ModelPatcher(self.model)
        clone.lora_patches = dict(self.lora_patches)
        clone.model_options = copy.deepcopy(self.model_options)
        clone.controlnet_linked_list = self.controlnet_linked_list
        return clone

    def add_patches(self, *, filename, patches, strength_patch=1.0, strength_model=1.0, online_mode=False):
        """`patches` by the weight's name, or by `(name, offset)` or `(name, offset, function)`."""
        mine, names = {}, {name for name, _ in self.model.named_parameters()}
        for key, patch in patches.items():
            name, offset, function = (*((key,) if isinstance(key, str) else key), None, None)[:3]
            if name in names:
                mine.setdefault(name, []).append([strength_patch, patch, strength_model, offset, function])
        self.lora_patches[filename, strength_patch, strength_model, online_mode] = mine

    def refresh_loras(self):
        self.lora_loader.refresh(self.lora_patches)

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
