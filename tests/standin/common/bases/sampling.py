"""Guidance in the Forge family: the conditions' rows evaluated in as few batches as fit, and combined."""

import math
from collections import namedtuple

import torch

from bases.conditions import Condition

Area = namedtuple("Area", ["input_x", "mult", "conditioning", "control", "uuid"])


def get_area_and_mult(conds, x_in, timestep_in):
    """A condition for these latents: where and how strongly it counts; None outside its time."""
    if timestep_in[0] > conds.get("timestep_start", math.inf) or timestep_in[0] < conds.get("timestep_end", 0):
        return None
    mult = torch.ones_like(x_in) * conds.get("strength", 1.0)
    if "mask" in conds:
        mult = mult * conds["mask"][:, None]
    conditioning = {
        key: value.process_cond(batch_size=len(x_in), device=x_in.device, area=None)
        for key, value in conds["model_conds"].items()
    }
    return Area(x_in, mult, conditioning, conds.get("control"), conds.get("uuid", 0))


def cond_cat(c_list):
    return {key: c_list[0][key].concat([c[key] for c in c_list[1:]]) for key in c_list[0]}


def _can_concat(one, other):
    first, second = one.conditioning, other.conditioning
    return (
        one.control is other.control
        and first.keys() == second.keys()
        and all(first[key].can_concat(second[key]) for key in first)
    )


def _next_batch(waiting, fits):
    """Numbers of what goes with the first one waiting, the last in line first."""
    together = [number for number, (area, _) in enumerate(waiting) if _can_concat(area, waiting[0][0])][::-1]
    for parts in range(1, len(together) + 1):
        some = together[: len(together) // parts]
        if fits([waiting[number][0] for number in some]):
            return some
    return together[:1]


class Batches:
    """How a host evaluates conditions."""

    def fits(self, model, areas):
        """Whether these can be evaluated in one call."""
        raise NotImplementedError

    def described(self, areas, flags, x):
        """What the host's `transformer_options` tell of a batch besides what they tell on every host."""
        raise NotImplementedError

    def controlled(self, control, x, timestep, c, chunks):
        """What the host adds to a batch that has ControlNets."""
        raise NotImplementedError

    def evaluated(self, model, conds, x_in, timestep, model_options):
        """By list of conditions the mean of their predictions, each by its strength and mask."""
        waiting = [
            (area, flag)
            for flag, of_flag in enumerate(conds)
            for c in of_flag or []
            if (area := get_area_and_mult(c, x_in, timestep))
        ]
        total = [torch.zeros_like(x_in) for _ in conds]
        count = [torch.full_like(x_in, 1e-37) for _ in conds]
        while waiting:
            chosen = _next_batch(waiting, lambda areas: self.fits(model, areas))
            areas, flags = zip(*[waiting.pop(number) for number in chosen])
            predictions = self._predicted(model, areas, flags, timestep, model_options)
            for area, flag, prediction in zip(areas, flags, predictions.chunk(len(flags))):
                total[flag] += prediction * area.mult
                count[flag] += area.mult
        return [of_flag / weight for of_flag, weight in zip(total, count)]

    def _predicted(self, model, areas, flags, timestep, model_options):
        input_x, timesteps = torch.cat([area.input_x for area in areas]), torch.cat([timestep] * len(areas))
        c = cond_cat([area.conditioning for area in areas])
        c["transformer_options"] = {
            **model_options.get("transformer_options", {}),
            "cond_or_uncond": list(flags),
            "sigmas": timestep,
            **self.described(areas, flags, areas[0].input_x),
        }
        if areas[0].control is not None:
            c.update(self.controlled(areas[0].control, input_x, timesteps, dict(c), len(flags)))
        if "model_function_wrapper" not in model_options:
            return model.apply_model(input_x, timesteps, **c)
        args = {"input": input_x, "timestep": timesteps, "c": c, "cond_or_uncond": list(flags)}
        return model_options["model_function_wrapper"](model.apply_model, args)


def prepared(unet, x, sigma, uncond, cond, cond_scale, image):
    """What is to be evaluated and how, with image conditions and control, and after extensions have changed it: model,
    latents, sigma, unconditional and conditional ones, scale, options and seed.
    """
    for condition in [*cond, *(uncond or [])]:
        if image.shape[2:] == x.shape[2:]:
            condition["model_conds"]["c_concat"] = Condition(image)
        if unet.controlnet_linked_list is not None:
            condition["control"] = unet.controlnet_linked_list
    state = unet.model, x, sigma, uncond, cond, cond_scale, unet.model_options, 0
    for modifier in unet.model_options.get("conditioning_modifiers", []):
        state = modifier(*state)
    return state


def guided(model_options, cond_scale, strength, **shared):
    """The prediction by the host's guidance or an extension's, and what extensions make of it, who are told what is
    `shared`.
    """
    x, cond_pred, uncond_pred = (shared[name] for name in ("input", "cond_denoised", "uncond_denoised"))
    shared["model_options"] = model_options
    if "sampler_cfg_function" in model_options:
        args = {"cond": x - cond_pred, "uncond": x - uncond_pred, "cond_scale": cond_scale, "timestep": shared["sigma"]}
        denoised = x - model_options["sampler_cfg_function"]({**shared, **args})
    else:
        denoised = uncond_pred + (cond_pred - uncond_pred) * cond_scale * strength
    for function in model_options.get("sampler_post_cfg_function", []):
        denoised = function({**shared, "denoised": denoised})
    return denoised
