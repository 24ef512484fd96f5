"""A model of a few hundred weights with every kind of layer that networks change."""

import zlib

import networks
import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 4
"""Tokens in a chunk of text; the host's real ones have 75."""
WIDTH = 6


class Linear(networks.Merging, nn.Linear):
    pass


class Conv2d(networks.Merging, nn.Conv2d):
    pass


class GroupNorm(networks.Merging, nn.GroupNorm):
    pass


class LayerNorm(networks.Merging, nn.LayerNorm):
    pass


class UNet(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv_in = Conv2d(channels, 8, 3, padding=1)
        self.down = Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = GroupNorm(2, 8)
        self.proj_in = Conv2d(8, 8, 1)
        self.layer_norm = LayerNorm(8)
        self.to_q, self.to_k, self.to_v = (
            Linear(8, 8, bias=False),
            Linear(WIDTH, 8, bias=False),
            Linear(WIDTH, 8, bias=False),
        )
        self.to_out = Linear(8, 8)
        self.conv_out = Conv2d(8, 4, 3, padding=1)

    def forward(self, x, time, context, vector=None):
        h = self.conv_in(x) + torch.sin(time * torch.arange(1, 9).to(x))[..., None, None]
        if vector is not None:
            h = h + vector[..., None, None]
        small = F.silu(self.proj_in(self.norm(self.down(h))))
        tokens = self.layer_norm(small.flatten(2).mT)
        attention = (self.to_q(tokens) @ self.to_k(context).mT / 8**0.5).softmax(-1)
        tokens = tokens + self.to_out(attention @ self.to_v(context))
        small = tokens.mT.reshape(small.shape)
        return self.conv_out(F.silu(h + F.interpolate(small, size=h.shape[-2:])))


class TextEncoder(nn.Module):
    """Mixes the tokens' own vectors; a word is a token."""

    def __init__(self):
        super().__init__()
        self.transformer_fc1, self.transformer_fc2 = Linear(WIDTH, 8), Linear(8, WIDTH)
        self.embeddings = {}

    def forward(self, texts):
        words = [text.split() or ["<empty>"] for text in texts]
        length = CHUNK * max(-(-len(text) // CHUNK) for text in words)
        tokens = torch.stack(
            [torch.stack([self._vector(word) for word in text + ["<end>"] * (length - len(text))]) for text in words]
        )
        return self.transformer_fc2(torch.tanh(self.transformer_fc1(tokens + tokens.mean(1, keepdim=True))))

    def _vector(self, word):
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        vector = self.embeddings.get(word)
        return (torch.randn(WIDTH, generator=generator, dtype=torch.float64) if vector is None else vector).to(
            self.transformer_fc1.weight
        )


class CheckpointInfo:
    def __init__(self, title):
        self.title = title


class SdModel(nn.Module):
    cond_stage_key = "txt"
    is_sd1, is_sd2, is_sdxl = True, False, False

    def __init__(self, seed=0, channels=4, dict_conditions=False, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Module()
            self.model.diffusion_model = UNet(channels)
            self.cond_stage_model = TextEncoder()
        self.model.conditioning_key = "hybrid" if channels == 9 else "crossattn"
        self.dict_conditions = dict_conditions
        self.sd_checkpoint_info = CheckpointInfo(f"tiny {seed}")
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=dtype)
        self.to(dtype).requires_grad_(False)
        self.network_layer_mapping = {}
        for root in (self.cond_stage_model, self.model):
            for name, module in root.named_modules():
                module.network_layer_name = name.replace(".", "_")
                self.network_layer_mapping[module.network_layer_name] = module
        self.cond_stage_model_empty_prompt = self.cond_stage_model([""])

    @property
    def dtype(self):
        return self.cond_stage_model.transformer_fc1.weight.dtype

    def get_learned_conditioning(self, texts):
        with torch.no_grad():
            encoded = self.cond_stage_model(texts)
        if not self.dict_conditions:
            return encoded
        size = torch.tensor([texts.width, texts.height]).to(encoded) / 64
        return {"crossattn": encoded, "vector": torch.cat([encoded.mean(1), size.expand(len(texts), 2)], 1)}

    def apply_model(self, x, time, cond):
        if self.model.conditioning_key == "hybrid":
            x = torch.cat([x, *cond["c_concat"]], 1)
        context = cond["crossattn"] if "crossattn" in cond else torch.cat(cond["c_crossattn"], 1)
        assert len(context) == len(x) == len(time), "rows of the inputs differ"
        return self.model.diffusion_model(x, time.reshape(-1, 1).to(x) / 100, context, cond.get("vector"))
