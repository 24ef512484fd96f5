"""The host's guidance. It has a slot for a function in place of its own evaluation; its batches tell which conditions
they are made of, and ControlNets are told of their batch by an argument.
"""

from bases import sampling
from bases.sampling import cond_cat, get_area_and_mult

from ldm_patched.modules import model_management

__all__ = ["cond_cat", "get_area_and_mult"]


class _Batches(sampling.Batches):
    def fits(self, model, areas):
        rows, *shape = areas[0].input_x.shape
        sizes = {key: [area.conditioning[key].size() for area in areas] for key in areas[0].conditioning}
        required = model.memory_required([len(areas) * rows, *shape], cond_shapes=sizes)
        return required * 1.5 < model_management.get_free_memory(areas[0].input_x.device)

    def described(self, areas, flags, x):
        return {"uuids": [area.uuid for area in areas]}

    def controlled(self, control, x, timestep, c, chunks):
        return {"control": control_for(control, x, timestep, c, chunks)}


def control_for(control, x, timestep, c, chunks):
    """Asks a chain of ControlNets, as the host does."""
    return control.get_control(x, timestep, c, chunks, c["transformer_options"])


def calc_cond_batch(model, conds, x_in, timestep, model_options):
    return _Batches().evaluated(model, conds, x_in, timestep, model_options)


def calc_cond_uncond_batch(model, cond, uncond, x_in, timestep, model_options):
    """What older extensions call."""
    return tuple(calc_cond_batch(model, [cond, uncond], x_in, timestep, model_options))


def sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options, seed=None):
    uncond = None if cond_scale == 1 and not model_options.get("disable_cfg1_optimization") else uncond
    args = {"conds": [cond, uncond], "input": x, "sigma": timestep, "model": model, "model_options": model_options}
    if "sampler_calc_cond_batch_function" in model_options:
        predictions = model_options["sampler_calc_cond_batch_function"](dict(args))
    else:
        predictions = calc_cond_batch(model, args["conds"], x, timestep, model_options)
    for function in model_options.get("sampler_pre_cfg_function", []):
        args = {**args, "conds_out": predictions, "cond_scale": cond_scale, "timestep": timestep}
        predictions = function(args)
    return sampling.guided(
        model_options,
        cond_scale,
        sum(c.get("strength", 1.0) for c in cond),
        model=model,
        input=args["input"],
        sigma=timestep,
        cond_denoised=predictions[0],
        uncond_denoised=predictions[1],
        cond=cond,
        uncond=uncond,
    )
