"""Writes the tiny model as the WebUIs read one: a single .safetensors in the original SD layout with its .yaml.

    python -m lab.export --webui DIR       into that WebUI's models folder, the LoRAs as they are beside it
    python -m lab.export --out DIR         the same files under another folder

The .yaml names the text encoder's config and tokenizer as a folder relative to the WebUI's own, from where A1111 is
started.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from lab import model
from lab.model import WEIGHTS

NAME = "loratorio-tiny"

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(
    state: Mapping[str, torch.Tensor],
    prefixes: Mapping[str, str],
    inner: Callable[[str], Mapping[str, str]],
) -> dict[str, torch.Tensor]:
    """A state dict under other names.

    Args:
        state: by name.
        prefixes: new prefixes by old ones; of those that match a name, the longest is replaced.
        inner: gives, for an old prefix, what is renamed behind it: new beginnings of the rest by old ones.

    Raises KeyError for a name that has none of the prefixes.
    """
    renamed = {}
    for name, tensor in state.items():
        prefix = max((p for p in prefixes if name.startswith(p + ".")), key=len, default=None)
        if prefix is None:
            raise KeyError(f"no name in the original layout for {name}")
        rest = name[len(prefix) + 1 :]
        for old, new in inner(prefix).items():
            if rest.startswith(old + "."):
                rest = new + rest[len(old) :]
                break
        renamed[f"{prefixes[prefix]}.{rest}"] = tensor
    return renamed


def unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The UNet's module prefixes in the original layout, by those of diffusers."""
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    blocks = config["layers_per_block"]
    for level in range(len(config["down_block_types"])):
        for i in range(blocks):
            place = level * (blocks + 1) + i + 1
            names[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{place}.0"
            names[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{place}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (blocks + 1)}.0.op"
    for level, kind in enumerate(config["up_block_types"]):
        for i in range(blocks + 1):
            place = level * (blocks + 1) + i
            names[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{place}.0"
            names[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{place}.1"
        names[f"up_blocks.{level}.upsamplers.0.conv"] = (
            f"output_blocks.{level * (blocks + 1) + blocks}.{2 if 'Attn' in kind else 1}.conv"
        )
    return names


def vae_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The autoencoder's module prefixes in the original layout, by those of diffusers."""
    names = {part: part for part in ("quant_conv", "post_quant_conv")}
    levels = len(config["block_out_channels"])
    for side, blocks in (("encoder", config["layers_per_block"]), ("decoder", config["layers_per_block"] + 1)):
        names |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.conv_out": f"{side}.conv_out",
            f"{side}.conv_norm_out": f"{side}.norm_out",
        }
        names |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        names[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        for level in range(levels):
            if side == "encoder":
                ours, theirs = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
            else:  # the original counts the decoder's levels from the largest picture on
                ours, theirs = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
            names |= {f"{ours}.resnets.{i}": f"{theirs}.block.{i}" for i in range(blocks)}
            names[f"{ours}.downsamplers.0"] = f"{theirs}.downsample"
            names[f"{ours}.upsamplers.0"] = f"{theirs}.upsample"
    return names


def original_layout(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The pipeline's weights under the names of the original SD1.x checkpoints."""
    unet = _renamed(pipe.unet.state_dict(), unet_names(pipe.unet.config), lambda p: RESIDUAL if "resnets" in p else {})
    vae = _renamed(
        pipe.vae.state_dict(),
        vae_names(pipe.vae.config),
        lambda p: ATTENTION if "attentions" in p else {"conv_shortcut": "nin_shortcut"},
    )
    for name, tensor in vae.items():
        if ".mid.attn_1." in name and tensor.dim() == 2:  # 1 x 1 convolutions there
            vae[name] = tensor[:, :, None, None]
    text = {
        name if name.startswith("text_model.") else f"text_model.{name}": t
        for name, t in pipe.text_encoder.state_dict().items()
    }
    state = {f"model.diffusion_model.{k}": v for k, v in unet.items()} | {
        f"first_stage_model.{k}": v for k, v in vae.items()
    }
    state |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
    return {k: v.contiguous() for k, v in state.items()}


def webui_config(pipe: StableDiffusionPipeline, text_folder: str) -> dict[str, Any]:
    """The .yaml, as a dict; `text_folder` is where the WebUI finds the text encoder's config and tokenizer."""
    params = {
        "linear_start": model.SCHEDULE["beta_start"],
        "linear_end": model.SCHEDULE["beta_end"],
        "timesteps": model.SCHEDULE["num_train_timesteps"],
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": pipe.vae.config["scaling_factor"],
        "use_ema": False,
        "unet_config": _unet_config(pipe.unet.config),
        "first_stage_config": _vae_config(pipe.vae.config),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": text_folder},
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The .yaml's part about the UNet, from diffusers' config of it."""
    width = config["block_out_channels"][0]
    return {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": width,
            "attention_resolutions": [
                2**level for level, kind in enumerate(config["down_block_types"]) if "Attn" in kind
            ],
            "num_res_blocks": config["layers_per_block"],
            "channel_mult": [c // width for c in config["block_out_channels"]],
            "num_heads": config["attention_head_dim"],
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": config["cross_attention_dim"],
            "use_checkpoint": False,
            "legacy": False,
        },
    }


def _vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The .yaml's part about the autoencoder, from diffusers' config of it."""
    width = config["block_out_channels"][0]
    return {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "monitor": "val/rec_loss",
            "lossconfig": {"target": "torch.nn.Identity"},
            "ddconfig": {
                "double_z": True,
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": width,
                "ch_mult": [c // width for c in config["block_out_channels"]],
                "num_res_blocks": config["layers_per_block"],
                "attn_resolutions": [],
                "dropout": 0.0,
            },
        },
    }


def export(weights: Path, models: Path) -> list[Path]:
    """Writes checkpoint, .yaml, text encoder's config and LoRAs into a WebUI's `models` folder.

    `weights` is laid out as lab/weights. Returns the files written, and the text encoder's folder.
    """
    pipe = model.load(weights / "model", torch.float16)
    checkpoints, text, loras = models / "Stable-diffusion", models / f"{NAME}-clip", models / "Lora"
    for folder in (checkpoints, text, loras):
        folder.mkdir(parents=True, exist_ok=True)
    save_file(original_layout(pipe), checkpoints / f"{NAME}.safetensors", {"format": "pt"})
    (checkpoints / f"{NAME}.yaml").write_text(
        yaml.safe_dump(webui_config(pipe, f"models/{NAME}-clip"), sort_keys=False)
    )
    pipe.text_encoder.config.save_pretrained(text)
    shutil.copytree(weights / "model" / "tokenizer", text, dirs_exist_ok=True)
    for file in (weights / "loras").glob("*.safetensors"):
        shutil.copyfile(file, loras / f"tiny-{file.name}")
    return [
        checkpoints / f"{NAME}.safetensors",
        checkpoints / f"{NAME}.yaml",
        text,
        *sorted(loras.glob("tiny-*.safetensors")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--webui", type=Path, help="a WebUI's folder")
    target.add_argument("--out", type=Path, help="a folder that stands for a WebUI's `models`")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    if args.webui and not (args.webui / "models").is_dir():
        parser.error(f"{args.webui} is no WebUI's folder: it has no `models`")
    for path in export(args.weights, args.webui / "models" if args.webui else args.out):
        print(path)


if __name__ == "__main__":
    main()
