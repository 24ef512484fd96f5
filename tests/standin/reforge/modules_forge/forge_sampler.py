"""A WebUI's conditions in the model's form, and what comes before a sampling."""

from bases.conditions import compiled as cond_from_a1111_to_patched_ldm
from bases.conditions import compiled_with_weights as cond_from_a1111_to_patched_ldm_weighted
from ldm_patched.modules import model_management

__all__ = ["cond_from_a1111_to_patched_ldm", "cond_from_a1111_to_patched_ldm_weighted", "sampling_prepare"]


def sampling_prepare(unet, x):
    model_management.load_models_gpu([unet], memory_required=unet.model.memory_required([len(x) * 2, *x.shape[1:]]))
