"""A model of a few hundred weights with every kind of layer that networks change: a UNet and a text encoder."""

import zlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 4
"""Tokens in a chunk of text; the host's real ones have 75."""
WIDTH = 6


class Layers(NamedTuple):
    """A host's own classes of layers."""

    linear: type
    conv2d: type
    group_norm: type = nn.GroupNorm
    layer_norm: type = nn.LayerNorm


class UNet(nn.Module):
    """Looks at everything by which a host may describe its batch: pooled text, control, marks of unconditional rows,
    patches of attention. It has a projection, or in its place self-attention with fused weights.
    """

    def __init__(self, channels, layers, self_attention=False):
        super().__init__()
        self.conv_in = layers.conv2d(channels, 8, 3, padding=1)
        self.down = layers.conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = layers.group_norm(2, 8)
        self.proj_in = None if self_attention else layers.conv2d(8, 8, 1)
        self.layer_norm = layers.layer_norm(8)
        self.qkv = layers.linear(8, 24, bias=False) if self_attention else None
        self.to_q, self.to_k, self.to_v = (layers.linear(width, 8, bias=False) for width in (8, WIDTH, WIDTH))
        self.to_out = layers.linear(8, 8)
        self.conv_out = layers.conv2d(8, 4, 3, padding=1)

    def forward(self, x, time, context, pooled=None, control=None, marks=None, perturbed=False):
        h = self.conv_in(x) + torch.sin(time[:, None] * torch.arange(1, 9).to(x))[..., None, None]
        if marks is not None:
            h = h + 0.1 * marks.to(x).reshape(-1, 1, 1, 1)
        if pooled is not None:
            h = h + pooled[..., None, None]
        if control:
            h = h + control["middle"].pop()
        small = self.norm(self.down(h))
        small = F.silu(small if self.proj_in is None else self.proj_in(small))
        tokens = self.layer_norm(small.flatten(2).mT)
        if self.qkv is not None:
            q, k, v = self.qkv(tokens).chunk(3, -1)
            tokens = tokens + (v if perturbed else _attention(q, k, v))
        tokens = tokens + self.to_out(_attention(self.to_q(tokens), self.to_k(context), self.to_v(context)))
        small = tokens.mT.reshape(small.shape)
        if control:
            small = small + control["output"].pop()
        return self.conv_out(F.silu(h + F.interpolate(small, size=h.shape[-2:])))


def _attention(q, k, v):
    return (q @ k.mT / 8**0.5).softmax(-1) @ v


class TextEncoder(nn.Module):
    """Mixes the tokens' own vectors; a word is a token. `embeddings` are the words that the host has learned."""

    def __init__(self, linear):
        super().__init__()
        self.transformer = nn.ModuleDict({"fc1": linear(WIDTH, 8), "fc2": linear(8, WIDTH)})
        self.embeddings = {}

    def forward(self, texts):
        words = [text.split() or ["<empty>"] for text in texts]
        length = CHUNK * max(-(-len(text) // CHUNK) for text in words)
        tokens = torch.stack(
            [torch.stack([self._vector(word) for word in text + ["<end>"] * (length - len(text))]) for text in words]
        )
        return self.transformer["fc2"](torch.tanh(self.transformer["fc1"](tokens + tokens.mean(1, keepdim=True))))

    def _vector(self, word):
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        vector = self.embeddings.get(word)
        vector = torch.randn(WIDTH, generator=generator, dtype=torch.float64) if vector is None else vector
        return vector.to(self.transformer["fc1"].bias)


@torch.no_grad()
def learned_conditioning(encoder, texts, pooled):
    """Text conditions; with `pooled` text, and the picture's size, as SDXL has them."""
    encoded = encoder(texts)
    if not pooled:
        return encoded
    size = torch.tensor([texts.width, texts.height]).to(encoded) / 64
    return {"crossattn": encoded, "vector": torch.cat([encoded.mean(1), size.expand(len(texts), 2)], 1)}
