"""Pipelines of every supported kind, tiny and random, and how each is called."""

from collections.abc import Callable
from typing import NamedTuple

import diffusers
import numpy as np
import tiny_pipelines as tiny
import torch
from PIL import Image

PROMPTS, NEGATIVES = ["a red cat", "two blue dogs"], ["blurry", "blurry"]


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), np.uint8))


def mask():
    image = Image.new("L", (tiny.SIZE, tiny.SIZE))
    image.paste(255, (16, 16, 56, 48))
    return image


class Case(NamedTuple):
    """make: the pipeline. call: more arguments of its call. guided: whether there are unconditional rows. rows: of a
    step, for each picture with three LoRAs. calls: of the denoiser, in three steps.
    """

    make: Callable
    call: Callable = dict
    guided: bool = True
    rows: int = 8
    calls: int = 3


def of(kind, make, **parts):
    """Another pipeline class around the parts of one."""

    def made():
        pipe = make()
        more = {name: part(pipe) for name, part in parts.items()}
        if pipe.components.get("safety_checker", 0) is None:
            more["requires_safety_checker"] = False
        other = getattr(diffusers, kind)(**pipe.components, **more)
        other.set_progress_bar_config(disable=True)
        return other

    return made


def scheduled(make, kind, **changes):
    def made():
        pipe = make()
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **changes)
        return pipe

    return made


def image():
    return {"image": [picture()] * 2, "strength": 0.75}


def inpaint():
    return {**image(), "mask_image": mask(), "height": tiny.SIZE, "width": tiny.SIZE}


def control():
    return {"image": [picture()] * 2, "controlnet_conditioning_scale": 0.7}


def control_image():
    return {**image(), "control_image": [picture()] * 2, "controlnet_conditioning_scale": 0.7}


def dit_control():
    return {"control_image": [picture()] * 2, "controlnet_conditioning_scale": 0.7}


def dev():
    return {"max_sequence_length": 16, "guidance_scale": 3.5}


def true_cfg():
    return {"max_sequence_length": 16, "true_cfg_scale": 4.0, "negative_prompt": NEGATIVES}


IMAGE_WIDTH = 12


def with_ip_adapter():
    """SD 1.x with an IP-Adapter, whose layers are beside those that LoRAs change."""
    pipe = tiny.sd()
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    tokens, layers = 4, {}
    for number, name in enumerate(pipe.unet.attn_processors):
        if "attn2" in name:
            outputs = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            layers |= {f"{number}.to_{part}_ip.weight": random(outputs, tiny.WIDTH) for part in "kv"}
    projection = {"proj.weight": random(tokens * tiny.WIDTH, IMAGE_WIDTH), "proj.bias": random(tokens * tiny.WIDTH)}
    projection |= {"norm.weight": torch.ones(tiny.WIDTH), "norm.bias": torch.zeros(tiny.WIDTH)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    pipe.unet.eval()
    return pipe


def image_embeds():
    """Of no picture, then of the one that all are to follow."""
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, IMAGE_WIDTH, generator=torch.Generator().manual_seed(5))]}


NET = {"controlnet": tiny.controlnet}
SD3_NET = {"controlnet": tiny.sd3_controlnet}
SD3_POOLED_NET = {"controlnet": lambda pipe: tiny.sd3_controlnet(pipe, reads_pooled=True)}
FLUX_NET = {"controlnet": tiny.flux_controlnet}
V = "v_prediction"

CASES = {
    "SD 1.x": Case(tiny.sd),
    "SD 2.x (v)": Case(lambda: tiny.sd(V)),
    "SD img2img": Case(of("StableDiffusionImg2ImgPipeline", tiny.sd), image),
    "SD inpaint": Case(of("StableDiffusionInpaintPipeline", tiny.sd), inpaint),
    "SD inpainting model": Case(of("StableDiffusionInpaintPipeline", lambda: tiny.sd(V, in_channels=9)), inpaint),
    "SD ControlNet": Case(of("StableDiffusionControlNetPipeline", tiny.sd, **NET), control),
    "SD ControlNet, guess mode": Case(
        of("StableDiffusionControlNetPipeline", tiny.sd, **NET), lambda: {**control(), "guess_mode": True}
    ),
    "SD ControlNet img2img": Case(of("StableDiffusionControlNetImg2ImgPipeline", tiny.sd, **NET), control_image),
    "SD IP-Adapter": Case(with_ip_adapter, image_embeds),
    "SD LCM": Case(
        scheduled(lambda: tiny.sd(time_cond_proj_dim=8), "LCMScheduler", original_inference_steps=50),
        guided=False,
        rows=4,
    ),
    "SD TCD": Case(scheduled(tiny.sd, "TCDScheduler")),
    "SD without guidance": Case(tiny.sd, lambda: {"guidance_scale": 1.0}, guided=False, rows=4),
    "SDXL": Case(tiny.sdxl),
    "SDXL img2img": Case(of("StableDiffusionXLImg2ImgPipeline", tiny.sdxl), image),
    "SDXL inpaint": Case(of("StableDiffusionXLInpaintPipeline", tiny.sdxl), inpaint),
    "SDXL ControlNet": Case(of("StableDiffusionXLControlNetPipeline", tiny.sdxl, **NET), control),
    "SDXL ControlNet img2img": Case(of("StableDiffusionXLControlNetImg2ImgPipeline", tiny.sdxl, **NET), control_image),
    "SD 3": Case(tiny.sd3),
    "SD 3 img2img": Case(of("StableDiffusion3Img2ImgPipeline", tiny.sd3), image),
    "SD 3 ControlNet": Case(of("StableDiffusion3ControlNetPipeline", tiny.sd3, **SD3_NET), dit_control),
    "SD 3 ControlNet, pooled text too": Case(
        of("StableDiffusion3ControlNetPipeline", tiny.sd3, **SD3_POOLED_NET), dit_control
    ),
    "FLUX.1-dev": Case(tiny.flux, dev, guided=False, rows=4),
    "FLUX.1-schnell": Case(lambda: tiny.flux(False), dev, guided=False, rows=4),
    "FLUX.1 true CFG": Case(tiny.flux, true_cfg, calls=6),
    "FLUX.1 ControlNet": Case(
        of("FluxControlNetPipeline", tiny.flux, **FLUX_NET), lambda: {**dev(), **dit_control()}, guided=False, rows=4
    ),
    "FLUX.1 ControlNet, true CFG": Case(
        of("FluxControlNetPipeline", tiny.flux, **FLUX_NET), lambda: {**true_cfg(), **dit_control()}, calls=6
    ),
    "FLUX.1 img2img": Case(of("FluxImg2ImgPipeline", tiny.flux), lambda: {**dev(), **image()}, guided=False, rows=4),
}


def is_flux(pipe):
    return hasattr(pipe, "transformer") and "Flux" in type(pipe.transformer).__name__


def called(pipe, case, **more):
    """A call in three steps."""
    kwargs = {"prompt": PROMPTS, "num_inference_steps": 3, "output_type": "latent", **case.call(), **more}
    if "strength" in kwargs:
        kwargs["num_inference_steps"] = 4  # the first of which is left out
    if not is_flux(pipe):
        kwargs = {"negative_prompt": NEGATIVES, "guidance_scale": 4.0, **kwargs}
    if "image" not in kwargs:
        kwargs |= {"height": tiny.SIZE, "width": tiny.SIZE}
    elif is_flux(pipe):
        kwargs |= {"height": tiny.SIZE, "width": tiny.SIZE}
    torch.manual_seed(3)
    generators = [torch.Generator().manual_seed(number) for number in range(2)]
    return pipe(**kwargs, generator=generators).images


def write_loras(pipe, folder):
    """Three: with text encoders, with other layers too, and for the denoiser alone."""
    if hasattr(pipe, "unet"):
        more, layers, layout = (*tiny.ATTENTION, *tiny.CONVOLUTIONS), tiny.ATTENTION, "kohya"
    else:
        more, layers, layout = (*tiny.DIT_ATTENTION, "x_embedder"), tiny.DIT_ATTENTION, "diffusers"
    return [
        (tiny.write_lora(pipe, folder / "text.safetensors", 1, layers, tiny.TEXT, layout=layout), 0.8),
        (tiny.write_lora(pipe, folder / "more.safetensors", 2, more, layout=layout), 0.6),
        (tiny.write_lora(pipe, folder / "other.safetensors", 3, layers, tiny.TEXT, layout=layout), -0.7),
    ]
