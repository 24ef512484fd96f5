"""Kinds of LoRAs that diffusers does not know: LoHa, LoKr and OFT by the equations of the package lycoris-lora, and
IA3, GLoRA, kohya's DoRA, changes of whole weights and of norms, whose equations are short.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lib_loratorio.beside import Beside
from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.hosts.diffusers.files import LoraFile, LoraFileError
from lib_loratorio.hosts.diffusers.fitting import OTHER_MODEL
from lib_loratorio.hosts.diffusers.layouts import Place, is_of_other_kind, place_of
from lib_loratorio.hosts.diffusers.offloading import set_values, values_of

INSTALL = "for which the package lycoris-lora is needed: pip install lycoris-lora"

OF_LYCORIS = ("hada_", "lokr_", "oft_")
"""How tensors begin whose equations are that package's."""

LOKR = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")

ENDS = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "dora_scale"),
    *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{part}" for part in LOKR),
    *("oft_blocks", "rescale"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    *("diff", "diff_b", "w_norm", "b_norm"),
    *("alpha", "on_input", "weight"),
)
"""The ends of tensors' names; of two that fit, the first."""

Tensors = Mapping[str, torch.Tensor]
"""Of one layer, by the end of their names."""

Scaled = tuple[Tensors, float]
"""A layer's tensors, and what its block weight multiplies the strength by."""


def is_known() -> bool:
    """Whether lycoris-lora is installed."""
    return importlib.util.find_spec("lycoris") is not None


def divided(told: str, file: LoraFile) -> tuple[dict[Place, dict[str, torch.Tensor]], LoraFile]:
    """The layers of such kinds in a file, and the rest of it. Raises LoraFileError, which calls the file what is
    `told`.
    """
    telling = [name for name in file.tensors if is_of_other_kind(name)]
    if not telling:
        return {}, file
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in file.tensors.items():
        if end := next((end for end in ENDS if name.endswith(f".{end}")), None):
            by_layer.setdefault(name.removesuffix(f".{end}"), {})[end] = tensor
        elif kind := is_of_other_kind(name):
            raise LoraFileError(told, f"{kind}, with tensors that are not readable, such as {name}")
    others = {
        layer: tensors
        for layer, tensors in by_layer.items()
        if any(is_of_other_kind(f"layer.{end}") for end in tensors)
    }
    for layer, tensors in others.items():
        if not is_known() and (end := next((end for end in tensors if end.startswith(OF_LYCORIS)), None)):
            raise LoraFileError(told, f"{is_of_other_kind(f'layer.{end}')}, {INSTALL}")
        for end, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                values = "values that are not finite (NaN or Inf)"
                raise LoraFileError(told, f"is broken: it has {values}, such as in {layer}.{end}")
    taken = {f"{layer}.{end}" for layer, tensors in others.items() for end in tensors}
    rest = {name: tensor for name, tensor in file.tensors.items() if name not in taken}
    return {place_of(layer): tensors for layer, tensors in others.items()}, LoraFile(rest, file.configs)


def ends_of(tensors: Tensors) -> tuple[str, ...]:
    """What a layer of such a kind is told by in messages."""
    return tuple(tensors)


def acting_on(
    pipe: Any,
    told: str,
    layers: Mapping[str, Mapping[str, Tensors]],
    factors: Mapping[str, Mapping[str, float]],
    strength: float,
) -> dict[str, dict[str, Scaled]]:
    """Those of the layers that change anything, with their block weights. Raises LoraFileError where a rule does not
    fit its layer.
    """
    found: dict[str, dict[str, Scaled]] = {}
    for component, of_model in layers.items():
        for name, tensors in of_model.items():
            layer, factor = plain_layer(getattr(pipe, component), name), factors[component][name]
            if not factor:
                continue
            bias = getattr(layer, "bias", None)
            before = layer.weight.detach(), bias if bias is None else bias.detach()
            try:
                after = changed(tensors, strength * factor, *before)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise LoraFileError(
                    told, f"does not fit the layer {component}.{name} ({error}): {OTHER_MODEL}"
                ) from error
            if any(one is not other and not torch.equal(one, other) for one, other in zip(before, after)):
                found.setdefault(component, {})[name] = tensors, factor
    return found


@torch.no_grad()
def changed(
    tensors: Tensors, strength: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A layer's weight and bias with an adapter at this strength, on top of the given ones.

    Raises RuntimeError where the adapter does not fit the layer.
    """
    tensors = {end: tensor.to(weight) for end, tensor in tensors.items()}
    try:
        difference = _difference(tensors, weight, strength)
        if "dora_scale" in tensors:
            difference = strength * (_decomposed(weight + difference / strength, tensors["dora_scale"]) - weight)
        changes = difference is not None
        weight = weight + difference.reshape(weight.shape) if changes else weight
        of_bias = next((tensors[end] for end in ("diff_b", "b_norm") if end in tensors), None)
        if of_bias is not None and bias is not None:
            bias = bias + strength * of_bias.reshape(bias.shape)
    except (TypeError, ValueError, IndexError, KeyError, AssertionError, ZeroDivisionError) as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return weight, bias


def _difference(t: Tensors, weight: torch.Tensor, strength: float) -> torch.Tensor | None:
    """What is added to the weight; None where only the bias is changed."""
    get = t.get
    if "hada_w1_a" in t:
        from lycoris.functional import loha

        parts = t["hada_w1_b"], t["hada_w1_a"], t["hada_w2_b"], t["hada_w2_a"], get("hada_t1"), get("hada_t2")
        return strength * loha.diff_weight(*parts, gamma=_scale(t, t["hada_w1_b"].shape[0]), backend="torch")
    if "lokr_w1" in t or "lokr_w1_a" in t:
        from lycoris.functional import lokr

        parts = [get(f"lokr_{part}") for part in LOKR]
        inner = next((part for part in (get("lokr_w1_b"), get("lokr_w2_b")) if part is not None), None)
        divisor = next((part.shape[1] for part in (get("lokr_w1_a"), get("lokr_w2_a")) if part is not None), 1)
        # What it is given it divides by what it takes for the rank, which is none with both factors whole.
        scale = 1.0 if inner is None else _scale(t, inner.shape[0])
        return strength * lokr.diff_weight(*parts, gamma=scale * divisor, backend="torch")
    if "oft_blocks" in t:
        from lycoris.functional import boft, diag_oft

        constraint = t["alpha"].item() if get("alpha") is not None and t["alpha"].item() > 0 else None
        blocks = t["oft_blocks"], get("rescale")
        if t["oft_blocks"].dim() == 4:
            return boft.diff_weight(weight, *blocks, constraint=constraint, scale=strength, backend="torch")
        return strength * diag_oft.diff_weight(weight, *blocks, constraint=constraint, backend="torch")
    if "a1.weight" in t:
        inner, outer = t["a2.weight"] @ t["a1.weight"], t["b2.weight"] @ t["b1.weight"]
        rank = t["a1.weight"].shape[0]
        return strength * _scale(t, rank) * (weight.flatten(1) @ inner + outer)
    if "on_input" in t:
        of_inputs = bool(t["on_input"])
        shape = (1, -1) if of_inputs else (-1, 1)
        return strength * weight * t["weight"].view(*shape, *(1 for _ in weight.shape[2:]))
    if "lora_down.weight" in t:
        down, up, mid = t["lora_down.weight"], t["lora_up.weight"], get("lora_mid.weight")
        if mid is not None:
            down = torch.einsum("rs...,si->ri...", mid, down.flatten(1))
        return strength * _scale(t, up.shape[1]) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    changes = next((t[end] for end in ("diff", "w_norm") if end in t), None)
    if changes is not None:
        return strength * changes
    if "diff_b" in t or "b_norm" in t:
        return None
    raise ValueError(f"a layer with {', '.join(t)} alone is of no kind that is known")


def _scale(t: Tensors, rank: int) -> float:
    return t["alpha"].item() / rank if "alpha" in t else 1.0


def _decomposed(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA: the weight in the lengths that it has learned, of outputs `[outputs, 1, ...]` or of inputs `[1, inputs,
    ...]`.
    """
    magnitude = magnitude.reshape(*magnitude.shape, *(1 for _ in range(weight.dim() - magnitude.dim())))
    by = 0 if magnitude.shape[0] == weight.shape[0] and magnitude.numel() == weight.shape[0] else 1
    lengths = torch.linalg.vector_norm(weight, dim=[dim for dim in range(weight.dim()) if dim != by], keepdim=True)
    return weight / lengths * magnitude


# Merged for a while

_MERGED: Beside[dict[tuple[nn.Module, str], torch.Tensor]] = Beside()
"""Of a model, the layers' parameters that are changed, and what they were."""


def merge(model: nn.Module, adapters: Sequence[tuple[Mapping[str, Scaled], float]]) -> None:
    """Has a model's weights with these adapters' layers at their strengths, one after the other, and with no others;
    without any they are what they were, bit by bit.
    """
    for (layer, parameter), before in (_MERGED.get(model) or {}).items():
        set_values(layer, parameter, before)
    _MERGED.drop(model)
    kept: dict[tuple[nn.Module, str], torch.Tensor] = {}
    try:
        for layers_of, strength in adapters:
            for name, (tensors, factor) in layers_of.items():
                layer = plain_layer(model, name)
                before = values_of(layer, "weight"), values_of(layer, "bias")
                after = changed(tensors, strength * factor, *before)
                for parameter, value, old in zip(("weight", "bias"), after, before):
                    if value is not None and old is not None:
                        kept.setdefault((layer, parameter), old)
                        set_values(layer, parameter, value)
    finally:
        if kept:
            _MERGED.set(model, kept)


def plain_layer(model: nn.Module, name: str) -> nn.Module:
    """A layer of the model, without peft's around it."""
    layer = model.get_submodule(name)
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
