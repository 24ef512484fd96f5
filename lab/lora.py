"""LoRA adapters of the tiny model: attached by peft for training, written as ordinary kohya files.

Layers: attention, feed-forward and the 1 x 1 projections of the UNet's transformers, and its residual blocks'
convolutions; for some skills the text encoder's attention and feed-forward as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file

RANK = ALPHA = 4
WITH_TEXT_ENCODER = ("alien", "gem", "palette")
UNET_LAYERS = r".*(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)|proj_in|proj_out|resnets\.\d+\.conv[12])"
TEXT_LAYERS = r".*(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


def attach(pipe: StableDiffusionPipeline, with_text_encoder: bool) -> None:
    """Freezes the pipeline's UNet and text encoder and adds trainable adapters to the UNet, and on request to the
    text encoder.
    """
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=UNET_LAYERS), pipe.unet)
    if with_text_encoder:
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TEXT_LAYERS), pipe.text_encoder)


def kohya(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Adapters of one module under kohya's names: PREFIX_layer_with_underscores.{lora_down.weight, lora_up.weight,
    alpha}, fp16.

    Down is `[RANK, in]` and up `[out, RANK]`, of a convolution `[RANK, in, k, k]` and `[out, RANK, 1, 1]`; alpha is a
    scalar.
    """
    state = {}
    for key, layer in _adapters(module, prefix):
        state[f"{key}.lora_down.weight"] = layer.lora_A["default"].weight.detach().half().contiguous()
        state[f"{key}.lora_up.weight"] = layer.lora_B["default"].weight.detach().half().contiguous()
        state[f"{key}.alpha"] = torch.tensor(float(ALPHA), dtype=torch.float16)
    return state


def _adapters(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """Each layer of a module that has an adapter, with the adapter's name in kohya's files."""
    for name, layer in module.named_modules():
        if not hasattr(layer, "lora_A") or not layer.lora_A:
            continue
        # transformers 5 dropped CLIP's outer `text_model`; the file format did not.
        if prefix == "lora_te" and not name.startswith("text_model."):
            name = f"text_model.{name}"
        yield f"{prefix}_{name.replace('.', '_')}", layer


def restore(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Gives the pipeline's attached adapters the weights that `save` wrote: both must have the same layers."""
    state = load_file(path)
    for module, prefix in ((pipe.unet, "lora_unet"), (pipe.text_encoder, "lora_te")):
        for key, layer in _adapters(module, prefix):
            layer.lora_A["default"].weight.data.copy_(state.pop(f"{key}.lora_down.weight"))
            layer.lora_B["default"].weight.data.copy_(state.pop(f"{key}.lora_up.weight"))
            state.pop(f"{key}.alpha")
    if state:
        raise ValueError(f"{path.name} has layers that the pipeline has no adapters for: {', '.join(sorted(state))}")


def save(pipe: StableDiffusionPipeline, path: Path, metadata: Mapping[str, str]) -> None:
    """The pipeline's adapters as one LoRA file, with these entries beside the usual ones in its metadata."""
    state = kohya(pipe.unet, "lora_unet") | kohya(pipe.text_encoder, "lora_te")
    save_file(
        state,
        path,
        {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(RANK),
            "ss_network_alpha": str(ALPHA),
            "ss_network_args": f'{{"conv_dim": "{RANK}", "conv_alpha": "{ALPHA}"}}',
            "ss_base_model_version": "sd_v1",
            "ss_v2": "False",
            "ss_sd_model_name": "loratorio-tiny",
            **metadata,
        },
    )
