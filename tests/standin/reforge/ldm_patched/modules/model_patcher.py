"""The host's patchers, all of whose patches are merged into what is stored."""

from bases.flat_patcher import FlatPatcher

from ldm_patched.modules import lora


class ModelPatcher(FlatPatcher):
    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        self.add(patches, strength_patch, strength_model)

    def set_model_sampler_calc_cond_batch_function(self, function):
        self.model_options["sampler_calc_cond_batch_function"] = function

    def merged(self, patches, weight, key):
        return lora.calculate_weight(patches, weight, key, weight.dtype)
