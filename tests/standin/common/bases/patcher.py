"""A model with what is to be done around it; clones share the model."""


class Patcher:
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

    def known_patches(self, patches):
        """Those whose weight the model has, as `(weight, patch, offset, function)`. A key is the weight's name, or
        `(name, offset)` or `(name, offset, function)`.
        """
        names = {name for name, _ in self.model.named_parameters()}
        for key, patch in patches.items():
            name, offset, function = (*((key,) if isinstance(key, str) else key), None, None)[:3]
            if name in names:
                yield name, patch, offset, function


def place(model, key):
    """The layer of a weight, and the weight's name there."""
    layer, _, name = key.rpartition(".")
    return model.get_submodule(layer), name
