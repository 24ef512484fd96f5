"""What kinds of layers a LoRA file has, told from the names and shapes in it."""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from typing import Any

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

TEXT_ENCODERS = ("lora_te", "text_encoder")


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


@lru_cache(maxsize=1024)
def _described(path: str, changed: float) -> dict[str, Any]:
    layers: dict[str, set[str]] = {}
    ranks: set[int] = set()
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            layer = _layer(name)
            layers.setdefault(layer, set()).add(name[len(layer) :])
            if any(part in name for part in ("lora_down", "lora_A.", "lora.down")):
                ranks.add(file.get_slice(name).get_shape()[0])
    kinds = Counter(kind for names in layers.values() if (kind := _kind(names)))
    factored = sum(kinds[kind] for kind in FACTORED)
    return {
        "layers": dict(sorted(kinds.items())),
        "ranks": sorted(ranks),
        "text_encoder": any(name.startswith(TEXT_ENCODERS) for name in layers),
        "factored": factored,
        "dense": sum(kinds.values()) - factored,
    }


def _layer(name: str) -> str:
    places = [place for end in ENDS if (place := name.find(end)) > 0]
    return name[: min(places)] if places else name


def _kind(ends: set[str]) -> str | None:
    """The kind of a layer by the ends of its tensors' names."""
    return next((kind for part, kind in KINDS if any(part in end for end in ends)), None)
