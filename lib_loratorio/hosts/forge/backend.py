"""Which member of the family this is, and what every member offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch

from lib_loratorio.loras.block_weights import BlockWeights, Evenly

Patches = Mapping[str, list]
"""Per weight of the model what the host would do to it, in the host's own form."""


class Factors(NamedTuple):
    """A low-rank patch of one weight: `up [O, r]`, `down [r, C, *kernel]`, `mid [r, r, *kernel]` or None, `alpha` or
    None.

    `offset` is the part of the weight that it changes, as `(dim, start, length)`, or None.
    """

    up: torch.Tensor
    down: torch.Tensor
    mid: torch.Tensor | None
    alpha: float | None
    strength: float
    offset: tuple[int, int, int] | None


QUANTISED = "quantised models can be composed with plain LoRAs only, as other kinds need the full weight"
"""Why a weight cannot be read as such."""


def declined(sd_model: Any) -> None:
    """For hosts all of whose models can be composed."""


def low_rank_factors(patch: Any, values: tuple) -> Factors | None:
    """The factors of a patch whose own `values` are low-rank: up, down, alpha, mid, DoRA's scale and what newer hosts
    add to them.
    """
    strength, _, strength_model, offset, function, *_ = patch
    up, down, alpha, mid, *others = values
    if strength_model != 1.0 or function is not None or any(other is not None for other in others):
        return None
    return Factors(up, down, mid, alpha, strength, offset)


def weighted_patches(patches: Patches, weights: BlockWeights | Evenly) -> dict[str, list]:
    """The patches at strengths multiplied as the `weights` say, without those of strength 0."""
    found = {}
    for key, of_weight in patches.items():
        if factor := weights.factor(key):
            found[key] = [type(patch)((patch[0] * factor, *patch[1:])) for patch in of_weight]
    return found


class Backend(Protocol):
    """A module with these functions. Patchers are the host's ModelPatchers."""

    Condition: type
    """The host's plain condition: takes a tensor, repeats it to the batch and concatenates it with others."""

    def declined(self, sd_model: Any) -> str | None:
        """Why a kind of model that only this host has cannot be composed, or None."""

    def compile_conditions(self, cond: Any) -> list[dict]: ...

    def compile_weighted_conditions(self, cond: Any, weights: Any) -> list[dict]: ...

    def area_and_mult(self, cond: dict, x: torch.Tensor, timestep: torch.Tensor) -> Any:
        """What the host makes of a condition: `.mult`, `.conditioning`; None outside its time."""

    def cond_cat(self, conditionings: Sequence[dict]) -> dict: ...

    def patches(self, patcher: Any, original: Any) -> Patches:
        """What networks have added to `original`."""

    def without_networks(self, patcher: Any, merged: Any, original: Any) -> Any:
        """A clone of `patcher` without the patches by which `merged` differs from `original`."""

    def weighted(self, patcher: Any, original: Any, weights: BlockWeights | Evenly) -> Any:
        """A clone of `patcher` in which what it has and `original` has not is multiplied as `weights` say."""

    def with_patches(self, patcher: Any, networks: Any, original: Any) -> Any:
        """A clone of `patcher` with what `networks` has that `original` has not."""

    def merging(self, patcher: Any) -> AbstractContextManager[None]:
        """Within it the host makes the model's weights those of `patcher`; a merge that fails is not taken for another
        one.
        """

    def apply(self, patcher: Any) -> None:
        """Makes the model's weights those of `patcher`, also in the middle of a sampling."""

    def factors(self, patch: Any) -> Factors | None:
        """The patch as factors, where it has such."""

    def merged(self, patches: list, weight: torch.Tensor, key: str) -> torch.Tensor:
        """The host's own merge of patches into a weight, in float32."""

    def base_weight(self, layer: torch.nn.Module, parameter: str) -> torch.Tensor:
        """A layer's weight or bias as it computes with it. Raises DeltaError for storage that cannot be read."""

    def fits(self, model: torch.nn.Module, shape: Sequence[int], device: torch.device) -> bool:
        """Whether a forward of this shape fits into memory, by the host's own estimate."""

    def install(self, patcher: Any, calc: Callable) -> None:
        """Prepares a patcher, which has the pass's wrapper, for `bracket`."""

    def bracket(self, calc: Callable) -> AbstractContextManager[None]:
        """Within it, the sampler's `calc(original, model, cond, uncond, x, timestep, model_options)` takes the place of
        the host's function that evaluates conditional and unconditional rows, which is handed to it as `original`.
        """


def this_backend() -> Backend:
    return import_module(f"lib_loratorio.hosts.forge.{_member()}")


def _member() -> str:
    if not _has("backend.sampling.sampling_function"):
        return "reforge"
    return "main" if hasattr(import_module("backend.patcher.lora"), "LoraLoader") else "neo"


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
