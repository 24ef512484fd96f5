"""The host's patchers know their patches by file and strengths; clones share what merges them."""

import copy

from bases.patcher import Patcher

from backend.patcher.lora import LoraLoader


class ModelPatcher(Patcher):
    def __init__(self, model):
        super().__init__(model)
        self.lora_patches = {}
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
        mine = {}
        for name, patch, offset, function in self.known_patches(patches):
            mine.setdefault(name, []).append([strength_patch, patch, strength_model, offset, function])
        self.lora_patches[filename, strength_patch, strength_model, online_mode] = mine

    def merged_networks(self):
        return list(self.lora_patches)

    def refresh_loras(self):
        self.lora_loader.refresh(self.lora_patches)

    load = refresh_loras
