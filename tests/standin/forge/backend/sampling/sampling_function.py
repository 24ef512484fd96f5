"""Guidance: the conditions' rows evaluated in as few batches as fit, and combined."""

import math
from collections import namedtuple

import torch

from backend import memory_management
from backend.sampling.condition import Condition, compile_conditions, compile_weighted_conditions

Area = namedtuple("Area", ["input_x", "mult", "conditioning", "control"])


def get_area_and_mult(conds, x_in, timestep_in):
    """A condition for these latents: where and how strongly it counts; None outside its time."""
    if timestep_in[0] > conds.get("timestep_start", math.inf) or timestep_in[0] < conds.get("timestep_end", 0):
        return None
    mult = torch.ones_like(x_in) * conds.get("strength", 1.0)
    if "mask" in conds:
        mult = mult * conds["mask"][:, None]
    conditioning = {
        key: value.process_cond(batch_size=len(x_in), device=x_in.device) for key, value in conds["model_conds"].items()
    }
    return Area(x_in, mult, conditioning, conds.get("control"))


def cond_cat(c_list):
    return {key: c_list[0][key].concat([c[key] for c in c_list[1:]]) for key in c_list[0]}


def _can_concat(one, other):
    first, second = one.conditioning, other.conditioning
    return (
        one.control is other.control
        and first.keys() == second.keys()
        and all(first[key].can_concat(second[key]) for key in first)
    )


def _next_batch(model, waiting, shape):
    """Numbers of what goes with the first one waiting, the last in line first."""
    together = [number for number, (area, _) in enumerate(waiting) if _can_concat(area, waiting[0][0])][::-1]
    for parts in range(1, len(together) + 1):
        some = together[: len(together) // parts]
        if model.memory_required([len(some) * shape[0], *shape[1:]]) < memory_management.get_free_memory():
            return some
    return together[:1]


def calc_cond_uncond_batch(model, cond, uncond, x_in, timestep, model_options):
    waiting = [
        (area, flag)
        for flag, conds in enumerate((cond, uncond or []))
        for c in conds
        if (area := get_area_and_mult(c, x_in, timestep))
    ]
    total, count = [torch.zeros_like(x_in) for _ in range(2)], [torch.full_like(x_in, 1e-37) for _ in range(2)]
    while waiting:
        areas, flags = zip(*[waiting.pop(number) for number in _next_batch(model, waiting, x_in.shape)])
        input_x, timesteps = torch.cat([area.input_x for area in areas]), torch.cat([timestep] * len(areas))
        c = cond_cat([area.conditioning for area in areas])
        rows = [flag for flag in flags for _ in x_in]
        c["transformer_options"] = options = {
            **model_options.get("transformer_options", {}),
            "cond_or_uncond": list(flags),
            "sigmas": timestep,
            "cond_mark": torch.tensor(rows).to(timestep),
            "cond_indices": [row for row, flag in enumerate(rows) if not flag],
            "uncond_indices": [row for row, flag in enumerate(rows) if flag],
        }
        control = pointer = areas[0].control
        while pointer is not None:
            pointer.transformer_options, pointer = options, pointer.previous_controlnet
        if control is not None:
            c["control"] = control.get_control(input_x, timesteps, dict(c), len(flags))
            c["control_model"] = control
        if "model_function_wrapper" in model_options:
            args = {"input": input_x, "timestep": timesteps, "c": c, "cond_or_uncond": list(flags)}
            predictions = model_options["model_function_wrapper"](model.apply_model, args)
        else:
            predictions = model.apply_model(input_x, timesteps, **c)
        for area, flag, prediction in zip(areas, flags, predictions.chunk(len(flags))):
            total[flag] += prediction * area.mult
            count[flag] += area.mult
    return total[0] / count[0], total[1] / count[1]


def sampling_function_inner(model, x, timestep, uncond, cond, cond_scale, model_options):
    strength = sum(c.get("strength", 1.0) for c in cond)
    wanted = None if cond_scale == 1 and not model_options.get("disable_cfg1_optimization") else uncond
    for function in model_options.get("sampler_pre_cfg_function", []):
        model, cond, wanted, x, timestep, model_options = function(model, cond, wanted, x, timestep, model_options)
    cond_pred, uncond_pred = calc_cond_uncond_batch(model, cond, wanted, x, timestep, model_options)
    shared = {
        "model": model,
        "model_options": model_options,
        "input": x,
        "sigma": timestep,
        "cond_denoised": cond_pred,
        "uncond_denoised": uncond_pred,
    }
    if "sampler_cfg_function" in model_options:
        guided = x - model_options["sampler_cfg_function"](
            {**shared, "cond": x - cond_pred, "uncond": x - uncond_pred, "cond_scale": cond_scale}
        )
    else:
        guided = uncond_pred + (cond_pred - uncond_pred) * cond_scale * strength
    for function in model_options.get("sampler_post_cfg_function", []):
        guided = function({**shared, "denoised": guided, "cond": cond, "uncond": uncond})
    return guided


def sampling_function(denoiser, params, cond_scale, cond_composition):
    unet = denoiser.inner_model.inner_model.forge_objects.unet
    uncond, cond = (
        compile_conditions(params.text_uncond),
        compile_weighted_conditions(params.text_cond, cond_composition),
    )
    for condition in [*cond, *(uncond or [])]:
        if params.image_cond.shape[2:] == params.x.shape[2:]:
            condition["model_conds"]["c_concat"] = Condition(params.image_cond)
        if unet.controlnet_linked_list is not None:
            condition["control"] = unet.controlnet_linked_list
    state = unet.model, params.x, params.sigma, uncond, cond, cond_scale, unet.model_options, 0
    for modifier in unet.model_options.get("conditioning_modifiers", []):
        state = modifier(*state)
    return sampling_function_inner(*state[:-1])


def sampling_prepare(unet):
    memory_management.load_model_gpu(unet)
