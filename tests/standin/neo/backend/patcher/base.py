"""The host's patchers, whose patches may be left out of the stored weights, to be merged in each forward."""

from bases.flat_patcher import FlatPatcher
from bases.patcher import place

from backend.patcher import lora


class ModelPatcher(FlatPatcher):
    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0, *, filename=None, online_mode=None):
        self.add(patches, strength_patch, strength_model, online_mode)

    def patch(self, key, patches):
        if not any(online for *_, online in patches):
            return super().patch(key, patches)
        layer, name = place(self.model, key)
        layer.forge_online_loras = {**vars(layer).get("forge_online_loras", {}), name: patches}

    def merged(self, patches, weight, key):
        return lora.merge_lora_to_weight(patches, weight, key, weight.dtype)

    def unpatch_model(self):
        for layer in self.model.modules():
            vars(layer).pop("forge_online_loras", None)
        super().unpatch_model()
