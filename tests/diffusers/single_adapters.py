"""What a composed call should give, independently: one adapter at a time by diffusers' own loading, in float64, and the
equations in numpy.
"""

import copy

import numpy as np
import torch
from diffusers import FluxPipeline

from lib_loratorio.hosts.diffusers import composed

BASE_ONLY = ("img_ids", "txt_ids", "controlnet_blocks_repeat")


def denoiser(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def record(pipe, loras, settings, call):
    """The composition, and what the denoiser was asked and answered in a call of the pipeline."""
    calls, controls = [], []

    def note(module, args, kwargs, out):
        of_control = {"control": controls[0]} if controls else {}
        calls.append((copied(args), {**copied(kwargs), **of_control}, out[0].clone()))
        del controls[1:]

    def note_control(module, args, kwargs):
        if len(controls) < 2:  # before a call of the denoiser the pipeline's own comes first
            controls[:] = [(copied(args), copied(kwargs)), None]

    with composed(pipe, loras, settings) as composition:
        hooks = [denoiser(pipe).register_forward_hook(note, with_kwargs=True)]
        if hasattr(pipe, "controlnet"):
            hooks.append(pipe.controlnet.register_forward_pre_hook(note_control, with_kwargs=True))
        try:
            call(pipe)
        finally:
            for hook in hooks:
                hook.remove()
    return composition, calls


def copied(tree, dtype=None):
    """The tensors as they are now, floats in `dtype`."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone().to(dtype if dtype and tree.is_floating_point() else tree.dtype)
    if isinstance(tree, dict):
        return {key: copied(value, dtype) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copied(value, dtype) for value in tree)
    return tree


def texts(pipe, prompts, negatives, guided):
    """The text arguments of the pipeline's calls of its denoiser, of those that take turns each."""
    with torch.no_grad():
        if isinstance(pipe, FluxPipeline) or "Flux" in type(pipe).__name__:
            both = [prompts, negatives] if guided else [prompts]
            encoded = [pipe.encode_prompt(prompt, device="cpu", max_sequence_length=16)[:2] for prompt in both]
            return [{"encoder_hidden_states": hidden, "pooled_projections": pooled} for hidden, pooled in encoded]
        named = {"prompt": prompts, "negative_prompt": negatives, "do_classifier_free_guidance": guided}
        if "StableDiffusion3" in type(pipe).__name__:
            named |= {"prompt_2": prompts, "prompt_3": prompts}
        cond, uncond, *pooled = pipe.encode_prompt(**named, device="cpu", num_images_per_prompt=1)
    hidden = torch.cat([uncond, cond]) if guided else cond
    pooled = torch.cat(pooled[::-1]) if pooled and guided else pooled[0] if pooled else None
    if pooled is None:
        return [{"encoder_hidden_states": hidden}]
    name = "text_embeds" if hasattr(pipe, "unet") else "pooled_projections"
    return [{"encoder_hidden_states": hidden, name: pooled}]


def with_text(kwargs, text):
    kwargs = {**kwargs, **text}
    if "text_embeds" in text:
        kwargs["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": kwargs.pop("text_embeds")}
    return kwargs


def control_text(kwargs, text):
    """The arguments of a ControlNet with this text, or its last rows in guess mode."""
    rows = len(kwargs["encoder_hidden_states"])
    if not kwargs.get("pooled_projections", torch.ones(1)).any():  # SD 3's mostly have none
        text = {"encoder_hidden_states": text["encoder_hidden_states"]}
    return with_text(kwargs, {name: tensor[-rows:] for name, tensor in text.items()})


def given(pipe, control, text, rows):
    """What a ControlNet gives, as the denoiser's arguments."""
    parts = pipe.controlnet(*control[0], **{**control_text(control[1], text), "return_dict": False})
    if not hasattr(pipe, "unet"):
        is_flux = "Flux" in type(pipe).__name__
        names = ("controlnet_block_samples", "controlnet_single_block_samples")
        return dict(zip(names if is_flux else ("block_controlnet_hidden_states",), parts))
    down, middle = parts
    if len(middle) < rows:  # guess mode
        down, middle = [torch.cat([0 * one, one]) for one in down], torch.cat([0 * middle, middle])
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def each_alone(pipe, loras):
    """Goes on with the pipeline as the base, then with each LoRA alone, as diffusers itself loads and activates it."""
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, (path, _) in zip(names, loras):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    pipe.disable_lora()
    yield
    pipe.enable_lora()
    for name, (_, strength) in zip(names, loras):
        pipe.set_adapters([name], [strength])
        yield


def predictions(pipe, loras, calls, prompts, negatives, guided):
    """`[calls][1 + N, rows, ...]` in float64: the base's, then each LoRA's alone, with its own text."""
    pipe = copy.deepcopy(pipe).to(torch.float64)
    found = [[] for _ in calls]
    for _ in each_alone(pipe, loras):
        own = texts(pipe, prompts, negatives, guided)
        for place, (args, kwargs, _) in enumerate(calls):
            asked = with_text(copied(kwargs, torch.float64), own[place % len(own)])
            with torch.no_grad():
                if control := asked.pop("control", None):
                    asked |= given(pipe, control, own[0], len(asked["encoder_hidden_states"]))
                found[place].append(denoiser(pipe)(*copied(args, torch.float64), **{**asked, "return_dict": False})[0])
    return [torch.stack(models).numpy() for models in found]


def weights_of(noise, settings):
    """`[N, B, 1, H, W]` from noise `[1 + N, B, C, H, W]`, for patches that divide the picture."""
    d = settings.patch_size
    models, images, channels, height, width = noise.shape
    patches = noise.reshape(models, images, channels, height // d, d, width // d, d)
    patches = patches.transpose(0, 1, 3, 5, 2, 4, 6).reshape(models, images, height // d, width // d, -1)
    base, adapted = patches[:1], patches[1:]
    cosine = (base * adapted).sum(-1) / (np.linalg.norm(base, axis=-1) * np.linalg.norm(adapted, axis=-1))
    weights = np.exp(-cosine / settings.temperature + (cosine / settings.temperature).min(0))
    weights /= weights.sum(0)
    return weights.repeat(d, -1).repeat(d, -2)[:, :, None]


def alphas_at(scheduler, timestep):
    """`alpha, sigma` of a scheduler of the DDPM family, at a timestep that may lie between two of its table."""
    squares = np.asarray(scheduler.alphas_cumprod, np.float64)
    logs = np.log((1 - squares) / squares) / 2
    ratio = np.exp(np.interp(float(timestep), np.arange(len(logs)), logs))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def expected(pipe, calls, singles, settings, guided, flux_size=64):
    """The composed answer to each call, `[rows, C, H, W]`, and the recorded one."""
    is_flux = "Flux" in type(pipe).__name__
    weights = None
    for (args, kwargs, output), models in zip(calls, singles):
        output = output.double().numpy()
        if is_flux:
            output, models = in_places(output, flux_size), np.stack([in_places(one, flux_size) for one in models])
        rows = models.shape[1]
        if is_flux and guided and weights is not None:  # the negative prompt, in a call of its own
            yield settings.lam * models[0] + (1 - settings.lam) * (weights * models[1:]).sum(0), output
            weights = None
            continue
        first = rows // 2 if guided and not is_flux else 0
        uncond, cond = models[:, :first], models[:, first:]
        weights = weights_of(noise_of(pipe, args, kwargs, cond, first), settings)
        composed_cond = (weights * cond[1:]).sum(0)
        if not first:
            weights = weights if is_flux and guided else None
            yield composed_cond, output
        else:
            composed_uncond = settings.lam * uncond[0] + (1 - settings.lam) * (weights * uncond[1:]).sum(0)
            yield np.concatenate([composed_uncond, composed_cond]), output


def noise_of(pipe, args, kwargs, cond, first):
    kind = pipe.scheduler.config.get("prediction_type")
    if not hasattr(pipe, "unet") or kind == "epsilon":
        return cond
    sample = args[0] if args else kwargs["sample"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    alpha, sigma = alphas_at(pipe.scheduler, timestep)
    x = sample[first:, : cond.shape[2]].double().numpy()
    return {"v_prediction": alpha * cond + sigma * x, "sample": (x - alpha * cond) / sigma}[kind]


def in_places(packed, size):
    unpacked = FluxPipeline._unpack_latents(torch.as_tensor(packed), size, size, 8)
    return unpacked.numpy()


def largest_error(pipe, loras, settings, call, prompts, negatives, guided):
    """Of every composed call, relative to its largest value; and the composition, and how different the LoRAs are."""
    composition, calls = record(pipe, loras, settings, call)
    singles = predictions(pipe, loras, calls, prompts, negatives, guided)
    worst = 0.0
    for wanted, found in expected(pipe, calls, singles, settings, guided):
        worst = max(worst, np.abs(found - wanted).max() / np.abs(wanted).max())
    # Of the last call, in which latents have their own scale.
    apart = min(np.abs(one - singles[-1][0]).max() / np.abs(singles[-1][0]).max() for one in singles[-1][1:])
    return worst, composition, apart, len(calls)
