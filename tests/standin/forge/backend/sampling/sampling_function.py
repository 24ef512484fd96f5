"""The host's guidance. Its batches tell which rows are unconditional, and ControlNets are told of their batch by an
attribute.
"""

import torch
from bases import sampling
from bases.sampling import cond_cat, get_area_and_mult

from backend import memory_management
from backend.sampling.condition import compile_conditions, compile_weighted_conditions

__all__ = ["cond_cat", "get_area_and_mult"]


class _Batches(sampling.Batches):
    def fits(self, model, areas):
        rows, *shape = areas[0].input_x.shape
        return model.memory_required([len(areas) * rows, *shape]) < memory_management.get_free_memory()

    def described(self, areas, flags, x):
        rows = [flag for flag in flags for _ in x]
        return {
            "cond_mark": torch.tensor(rows).to(x),
            "cond_indices": [row for row, flag in enumerate(rows) if not flag],
            "uncond_indices": [row for row, flag in enumerate(rows) if flag],
        }

    def controlled(self, control, x, timestep, c, chunks):
        return {"control": control_for(control, x, timestep, c, chunks), "control_model": control}


def control_for(control, x, timestep, c, chunks):
    """Asks a chain of ControlNets, as the host does."""
    pointer = control
    while pointer is not None:
        pointer.transformer_options, pointer = c["transformer_options"], pointer.previous_controlnet
    return control.get_control(x, timestep, c, chunks)


def calc_cond_uncond_batch(model, cond, uncond, x_in, timestep, model_options):
    return tuple(_Batches().evaluated(model, [cond, uncond], x_in, timestep, model_options))


def sampling_function_inner(model, x, timestep, uncond, cond, cond_scale, model_options):
    strength = sum(c.get("strength", 1.0) for c in cond)
    wanted = None if cond_scale == 1 and not model_options.get("disable_cfg1_optimization") else uncond
    for function in model_options.get("sampler_pre_cfg_function", []):
        model, cond, wanted, x, timestep, model_options = function(model, cond, wanted, x, timestep, model_options)
    cond_pred, uncond_pred = calc_cond_uncond_batch(model, cond, wanted, x, timestep, model_options)
    return sampling.guided(
        model_options,
        cond_scale,
        strength,
        model=model,
        input=x,
        sigma=timestep,
        cond_denoised=cond_pred,
        uncond_denoised=uncond_pred,
        cond=cond,
        uncond=uncond,
    )


def sampling_function(denoiser, params, cond_scale, cond_composition):
    unet = denoiser.inner_model.inner_model.forge_objects.unet
    uncond = compile_conditions(params.text_uncond)
    cond = compile_weighted_conditions(params.text_cond, cond_composition)
    *state, _ = sampling.prepared(unet, params.x, params.sigma, uncond, cond, cond_scale, params.image_cond)
    return sampling_function_inner(*state)


def sampling_prepare(unet):
    memory_management.load_model_gpu(unet)
