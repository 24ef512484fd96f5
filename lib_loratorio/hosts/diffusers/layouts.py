"""The layouts that trainers write LoRA files in, told from the tensors' names: kohya's, PEFT's, diffusers' and others.

Whatever the layout, a layer has a pair of factors, and some layers have more: see `Factors`. A layer keeps the name
that the file gives it; `fitting` finds the model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.utils.other import get_pattern_key

from lib_loratorio.hosts.diffusers.files import LoraFile, LoraFileError

PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "oft_unet_": "unet",
    "lora_transformer_": "transformer",
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "clip_l.": "text_encoder",  # OneTrainer
    "clip_g.": "text_encoder_2",
    "diffusion_model.": "unet",  # ComfyUI
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
"""How layers' names begin, by layout, and the part of the pipeline that they are of."""

WRAPPER = "base_model.model."
"""What PEFT puts before the names in a model that it has wrapped; it may come before or after a prefix."""

PART = re.compile(
    r"\.lora_(?P<factor>A|B|down|up|mid)(?:\.(?P<adapter>[^.]+))?\.weight$"
    r"|\.lora_(?:B|up)(?:\.[^.]+)?\.(?P<bias>bias)$"
    r"|\.lora_(?P<dora>magnitude_vector)(?:\.[^.]+)*$"
    r"|(?:\.lora|\.lora_linear_layer|(?<=_lora))\.(?P<old>down|up)\.weight$"
    r"|\.(?P<alpha>alpha)$"
)
"""The end of a tensor's name: which part of its layer it is. PEFT can have the adapter's name in it."""

PARTS = {"A": "down", "B": "up"}

OTHER_KINDS = {
    "dora_scale": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT",
    "a1.weight": "a GLoRA",
    "b1.weight": "a GLoRA",
    "on_input": "an IA3",
}
"""Parts of tensors' names that tell kinds which diffusers cannot read, or reads as another kind."""

CHANGES = {
    r"\.diff(_b)?$": "changes of whole weights (diff)",
    r"\.[wb]_norm$": "changes of normalisation layers (w_norm, b_norm)",
}
"""The same of changes without factors."""

OTHER_CONTENTS = {
    **CHANGES,
    r"\.modules_to_save\.": "whole layers beside its factors (modules_to_save)",
    r"\.lora_embedding_[AB]": "factors of embeddings",
}
"""The same of what a LoRA file may hold besides, without which it would be another LoRA."""

OTHER_FILES = {
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.": "a checkpoint of a whole model",
    r"^(emb_params|string_to_param|clip_[lg])$": "an embedding (textual inversion)",
    r"^lora_controlnet$": "a ControlNet",
}

EMBEDDINGS = "bundle_emb."
"""How the names of embeddings begin that OneTrainer packs into a LoRA file."""


class Place(NamedTuple):
    """Where a layer is: in which part of the pipeline, empty where the file does not say, and its name in the file."""

    component: str
    name: str

    def __str__(self) -> str:
        return f"{self.component}.{self.name}" if self.component else self.name


@dataclass(frozen=True)
class Factors:
    """One layer's change: `scale * up @ down`.

    down: `[rank, inputs, *kernel]`. up: `[outputs, rank, ...]`. magnitude: DoRA's. bias: of up.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def acts(self) -> bool:
        """Whether it changes anything; DoRA does so even with factors of 0."""
        if self.magnitude is not None:
            return True
        product = bool(self.down.any()) and bool(self.up.any())
        return bool(self.scale) and (product or (self.bias is not None and bool(self.bias.any())))


def layers(path: Path | str, file: LoraFile) -> dict[Place, Factors]:
    """The layers of the LoRA file that lies at `path`.

    Raises LoraFileError for a file that is no LoRA, holds more than one, is broken or is in an unknown layout.
    """
    parts: dict[Place, dict[str, torch.Tensor]] = {}
    adapters, unknown = set(), []
    for name, tensor in file.tensors.items():
        if name.startswith(EMBEDDINGS):
            continue
        found = PART.search(name)
        if found is None or _kind(name):
            unknown.append(name)
            continue
        if not torch.isfinite(tensor).all():
            raise LoraFileError(path, f"is broken: it has values that are not finite (NaN or Inf), such as in {name}")
        adapters |= {found["adapter"]} - {None}
        parts.setdefault(place_of(name[: found.start()]), {})[_part(found)] = tensor
    # An alpha without factors is an alpha of nothing.
    parts = {place: of_layer for place, of_layer in parts.items() if of_layer.keys() != {"alpha"}}
    if unknown or not parts:
        raise LoraFileError(path, _reason(unknown, bool(parts)))
    if len(adapters) > 1:
        raise LoraFileError(path, f"holds several adapters ({', '.join(sorted(adapters))}); save each in its own file")
    return {place: _factors(path, place, of_layer, file.configs) for place, of_layer in parts.items()}


def embeddings(file: LoraFile) -> list[str]:
    """The names of the embeddings that a LoRA file brings with it."""
    return sorted({name.split(".")[1] for name in file.tensors if name.startswith(EMBEDDINGS)})


def is_of_other_kind(name: str) -> str:
    """What a tensor's name tells of a kind that diffusers does not know, as "is a LoHa file"; empty without."""
    if kind := _kind(name):
        return f"is {kind} file"
    return next((f"holds {text}" for pattern, text in CHANGES.items() if re.search(pattern, name)), "")


def place_of(name: str) -> Place:
    """Where a layer is, by its name in a file."""
    name = name.replace(WRAPPER, "", 1)
    for prefix, component in PREFIXES.items():
        if name.startswith(prefix):
            return Place(component, name.removeprefix(prefix))
    return Place("", name)


def _part(found: re.Match) -> str:
    part = next(found[group] for group in ("factor", "bias", "dora", "old", "alpha") if found[group])
    return PARTS.get(part, part)


def _factors(
    path: Path | str, place: Place, of_layer: Mapping[str, torch.Tensor], configs: Mapping[str, Mapping[str, Any]]
) -> Factors:
    for part in ("down", "up"):
        if part not in of_layer:
            raise LoraFileError(path, f"is incomplete: the layer {place} lacks its {part} factor")
    down, mid, up = of_layer["down"], of_layer.get("mid"), of_layer["up"]
    rank = down.shape[0] if down.dim() > 1 else 0
    if not rank or up.dim() < 2 or up.shape[1] != rank or (mid is not None and mid.shape[:2] != (rank, rank)):
        shapes = ", ".join(str(tuple(factor.shape)) for factor in (down, mid, up) if factor is not None)
        raise LoraFileError(path, f"is broken: the factors of the layer {place} do not fit each other ({shapes})")
    if mid is not None:
        # A convolution between two pointwise ones (CP): with the one before it, a convolution of the same rank.
        down = torch.einsum("rs...,si->ri...", mid, down.flatten(1).to(mid.dtype))
    scale = _scale(path, place, rank, of_layer.get("alpha"), configs)
    return Factors(down, up, scale, of_layer.get("magnitude_vector"), of_layer.get("bias"))


def _scale(
    path: Path | str, place: Place, rank: int, alpha: torch.Tensor | None, configs: Mapping[str, Mapping[str, Any]]
) -> float:
    """Alpha by rank; where neither the file nor its configuration tells an alpha, it is the rank."""
    if alpha is not None:
        if alpha.numel() != 1:
            raise LoraFileError(path, f"is broken: the alpha of the layer {place} is no single number")
        return alpha.item() / rank
    config = configs.get(place.component) or configs.get("") or {}
    try:
        patterns = config.get("alpha_pattern") or {}
        value = float(patterns.get(get_pattern_key(patterns, place.name), config.get("lora_alpha", rank)))
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise LoraFileError(path, f"has a configuration whose alpha cannot be read ({error})") from error
    if not math.isfinite(value):
        raise LoraFileError(path, "has an alpha in its configuration that is not finite")
    return value / (math.sqrt(rank) if config.get("use_rslora") else rank)


# What is none


def _kind(name: str) -> str:
    """The kind, other than a LoRA's, that a tensor's name tells; empty without."""
    return next((kind for part, kind in OTHER_KINDS.items() if part in name), "")


def _reason(unknown: Iterable[str], has_factors: bool) -> str:
    """Why a file with these tensors, which are no LoRA's, cannot be used; `has_factors` with a LoRA's beside them."""
    unknown = list(unknown)
    if not unknown:
        return "is in a layout that is not readable: it has no layer with a pair of factors"
    if kind := next(filter(None, map(_kind, unknown)), ""):
        return f"is {kind} file, which diffusers cannot read; use a plain LoRA"
    if contents := _first(OTHER_CONTENTS, unknown):
        return f"holds {contents}, which diffusers cannot apply; use a plain LoRA"
    if contents := _first(OTHER_FILES, unknown):
        return f"is no LoRA but {contents}"
    if has_factors and all(re.search(r"\.(weight|bias)$", name) and "lora" not in name for name in unknown):
        return (
            f"holds whole layers beside its factors (modules_to_save), such as {unknown[0]}, which diffusers cannot "
            "apply; use a plain LoRA"
        )
    return f"is in a layout that is not readable: it has tensors such as {unknown[0]}"


def _first(table: Mapping[str, str], names: Iterable[str]) -> str:
    """What the table says of the first of its patterns that one of the names has; empty without."""
    names = list(names)
    return next((text for pattern, text in table.items() if any(re.search(pattern, name) for name in names)), "")
