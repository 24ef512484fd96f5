"""What a LoRA file holds, told from the names and shapes in it: kinds of layers, layout, parts of a model."""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

KINDS = (
    ("dora_scale", "dora"),
    ("hada_", "loha"),
    ("lokr_", "lokr"),
    ("oft_", "oft"),
    ("a1.weight", "glora"),
    ("on_input", "ia3"),
    ("w_norm", "norm"),
    ("lora_mid", "cp"),
    ("lora_", "lora"),
    ("lora.", "lora"),
    ("diff", "full"),
)
"""A part of a tensor's name and the kind of layer it tells, the telling ones first."""

FACTORED = ("lora", "cp")
"""Kinds that stay factors; the others are computed as full deltas, and cached within the memory budget."""

ENDS = (
    ".lora_",
    ".hada_",
    ".lokr_",
    ".oft_",
    ".lora.",
    "_lora.",
    ".a1.",
    ".a2.",
    ".b1.",
    ".b2.",
    ".dora_scale",
    ".diff",
    ".w_norm",
    ".b_norm",
    ".on_input",
    ".alpha",
    ".weight",
    ".bias",
)
"""What follows a layer's name in a tensor's."""

TEXT_ENCODERS = ("lora_te", "text_encoder", "base_model.model.text_model")

KOHYA, DIFFUSERS, PEFT, NAMED_PEFT, UNKNOWN = "kohya", "diffusers", "PEFT", "PEFT (named adapter)", "unknown"
"""Layouts, which are ways of naming the same tensors. PEFT's own saving adds an adapter's name, or a prefix."""


class Layers(NamedTuple):
    """The numbers of layers that a file has for a UNet or transformer, and for text encoders."""

    denoiser: int
    text: int


def describe(path: str) -> dict[str, Any]:
    """Kinds, ranks and number of layers of a LoRA file, and whether it changes text encoders.

    Returns `{"layers": {kind: number}, "ranks": [...], "text_encoder": bool, "factored": number, "dense": number}`, or
    `{"error": message}` for a file that cannot be read.
    """
    try:
        return _described(path, os.path.getmtime(path))
    except OSError as error:
        return {"error": f"{type(error).__name__}: {error.strerror}"}
    except SafetensorError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def layers(path: str) -> Layers | None:
    """How many layers a file has for which part of a model; None for one that is no safetensors file."""
    tensors = _tensors(path)
    if tensors is None:
        return None
    kinds = {layer for layer, ends in _by_layer(tensors).items() if _kind(ends)}
    text = sum(layer.startswith(TEXT_ENCODERS) for layer in kinds)
    return Layers(len(kinds) - text, text)


def layout(path: str) -> str | None:
    """The layout of a safetensors file, by its tensors' names; None for another file."""
    tensors = _tensors(path)
    if tensors is None:
        return None
    if any(name.startswith("base_model.model.") or _has_adapter_name(name) for name in tensors):
        return NAMED_PEFT
    if any(name.startswith(("lora_unet_", "lora_te", "lora_transformer_", "oft_unet_")) for name in tensors):
        return KOHYA
    if any(".lora_A." in name for name in tensors):
        return PEFT
    if any(".lora." in name or "_lora." in name for name in tensors):
        return DIFFUSERS
    return UNKNOWN


def _has_adapter_name(tensor: str) -> bool:
    """Whether the adapter's name stands behind `lora_A` or `lora_B`, as in `lora_A.default.weight`."""
    for part in (".lora_A.", ".lora_B."):
        _, found, end = tensor.partition(part)
        if found and end not in ("weight", "bias"):
            return True
    return False


def _tensors(path: str) -> tuple[str, ...] | None:
    try:
        return _names(path, os.path.getmtime(path))
    except (OSError, SafetensorError):
        return None


@lru_cache(maxsize=1024)
def _names(path: str, changed: float) -> tuple[str, ...]:
    with safe_open(path, framework="pt") as file:
        return tuple(file.keys())


@lru_cache(maxsize=1024)
def _described(path: str, changed: float) -> dict[str, Any]:
    ranks: set[int] = set()
    with safe_open(path, framework="pt") as file:
        tensors = list(file.keys())
        for name in tensors:
            if any(part in name for part in ("lora_down", "lora_A.", "lora.down")):
                ranks.add(file.get_slice(name).get_shape()[0])
    by_layer = _by_layer(tensors)
    kinds = Counter(kind for ends in by_layer.values() if (kind := _kind(ends)))
    factored = sum(kinds[kind] for kind in FACTORED)
    return {
        "layers": dict(sorted(kinds.items())),
        "ranks": sorted(ranks),
        "text_encoder": any(name.startswith(TEXT_ENCODERS) for name in by_layer),
        "factored": factored,
        "dense": sum(kinds.values()) - factored,
    }


def _by_layer(tensors) -> dict[str, set[str]]:
    """The ends of the tensors' names by the layer they belong to."""
    found: dict[str, set[str]] = {}
    for name in tensors:
        layer = _layer(name)
        found.setdefault(layer, set()).add(name[len(layer) :])
    return found


def _layer(name: str) -> str:
    positions = [position for end in ENDS if (position := name.find(end)) > 0]
    return name[: min(positions)] if positions else name


def _kind(ends: set[str]) -> str | None:
    """The kind of a layer by the ends of its tensors' names."""
    return next((kind for part, kind in KINDS if any(part in end for end in ends)), None)
