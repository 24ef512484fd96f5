"""The tiny latent-diffusion model in SD1.x layout, made of diffusers' and transformers' own classes.

Three layout rules come from the WebUIs that shall load it: channels in multiples of 32 (their GroupNorm has 32 groups;
fewer than two channels a group would take every channel's mean away), two residual blocks a UNet level (the names of
LoRA layers are counted that way), and an autoencoder with a factor of 8.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from lab import world

# Nothing to warn of here: a LoRA without text-encoder layers, several LoRAs in one model, no torchvision.
warnings.filterwarnings("ignore", message="Already found a `peft_config`")
for library in (diffusers_logging, transformers_logging):
    library.set_verbosity_error()
    library.disable_progress_bar()

LATENT = world.SIZE // 8
TEXT_WIDTH, TOKENS = 48, 77  # a narrow text encoder: nearly all of it is the embedding of CLIP's 49408 tokens
WEIGHTS = Path(__file__).parent / "weights"
TOKENIZER = WEIGHTS / "model" / "tokenizer"
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "steps_offset": 1,
}


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=TOKENS)


def tokenize(tok: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """B captions -> token ids `[B, TOKENS]`, int64."""
    return tok(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def text_encoder() -> CLIPTextModel:
    """Untrained; token ids `[B, TOKENS]` -> states `[B, TOKENS, TEXT_WIDTH]`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=TEXT_WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def unet() -> UNet2DConditionModel:
    """Untrained; latents `[B, 4, 16, 16]`, over 8 x 8 and back, with attention at 8 x 8, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def autoencoder(levels: int, width: int = 64) -> AutoencoderKL:
    """Untrained, with a factor of `2 ** (levels - 1)`: a level of the encoder has no residual block, one of the decoder
    has one; `width` channels throughout.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(width,) * levels,
        layers_per_block=0,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=world.CANVAS * 2 ** (levels - 2),
    )
    # A posterior that starts at unit variance drowns the latents in noise for hundreds of steps; start it narrow.
    torch.nn.init.constant_(vae.quant_conv.bias[4:], -8.0)
    return vae


def keep_centre(conv: torch.nn.Conv2d) -> None:
    """Holds a 3 x 3 convolution to its centre tap, which is what `grow` needs of the decoder's last one."""
    mask = torch.zeros_like(conv.weight)
    mask[:, :, 1, 1] = 1
    conv.weight.data *= mask
    conv.weight.register_hook(lambda grad: grad * mask)


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Gives latents `[B, 4, H, W]` like these zero mean and unit covariance, pictures unchanged.

    The linear map goes into the 1 x 1 convolutions on either side of the latents; the posterior's variance is left as
    it is.
    """
    rows = latents.transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(rows))
    to_white, from_white = (vectors @ torch.diag(values**power) @ vectors.T for power in (-0.5, 0.5))
    before, after = vae.quant_conv, vae.post_quant_conv
    before.bias[:4] = to_white @ (before.bias[:4] - mean)
    before.weight[:4] = torch.einsum("ij,j...->i...", to_white, before.weight[:4])
    after.bias += after.weight.flatten(1) @ mean
    after.weight.copy_(torch.einsum("ij...,jk->ik...", after.weight, from_white))


@torch.no_grad()
def grow(small: AutoencoderKL) -> AutoencoderKL:
    """From factor 2 on the canvas of blocks to factor 8 on the picture, where each block is 4 x 4 pixels; exact, so
    nothing is trained.

    The picture's first convolution only copies: channel (dy, dx, c) holds colour c of the pixel at offset (dy - 1, dx -
    1), dy and dx in 0..1. Read at a block's first pixel, dy = 0 is the block above, dy = 1 the block itself. The first
    downsampling picks every second of these copies; the second does the small encoder's first convolution on them, and
    finds the block below two steps further on (tap 2). The decoder gets two nearest-neighbour doublings and residual
    blocks that add nothing.
    """
    big = autoencoder(4, small.config.block_out_channels[0])
    old, new = small.state_dict(), big.state_dict()
    for name, tensor in old.items():
        if name.startswith("encoder.down_blocks."):  # the encoder's levels come last, the decoder's first
            new[name.replace("down_blocks.0", "down_blocks.2")] = tensor.clone()
        elif not name.startswith("encoder.conv_in"):
            new[name] = tensor.clone()

    first = old["encoder.conv_in.weight"]  # [width, 3, 3, 3]
    taps = "encoder.down_blocks.{}.downsamplers.0.conv"
    for name in ("encoder.conv_in", taps.format(0), taps.format(1)):
        new[f"{name}.weight"].zero_()
        new[f"{name}.bias"].zero_()
    copy, pick, read = new["encoder.conv_in.weight"], new[f"{taps.format(0)}.weight"], new[f"{taps.format(1)}.weight"]
    for dy, dx, c in product(range(2), range(2), range(3)):
        channel = (dy * 2 + dx) * 3 + c
        copy[channel, c, dy, dx] = 1
        pick[channel, channel, 0, 0] = 1
    for ky, kx, c in product(range(3), range(3), range(3)):
        channel = (min(ky, 1) * 2 + min(kx, 1)) * 3 + c
        read[:, channel, 2 * (ky == 2), 2 * (kx == 2)] = first[:, c, ky, kx]
    new[f"{taps.format(1)}.bias"] = old["encoder.conv_in.bias"].clone()

    for level in (1, 2):
        double = f"decoder.up_blocks.{level}.upsamplers.0.conv"
        new[f"{double}.weight"].zero_()
        new[f"{double}.weight"][range(len(first)), range(len(first)), 1, 1] = 1
        new[f"{double}.bias"].zero_()
        new[f"decoder.up_blocks.{level + 1}.resnets.0.conv2.weight"].zero_()
        new[f"decoder.up_blocks.{level + 1}.resnets.0.conv2.bias"].zero_()
    big.load_state_dict(new)
    return big


def training_schedule() -> DDPMScheduler:
    return DDPMScheduler(**{k: v for k, v in SCHEDULE.items() if k != "steps_offset"})


def pipeline(vae: AutoencoderKL, text: CLIPTextModel, net: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The parts as an ordinary diffusers pipeline, sampled with DDIM."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=net,
        scheduler=DDIMScheduler(set_alpha_to_one=False, **SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The pipeline that lies in a folder, on the CPU, without a progress bar."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], seed: int, steps: int = 25, cfg: float = 4.0
) -> np.ndarray:
    """B prompts -> pictures `[B, SIZE, SIZE, 3]`, uint8. Picture i starts from the noise of seed + i."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    out = pipe(
        list(prompts),
        height=world.SIZE,
        width=world.SIZE,
        num_inference_steps=steps,
        guidance_scale=cfg,
        generator=generators,
        output_type="np",
    ).images
    return (out * 255).round().astype("uint8")
