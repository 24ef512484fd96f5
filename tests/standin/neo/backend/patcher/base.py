"""A model with lists of what is to be merged into its weights; clones share the model, which notes whose patches it has
by a number.
"""

import copy
import uuid
from collections import namedtuple

import torch

from backend.patcher import lora
from backend.patcher.kinds import Options

Backup = namedtuple("Backup", ["weight", "inplace_update"])


class ModelPatcher(Options):
    def __init__(self, model):
        super().__init__(model)
        self.patches, self.patches_uuid = {}, uuid.uuid4()
        self.backup, self.parent = {}, None
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None

    def clone(self):
        clone = ModelPatcher(self.model)
        clone.patches = {key: patches[:] for key, patches in self.patches.items()}
        clone.patches_uuid = self.patches_uuid
        clone.model_options = copy.deepcopy(self.model_options)
        clone.controlnet_linked_list = self.controlnet_linked_list
        clone.backup, clone.parent = self.backup, self
        return clone

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0, *, filename=None, online_mode=None):
        """`patches` by the weight's name, or by `(name, offset)` or `(name, offset, function)`."""
        names = {name for name, _ in self.model.named_parameters()}
        for key, patch in patches.items():
            name, offset, function = (*((key,) if isinstance(key, str) else key), None, None)[:3]
            if name in names:
                self.patches.setdefault(name, []).append(
                    (strength_patch, patch, strength_model, offset, function, online_mode)
                )
        self.patches_uuid = uuid.uuid4()

    def merged_networks(self):
        return self.patches_uuid, {key: [id(patch) for patch in patches] for key, patches in self.patches.items()}

    @torch.no_grad()
    def load(self):
        """Merges anew where the model has other patches than these, after those are taken out."""
        if self.model.current_weight_patches_uuid == self.patches_uuid:
            return
        self.unpatch_model()
        try:
            for key, patches in self.patches.items():
                self._patch(key, patches)
        except Exception:
            self.unpatch_model()
            raise
        self.model.current_weight_patches_uuid = self.patches_uuid

    def _patch(self, key, patches):
        layer, name = self._place(key)
        if any(online for *_, online in patches):
            layer.forge_online_loras = {**vars(layer).get("forge_online_loras", {}), name: patches}
            return
        weight = getattr(layer, name)
        self.backup[key] = Backup(weight, False)
        # In the weight's own precision, where that is the higher one, so that a test can be exact.
        merged = lora.merge_lora_to_weight(
            patches, weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True), key
        )
        setattr(layer, name, torch.nn.Parameter(merged.to(weight.dtype), requires_grad=False))

    def unpatch_model(self):
        for layer in self.model.modules():
            vars(layer).pop("forge_online_loras", None)
        for key, kept in self.backup.items():
            layer, name = self._place(key)
            setattr(layer, name, kept.weight)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None

    def _place(self, key):
        layer, _, name = key.rpartition(".")
        return self.model.get_submodule(layer), name
