"""A model of a few hundred weights with every kind of layer that networks change, behind the host's patchers."""

import zlib
from copy import copy

import torch
import torch.nn.functional as F
from backend import memory_management
from backend.patcher.base import ModelPatcher
from backend.patcher.lora import merge_lora_to_weight
from torch import nn

CHUNK = 4
"""Tokens in a chunk of text; the host's real ones have 75."""
WIDTH = 6


class Linear(nn.Module):
    """The host's linear layers are not torch's. Its weight may be stored as integers, packed into one dimension."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 4) if bias else None
        self.scale = None

    def quantise(self, gguf=False):
        self.scale = self.weight.abs().max() / 127
        self.weight = nn.Parameter((self.weight / self.scale).round().to(torch.int8).flatten(), requires_grad=False)
        self.weight.baked, self.weight.gguf_cls = False, Gguf(self) if gguf else None

    def forward(self, x):
        weight = self.weight
        if self.scale is not None:
            weight = (weight.to(x) * self.scale).reshape(self.out_features, self.in_features)
        return F.linear(x, *_with_online_networks(self, weight))


class Gguf:
    """How the GGUF weight of a layer is read: in an order into which it is brought before."""

    def __init__(self, layer):
        self.layer = layer

    def bake(self, weight):
        weight.baked = True

    def dequantize_pytorch(self, weight):
        if not weight.baked:
            raise ValueError("not baked")
        return (weight.data * self.layer.scale).reshape(self.layer.out_features, self.layer.in_features)


class Conv2d(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, *_with_online_networks(self, self.weight))


def _with_online_networks(layer, weight):
    """Weight and bias with the patches that are not merged into what is stored."""
    patches = vars(layer).get("forge_online_loras", {})
    return [
        merge_lora_to_weight(patches[name], value.clone(), computation_dtype=value.dtype) if name in patches else value
        for name, value in (("weight", weight), ("bias", layer.bias))
    ]


class UNet(nn.Module):
    """Looks at everything that describes its batch: control, marks of unconditional rows, pooled text, patches of
    attention.
    """

    def __init__(self, channels):
        super().__init__()
        self.conv_in = Conv2d(channels, 8, 3, padding=1)
        self.down = Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.layer_norm = nn.LayerNorm(8)
        self.qkv = Linear(8, 24, bias=False)
        self.to_q, self.to_k, self.to_v = (
            Linear(8, 8, bias=False),
            Linear(WIDTH, 8, bias=False),
            Linear(WIDTH, 8, bias=False),
        )
        self.to_out = Linear(8, 8)
        self.conv_out = Conv2d(8, 4, 3, padding=1)

    def forward(self, x, time, context, y=None, control=None, transformer_options=None):
        options = transformer_options or {}
        assert len(context) == len(x) == len(time) == len(options["cond_mark"]), "rows of the inputs differ"
        assert [options["cond_mark"][row] for row in options["uncond_indices"]] == [1] * len(options["uncond_indices"])
        assert sorted(options["cond_indices"] + options["uncond_indices"]) == list(range(len(x)))
        h = self.conv_in(x) + torch.sin(time[:, None] * torch.arange(1, 9).to(x))[..., None, None]
        h = h + 0.1 * options["cond_mark"].to(x).reshape(-1, 1, 1, 1)
        if y is not None:
            h = h + y[..., None, None]
        if control:
            h = h + control["middle"].pop()
        small = F.silu(self.norm(self.down(h)))
        tokens = self.layer_norm(small.flatten(2).mT)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        tokens = tokens + (v if options.get("perturbed") else _attention(q, k, v))
        tokens = tokens + self.to_out(_attention(self.to_q(tokens), self.to_k(context), self.to_v(context)))
        small = tokens.mT.reshape(small.shape)
        if control:
            small = small + control["output"].pop()
        return self.conv_out(F.silu(h + F.interpolate(small, size=h.shape[-2:])))


def _attention(q, k, v):
    return (q @ k.mT / 8**0.5).softmax(-1) @ v


class KModel(nn.Module):
    """Takes latents and a sigma, gives denoised latents."""

    def __init__(self, channels):
        super().__init__()
        self.diffusion_model = UNet(channels)

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        assert kwargs.keys() <= {"y", "control_model"}, f"the model knows nothing of {[*kwargs]}"
        wide = t.reshape(-1, 1, 1, 1)
        inputs = x / (wide**2 + 1).sqrt()
        inputs = inputs if c_concat is None else torch.cat([inputs, c_concat], 1)
        return x - wide * self.diffusion_model(
            inputs, t.log(), c_crossattn, kwargs.get("y"), control, transformer_options
        )

    def memory_required(self, input_shape):
        """A row is a unit of memory."""
        return input_shape[0]


class TextEncoder(nn.Module):
    """Mixes the tokens' own vectors; a word is a token."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict({"fc1": Linear(WIDTH, 8), "fc2": Linear(8, WIDTH)})

    def forward(self, texts):
        words = [text.split() or ["<empty>"] for text in texts]
        length = CHUNK * max(-(-len(text) // CHUNK) for text in words)
        tokens = torch.stack(
            [torch.stack([self._vector(word) for word in text + ["<end>"] * (length - len(text))]) for text in words]
        )
        return self.transformer["fc2"](torch.tanh(self.transformer["fc1"](tokens + tokens.mean(1, keepdim=True))))

    def _vector(self, word):
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        return torch.randn(WIDTH, generator=generator, dtype=torch.float64).to(self.transformer["fc1"].bias)


class CLIP:
    def __init__(self, encoder):
        self.cond_stage_model = encoder
        self.patcher = ModelPatcher(encoder)

    def clone(self):
        clone = copy(self)
        clone.patcher = self.patcher.clone()
        return clone


class ForgeObjects:
    def __init__(self, unet, clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self):
        return copy(self)


class ControlNet:
    """Looks at the picture's hint, the latents, the text and, as for modes that prefer the prompt, at what rows are
    unconditional.
    """

    def __init__(self, hint):
        self.hint, self.previous_controlnet, self.transformer_options = hint, None, {}

    def get_control(self, x, t, cond, batched_number):
        signal = self.hint.repeat(batched_number, 1, 1, 1) + x.mean(1, keepdim=True) * t.reshape(-1, 1, 1, 1)
        signal = (
            signal * (1 - 0.7 * self.transformer_options["cond_mark"].to(x).reshape(-1, 1, 1, 1))
            + cond["c_crossattn"].mean((1, 2))[:, None, None, None]
        )
        if self.previous_controlnet is not None:
            signal = signal + 2 * self.previous_controlnet.get_control(x, t, cond, batched_number)["middle"][0]
        return {"input": [], "middle": [signal], "output": [None, F.avg_pool2d(signal, 2, ceil_mode=True)]}


class SdModel:
    is_sd1 = True
    is_wan = False

    def __init__(self, seed=0, channels=4, dict_conditions=False, dtype=torch.float64, quantised=False):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet, encoder = KModel(channels), TextEncoder()
        unet.to(dtype).requires_grad_(False)
        encoder.to(dtype).requires_grad_(False)
        if quantised:
            for layer in unet.modules():
                if isinstance(layer, Linear):
                    layer.quantise(gguf=quantised == "gguf")
        self.made_with = {
            "seed": seed,
            "channels": channels,
            "dict_conditions": dict_conditions,
            "dtype": dtype,
            "quantised": quantised,
        }
        self.dtype, self.dict_conditions, self.channels = dtype, dict_conditions, channels
        unet.storage_dtype = torch.int8 if quantised else dtype
        self.sd_checkpoint_info = f"tiny {seed}"
        self.current_lora_hash = str([])
        self.forge_objects = ForgeObjects(ModelPatcher(unet), CLIP(encoder))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    @torch.no_grad()
    def get_learned_conditioning(self, texts):
        clip = self.forge_objects.clip
        memory_management.load_model_gpu(clip.patcher)
        encoded = clip.cond_stage_model(texts)
        if not self.dict_conditions:
            return encoded
        size = torch.tensor([texts.width, texts.height]).to(encoded) / 64
        return {"crossattn": encoded, "vector": torch.cat([encoded.mean(1), size.expand(len(texts), 2)], 1)}

    def state(self):
        """Every stored weight, of the UNet and of the text encoder."""
        return {
            **self.forge_objects_original.unet.model.state_dict(),
            **self.forge_objects_original.clip.cond_stage_model.state_dict(),
        }
