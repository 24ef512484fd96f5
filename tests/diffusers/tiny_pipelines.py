"""Random pipelines of a few hundred thousand weights, and LoRA files that change them visibly."""

import accelerate
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

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


def _vae(**changes):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=SIZE,
        **changes,
    )


def denoiser(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _finished(pipe):
    pipe.set_progress_bar_config(disable=True)
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            model.eval()
    with torch.no_grad():
        # A fresh model hardly looks at its text; these tests are about what each text does.
        for name, parameter in denoiser(pipe).named_parameters():
            if parameter.dim() == 2 and any(part in name for part in ("attn2", "context_embedder", "text_embedder")):
                parameter.mul_(3)
    return pipe


def sd(prediction_type="epsilon", **unet):
    torch.manual_seed(0)
    return _finished(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(WIDTH)),
            tokenizer=tokenizer(),
            unet=_unet(**unet),
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
    xl = "text_encoder_2" in pipe._lora_loadable_modules
    parts = [
        ("lora_unet", "unet" if hasattr(pipe, "unet") else "transformer", denoiser(pipe), unet),
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


def latents(pipe, prompt="a cat", steps=2, **more):
    """Of one picture, with the same noise each time."""
    generator = torch.Generator().manual_seed(1)
    size = {"height": SIZE, "width": SIZE}
    wanted = {"num_inference_steps": steps, "output_type": "latent", "generator": generator, **size}
    return pipe(prompt=prompt, **wanted, **more).images


def as_dora(path):
    """The LoRA file in diffusers' layout made one of DoRA, whose changes are of whole weights."""
    generator, state = torch.Generator().manual_seed(7), load_file(path)
    for name in [name for name in state if name.endswith("lora_B.weight")]:
        outputs, _, *kernel = state[name].shape
        magnitude = torch.rand(outputs, generator=generator) + 0.5
        shape = (1, -1, *kernel) if kernel else (-1,)
        state[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude.view(shape)
    save_file(state, path)
    return path


def offloaded(pipe):
    """As enable_sequential_cpu_offload does it, which asks for an accelerator: weights are nowhere between calls."""
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    return pipe


# Other kinds of models


def _flow_vae():
    return _vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


def _flow_scheduler():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


SD3_SIZES = {
    "sample_size": SIZE // 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 48,
    "caption_projection_dim": 32,
    "pooled_projection_dim": WIDTH + WIDTH_2,
    "pos_embed_max_size": 16,
}


def sd3():
    torch.manual_seed(0)
    return _finished(
        StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**SD3_SIZES, num_layers=2),
            vae=_flow_vae(),
            scheduler=_flow_scheduler(),
            text_encoder=CLIPTextModelWithProjection(_text_config(WIDTH)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(WIDTH_2)),
            text_encoder_3=None,
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            tokenizer_3=None,
        )
    )


def flux(guidance_embeds=True):
    """As FLUX.1-dev, or as schnell without embedded guidance."""
    torch.manual_seed(0)
    t5 = T5Config(
        vocab_size=49408, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return _finished(
        FluxPipeline(
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=WIDTH,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 4, 8),
            ),
            vae=_flow_vae(),
            scheduler=_flow_scheduler(),
            text_encoder=CLIPTextModel(_text_config(WIDTH)),
            text_encoder_2=T5EncoderModel(t5),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
        )
    )


def _acting(net):
    """Fresh ones begin with outputs of 0, and hardly look at their text."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out", "pos_embed_input")):
                parameter.normal_(std=0.1)
            elif name.startswith(("context_embedder", "time_text_embed.text_embedder")) and parameter.dim() == 2:
                parameter.mul_(3)
    return net.eval()


def controlnet(pipe):
    torch.manual_seed(1)
    return _acting(ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8, 8, 16)))


def flux_controlnet(pipe):
    torch.manual_seed(1)
    sizes = {"attention_head_dim": 16, "num_attention_heads": 2}
    return _acting(FluxControlNetModel.from_transformer(pipe.transformer, 1, 1, **sizes))


def sd3_controlnet(pipe, reads_pooled=False):
    torch.manual_seed(1)
    return _acting(SD3ControlNetModel(**SD3_SIZES, num_layers=1, force_zeros_for_pooled_projection=not reads_pooled))


DIT_ATTENTION = ("attn.to_q", "attn.to_k", "attn.add_q_proj", "attn.to_out.0", "ff.net.2", "proj_mlp", "norm1.linear")
