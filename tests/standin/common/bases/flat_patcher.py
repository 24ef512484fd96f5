"""A model with lists of what is to be merged into its weights; clones share the model, which notes whose patches it has
by a number.
"""

import copy
import uuid
from collections import namedtuple

import torch

from bases.patcher import Patcher, place

Backup = namedtuple("Backup", ["weight", "inplace_update"])


class FlatPatcher(Patcher):
    def __init__(self, model):
        super().__init__(model)
        self.patches, self.patches_uuid = {}, uuid.uuid4()
        self.backup, self.parent = {}, None
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None

    def clone(self):
        clone = type(self)(self.model)
        clone.patches = {key: patches[:] for key, patches in self.patches.items()}
        clone.patches_uuid = self.patches_uuid
        clone.model_options = copy.deepcopy(self.model_options)
        clone.controlnet_linked_list = self.controlnet_linked_list
        clone.backup, clone.parent = self.backup, self
        return clone

    def add(self, patches, strength_patch, strength_model, *more):
        for name, patch, offset, function in self.known_patches(patches):
            self.patches.setdefault(name, []).append((strength_patch, patch, strength_model, offset, function, *more))
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
                self.patch(key, patches)
        except Exception:
            self.unpatch_model()
            raise
        self.model.current_weight_patches_uuid = self.patches_uuid

    def patch(self, key, patches):
        layer, name = place(self.model, key)
        weight = getattr(layer, name)
        self.backup[key] = Backup(weight, False)
        convert, put = (getattr(layer, f"{word}_{name}", None) for word in ("convert", "set"))
        # In the weight's own precision, where that is the higher one, so that a test can be exact.
        precise = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        merged = self.merged(patches, convert(precise, inplace=True) if convert else precise, key)
        if put:
            put(merged)
        else:
            setattr(layer, name, torch.nn.Parameter(merged.to(weight.dtype), requires_grad=False))

    def merged(self, patches, weight, key):
        """The host's merge, into `weight` and in its precision."""
        raise NotImplementedError

    def unpatch_model(self):
        for key, kept in self.backup.items():
            layer, name = place(self.model, key)
            setattr(layer, name, kept.weight)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None
