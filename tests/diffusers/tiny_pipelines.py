"""Random pipelines of a few hundred thousand weights, and LoRA files that change them visibly."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lab.model import SCHEDULE, tokenizer

WIDTH, WIDTH_2 = 16, 24
SIZE = 64
RANK, ALPHA = 4, 2.0


def _text_config(width):
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def _unet(**changes):
    return UNet2DConditionModel(
        **{
            "sample_size": SIZE // 8,
            "layers_per_block": 2,
            "block_out_channels": (32, 64),
            "attention_head_dim": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            **changes,
        }
    )


def _vae():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=SIZE,
    )


def _finished(pipe):
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if model is not None:
            model.eval()
    with torch.no_grad():
        # A fresh UNet hardly looks at its text; these tests are about what each text does.
        for name, parameter in pipe.unet.named_parameters():
            if "attn2" in name and parameter.dim() == 2:
                parameter.mul_(3)
    return pipe


def sd(prediction_type="epsilon"):
    torch.manual_seed(0)
    return _finished(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(WIDTH)),
            tokenizer=tokenizer(),
            unet=_unet(),
            scheduler=DDIMScheduler(**SCHEDULE, prediction_type=prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl():
    torch.manual_seed(0)
    unet = _unet(
        cross_attention_dim=WIDTH + WIDTH_2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH_2,
    )
    return _finished(
        StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(WIDTH)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(WIDTH_2)),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler(**SCHEDULE),
            add_watermarker=False,
        )
    )


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_in")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
CONVOLUTIONS = ("conv1", "downsamplers.0.conv")


def write_lora(pipe, path, seed, unet=ATTENTION, text=(), strength=1.0, layout="kohya"):
    """A LoRA file for these layers, random and strong enough to change the picture."""
    generator = torch.Generator().manual_seed(seed)
    xl = hasattr(pipe, "text_encoder_2")
    parts = [
        ("lora_unet", "unet", pipe.unet, unet),
        ("lora_te1" if xl else "lora_te", "text_encoder", pipe.text_encoder, text),
    ]
    if xl:
        parts.append(("lora_te2", "text_encoder_2", pipe.text_encoder_2, text))
    state = {}
    for kohya, diffusers, model, ends in parts:
        for name, layer in model.named_modules():
            if not ends or not name.endswith(tuple(ends)) or not hasattr(layer, "weight"):
                continue
            outputs, inputs, *kernel = layer.weight.shape
            size = 0.5 * strength / (layer.weight[0].numel() * RANK) ** 0.5
            down = torch.randn(RANK, inputs, *kernel, generator=generator)
            up = torch.randn(outputs, RANK, *[1] * len(kernel), generator=generator) * size * RANK / ALPHA
            if kohya != "lora_unet" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            if layout == "kohya":
                key = f"{kohya}_{name.replace('.', '_')}"
                state |= {
                    f"{key}.lora_down.weight": down,
                    f"{key}.lora_up.weight": up,
                    f"{key}.alpha": torch.tensor(ALPHA),
                }
            else:
                state |= {f"{diffusers}.{name}.lora_A.weight": down, f"{diffusers}.{name}.lora_B.weight": up}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path
