"""Finds the layers of a pipeline that a LoRA file means, with the help of diffusers' own converters of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lib_loratorio.deltas.layers import is_linear, weight_shape
from lib_loratorio.hosts.diffusers.denoisers import NAMES, denoiser_name
from lib_loratorio.hosts.diffusers.files import COMPONENTS, LoraFileError
from lib_loratorio.hosts.diffusers.layouts import Factors, Place

T = TypeVar("T")

LEAST = 0.1
"""Of the layers that a file has for the denoiser, the share that must be in the model. A file for another kind of model
may have a few by chance, or a text encoder that both kinds have, as an SDXL file has SD 1.x's.
"""

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
"""How kohya's names begin."""

OTHER_MODEL = "it is for another kind of model"

ModelLayers = dict[str, dict[str, Factors]]
"""Factors by component of the pipeline and by the layer's name there."""


class Fit(NamedTuple):
    """The layers of a file that the pipeline has, and how many it has not."""

    layers: ModelLayers
    missing: int

    @property
    def acting(self) -> ModelLayers:
        """The layers that change anything."""
        acting = {
            component: {name: factors for name, factors in of_model.items() if factors.acts}
            for component, of_model in self.layers.items()
        }
        return {component: of_model for component, of_model in acting.items() if of_model}


def components(pipe) -> list[str]:
    """The parts of a pipeline that LoRAs can change, the denoiser first."""
    denoiser = denoiser_name(pipe)
    loadable = getattr(pipe, "_lora_loadable_modules", COMPONENTS)
    others = (name for name in loadable if name not in NAMES and isinstance(getattr(pipe, name, None), nn.Module))
    return [denoiser, *others]


def fitted(pipe, path: Path | str, layers: Mapping[Place, Factors]) -> Fit:
    """Where the layers of the LoRA at `path` are in the pipeline. Raises LoraFileError if it is for another model."""
    return Fit(*matched(pipe, path, layers, _shaped, lambda factors: (factors.up.shape[0], *factors.down.shape[1:])))


def matched(
    pipe,
    path: Path | str,
    layers: Mapping[Place, T],
    shaped: Callable[[T, tuple[int, ...]], T | None],
    shape_of: Callable[[T], tuple[int, ...]],
    norms: bool = False,
) -> tuple[dict[str, dict[str, T]], int]:
    """The layers of the LoRA at `path` by part of the pipeline and name there, and how many the pipeline has not.

    Args:
        shaped: a layer for a weight of this shape, None where it does not fit.
        shape_of: the shape of weight that a layer is for, as far as it tells one.
        norms: whether layers can be normalisation layers too.

    Raises LoraFileError if it is for another model.
    """
    denoiser = denoiser_name(pipe)
    of_pipe = {name: _Component(pipe, name, norms) for name in components(pipe)}
    # A file that does not say what it is for is for the component that has most of its layers.
    unsaid = {place: layer for place, layer in layers.items() if not place.component}
    owner = max(of_pipe, key=lambda name: of_pipe[name].fits(unsaid, shaped))
    found: dict[str, dict[str, T]] = {}
    for place, layer in layers.items():
        # kohya and ComfyUI have a UNet's beginning for every denoiser.
        component = of_pipe.get(denoiser if place.component == "unet" else place.component or owner)
        name = component.find(place.name) if component else None
        if component is None or name is None:
            continue
        shape = component.shapes[name]
        fitting = shaped(layer, shape)
        if fitting is None:
            message = f"has the layer {place} in the shape {shape_of(layer)}, this model in the shape {shape}"
            raise LoraFileError(path, f"{message}: {OTHER_MODEL}")
        if name in found.setdefault(component.name, {}):
            raise LoraFileError(path, f"has the layer {component.name}.{name} twice, by different names")
        found[component.name][name] = fitting
    of_all = sum(map(len, found.values()))
    if not of_all:
        hint = f"or names its layers in a way that is not known, such as {next(iter(layers))}"
        raise LoraFileError(path, f"matches no layer of this model: {OTHER_MODEL}, {hint}")
    in_denoiser = len(found.get(denoiser, ()))
    for_denoiser = sum((place.component or owner) in NAMES for place in layers)
    if in_denoiser < LEAST * for_denoiser:
        called = "UNet" if denoiser == "unet" else denoiser
        matches = f"matches {in_denoiser} of the {for_denoiser} layers that it has for the {called}, next to nothing"
        raise LoraFileError(path, f"{matches}: {OTHER_MODEL}")
    return found, len(layers) - of_all


def _shaped(factors: Factors, shape: tuple[int, ...]) -> Factors | None:
    """The factors in the shape of a layer's weight, None where they do not fit.

    Those of a linear layer serve a pointwise convolution, and the other way round.
    """
    rank = factors.down.shape[0]
    down, up = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
    if factors.down.shape[1] != shape[1] or factors.down.numel() != prod(down) or factors.up.numel() != prod(up):
        return None
    return replace(factors, down=factors.down.reshape(down), up=factors.up.reshape(up))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and module.weight is not None


class _Component:
    """One model of the pipeline, and its layers that a LoRA can change."""

    def __init__(self, pipe, name: str, norms: bool = False):
        self.pipe, self.name, self.is_text = pipe, name, name.startswith("text_encoder")
        layers = {
            layer: module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            for layer, module in getattr(pipe, name).named_modules()
        }
        self.shapes = {
            layer: weight_shape(module)
            for layer, module in layers.items()
            if is_linear(module) or isinstance(module, nn.Conv2d) or (norms and _is_norm(module))
        }
        self.without_dots = {name.replace(".", "_"): name for name in self.shapes}

    def fits(self, layers: Mapping[Place, T], shaped: Callable[[T, tuple[int, ...]], T | None]) -> int:
        """How many of these layers could be here."""
        found = ((self.find(place.name), layer) for place, layer in layers.items())
        return sum(name is not None and shaped(layer, self.shapes[name]) is not None for name, layer in found)

    def find(self, layer: str) -> str | None:
        """The name here of a layer that is called so in a file; None where there is none."""
        return next((name for name in self._names(layer) if name in self.shapes), None)

    def _names(self, layer: str) -> Iterator[str]:
        """What a file's layer may be called here: as there, or as diffusers' converters say."""
        for name_of in (str, self._of_diffusers, self._of_kohya):
            name = name_of(layer)
            yield name
            if self.is_text:  # transformers 5 has dropped a level of CLIP's names
                yield f"text_model.{name}"
                yield name.removeprefix("text_model.")
        for name in (layer, layer.removeprefix("text_model_")):
            if "." not in name and name in self.without_dots:
                yield self.without_dots[name]

    def _of_diffusers(self, layer: str) -> str:
        """From a name of before PEFT, such as `attn1.processor.to_q_lora`."""
        pair = {f"{layer}.down.weight": None}
        if not self.is_text:
            converted = convert_unet_state_dict_to_peft(pair)
        else:
            converted = convert_state_dict_to_peft(pair, original_type=StateDictType.DIFFUSERS_OLD)
        return re.split(r"\.lora_A|\.down\.", next(iter(converted)))[0]

    def _of_kohya(self, layer: str) -> str:
        """From a name without dots, or with the original models' names of blocks; as it is where it is neither."""
        if self.name not in KOHYA or not hasattr(self.pipe, "unet"):
            return layer
        name = KOHYA[self.name] + layer.replace(".", "_")
        pair = {f"{name}.lora_{part}.weight": None for part in ("down", "up")}
        try:
            converted, *_ = self.pipe.lora_state_dict(pair, unet_config=self.pipe.unet.config)
        except (ValueError, KeyError, IndexError, TypeError):  # what the converter says to names that it does not know
            return layer
        down = next(name for name in converted if ".down." in name)
        return self._of_diffusers(re.sub(r"(\.lora|\.lora_linear_layer)?\.down\..*", "", down.partition(".")[2]))
