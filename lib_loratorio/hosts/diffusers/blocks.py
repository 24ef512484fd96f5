"""Block weights on the layers of a pipeline, which diffusers calls by other names than the WebUIs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.layouts import Factors
from lib_loratorio.loras.block_weights import BlockWeights

PER_BLOCK = 3
"""Of the original models' blocks so many are one of diffusers': two with layers, and one that changes the size."""

UNET = re.compile(
    r"(?:(?P<down>down)|up)_blocks\.(?P<block>\d+)\."
    r"(?:(?P<sampler>down|up)samplers|(?:resnets|attentions)\.(?P<place>\d+))\.|(?P<middle>mid_block\.)"
)


FLUX = re.compile(r"(?P<single>single_)?transformer_blocks\.(?P<block>\d+)\.|(?P<last>norm_out|proj_out)\b")

FLUX_INPUTS = {"x_embedder": "img_in", "context_embedder": "txt_in", "time_text_embed": "time_in"}


def name_in_webui(component: str, layer: str, is_flux: bool = False) -> str:
    """As much of a layer's name in a WebUI as tells its block."""
    if component == "transformer":
        return _of_flux(layer) if is_flux else layer
    if component != "unet":
        return layer
    if layer == "conv_in":
        return "diffusion_model_input_blocks_0_0"
    found = UNET.match(layer)
    if not found:
        return f"diffusion_model_{layer}"
    if found["middle"]:
        return f"diffusion_model_middle_block_{layer}"
    number = PER_BLOCK * int(found["block"])
    if found["down"]:
        return f"diffusion_model_input_blocks_{number + (3 if found['sampler'] else 1 + int(found['place']))}_{layer}"
    return f"diffusion_model_output_blocks_{number + (2 if found['sampler'] else int(found['place']))}_{layer}"


def _of_flux(layer: str) -> str:
    if found := FLUX.match(layer):
        if found["last"]:
            return "diffusion_model_final_layer_linear"
        return f"diffusion_model_{'single' if found['single'] else 'double'}_blocks_{found['block']}_{layer}"
    return f"diffusion_model_{FLUX_INPUTS.get(layer.partition('.')[0], layer)}"


def weighted(
    of_models: Mapping[str, Mapping[str, Factors]], weights: BlockWeights | None, lora: str, is_flux: bool = False
) -> dict[str, dict[str, Factors]]:
    """The layers of each part of the pipeline with their scales multiplied, without those of which nothing is left.

    Raises LoratorioError for weights that are another model's, or random: here a LoRA is loaded for many pictures.
    """
    factors = block_factors(of_models, weights, lora, is_flux)
    found: dict[str, dict[str, Factors]] = {}
    for component, of_model in of_models.items():
        for layer, of_layer in of_model.items():
            if factor := factors[component][layer]:
                found.setdefault(component, {})[layer] = replace(of_layer, scale=of_layer.scale * factor)
    return found


def block_factors(
    of_models: Mapping[str, Collection[str]], weights: BlockWeights | None, lora: str, is_flux: bool = False
) -> dict[str, dict[str, float]]:
    """What block weights multiply the strength of each layer by, by part of the pipeline and name. Raises as
    `weighted` does.
    """
    if weights is None:
        return {component: dict.fromkeys(of_model, 1.0) for component, of_model in of_models.items()}
    if weights.is_random:
        raise LoratorioError(f"the LoRA '{lora}' has lbw={weights.text}; R and U are for WebUIs only, give numbers.")
    for denoiser in {"unet", "transformer"} & of_models.keys():
        weights.require_suited([name_in_webui(denoiser, layer, is_flux) for layer in of_models[denoiser]], lora)
    return {
        component: {layer: weights.factor(name_in_webui(component, layer, is_flux)) for layer in of_model}
        for component, of_model in of_models.items()
    }
