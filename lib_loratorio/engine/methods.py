"""Ways of composing adapters: what to evaluate in a step, and how to combine the predictions.

A method plans a step (`Plan`) and turns its predictions (`Predictions`) into the two that the host's
guidance goes on with. It knows neither the host nor the model. Method number five is a class with these
two functions and an entry in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from lib_loratorio.composition import compose, expand_weights, patch_similarity, recenter, softmin_weights
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.places import Places
from lib_loratorio.loras.adapter import BASE
from lib_loratorio.settings import Settings

SWITCH_EVERY = 5
"""Sampling steps that Switch stays with one adapter (Zhong et al. 2024, arXiv 2402.16843)."""


class Plan(NamedTuple):
    """Which of {`BASE`, 0, 1, ...} are evaluated on the conditional and on the unconditional rows."""

    conditional: tuple[int, ...]
    unconditional: tuple[int, ...]


class Predictions(NamedTuple):
    """One sampler call's predictions, in the space the host works in.

    conditional: per evaluated model `[C,c,H,W]`, one row for every sub-prompt of every image; None where another
        extension of the host asks for unconditional rows alone.
    unconditional: per evaluated model `[B,c,H,W]`, one row an image; None where the host skipped them.
    space: how predictions become noise.
    image_of: `[C]`, the image that a conditional row belongs to.
    places: where the adapters may be, in the order of their numbers; None where each may be everywhere. The base is
        among the models wherever anything is left to it.
    """

    conditional: Mapping[int, torch.Tensor] | None
    unconditional: Mapping[int, torch.Tensor] | None
    space: NoiseSpace
    image_of: torch.Tensor
    places: Places | None = None


class Remainder(NamedTuple):
    """What the merged model's conditional prediction lacks of the composed one, `r = e~(c) - m(c)`.

    noise: `r [C,c,H,W]`, as noise. image_of: `[C]`, the image of each row. weights: the patch weights of `e~`, or None.
    """

    noise: torch.Tensor
    image_of: torch.Tensor
    weights: torch.Tensor | None = None


class Composed(NamedTuple):
    """What the guidance goes on with; a part is None where there is none to hand over.

    `weights` are the patch weights `[N,C,h,w]` of the conditional rows, from methods that weigh by patch; they sum to 1
    or, where the base has the rest, to less. What later steps may need: `difference` `[B,c,H,W]`, `e~() - e_0()` as
    noise, and the `remainder`.
    """

    conditional: torch.Tensor | None
    unconditional: torch.Tensor | None
    weights: torch.Tensor | None = None
    difference: torch.Tensor | None = None
    remainder: Remainder | None = None


class Method(Protocol):
    def plan(self, adapters: Sequence[int], step: int) -> Plan | None:
        """The plan for this sampling step with these adapters, at least one, or None to leave it to the host's own
        merged LoRAs.
        """

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        """The composed predictions of a planned step.

        `weights` are the patch weights `[N,C,h,w]` of another call of the same step, to be used again: with them, a
        call that another extension compares with the step's own differs from it in nothing but what that one changed.
        """


class LoRAtorio:
    """Adapters weighed per patch by their divergence from the base, unconditional score re-centred.

    The weight of one adapter is 1 whatever it diverges, so that its step needs no conditional prediction of the base.
    """

    def __init__(self, settings: Settings):
        self.settings = settings

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        everyone = tuple(adapters)
        unconditional = ((BASE,) if self.settings.lam > 0 else ()) + (everyone if self.settings.lam < 1 else ())
        return Plan(everyone if len(everyone) == 1 else (BASE, *everyone), unconditional)

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        patch_weights = self._weights(predictions) if weights is None else weights
        conditional = unconditional = None
        if predictions.conditional is not None:
            expanded = self._expanded(patch_weights, predictions.conditional)
            conditional = _composed(predictions.conditional, expanded, predictions.places)
        if predictions.unconditional is not None:
            expanded = self._expanded(patch_weights, predictions.unconditional)
            unconditional = self._recentred(predictions, expanded)
        return Composed(conditional, unconditional, patch_weights)

    def _weights(self, predictions: Predictions) -> torch.Tensor:
        adapted = _stacked(predictions.conditional)
        base = predictions.conditional.get(BASE, adapted[0])
        similarity = patch_similarity(
            predictions.space.of(base), predictions.space.of(adapted), self.settings.patch_size
        )
        return _softmin(similarity, self.settings.temperature, self.settings.top_k, predictions.places)

    def _expanded(self, patch_weights: torch.Tensor, predictions: Mapping[int, torch.Tensor]) -> torch.Tensor:
        size = next(iter(predictions.values())).shape[-2:]
        return expand_weights(patch_weights, self.settings.patch_size, size)

    def _recentred(self, predictions: Predictions, weights: torch.Tensor) -> torch.Tensor:
        unconditional = predictions.unconditional
        if self.settings.lam == 1:
            return unconditional[BASE]
        images = next(iter(unconditional.values())).shape[0]
        weights = _mean_by_image(weights, predictions.image_of, images)
        composed = _composed(unconditional, weights, predictions.places)
        return composed if self.settings.lam == 0 else recenter(unconditional[BASE], composed, self.settings.lam)


class Composite:
    """Every adapter alone, plain average of both predictions (Zhong et al. 2024, arXiv 2402.16843)."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        return Plan(tuple(adapters), tuple(adapters))

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        def mean(of: Mapping[int, torch.Tensor] | None) -> torch.Tensor | None:
            if of is None:
                return None
            return _stacked(of).mean(0) if predictions.places is None else _evenly(of, predictions.places)

        return Composed(mean(predictions.conditional), mean(predictions.unconditional))


class Switch:
    """One adapter at a time, the next one every `SWITCH_EVERY` steps, in prompt order."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        turn = (adapters[step // SWITCH_EVERY % len(adapters)],)
        return Plan(turn, turn)

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        def only(of: Mapping[int, torch.Tensor] | None) -> torch.Tensor | None:
            if of is None:
                return None
            return next(iter(of.values())) if predictions.places is None else _evenly(of, predictions.places)

        return Composed(only(predictions.conditional), only(predictions.unconditional))


class Merge:
    """The host's own: all adapters added to the weights. Here for grids that compare methods."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def plan(self, adapters: Sequence[int], step: int) -> None:
        return None

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        raise RuntimeError("Merge plans no step, so there is nothing to combine")


class Bare:
    """The base model alone, where no adapter competes in a step."""

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        return Plan((BASE,), (BASE,))

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        of = predictions.conditional, predictions.unconditional
        return Composed(*(None if part is None else part[BASE] for part in of))


METHODS = {"loratorio": LoRAtorio, "composite": Composite, "switch": Switch, "merge": Merge}


def _stacked(predictions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The adapters' predictions `[N,B,C,H,W]`, without the base's."""
    return torch.stack([predictions[adapter] for adapter in sorted(predictions) if adapter != BASE])


def _composed(predictions: Mapping[int, torch.Tensor], weights: torch.Tensor, places: Places | None) -> torch.Tensor:
    """`e~` of the adapters, and of the base where anything may be left to it."""
    return compose(_stacked(predictions), weights, predictions.get(BASE) if places else None)


def _softmin(similarity: torch.Tensor, temperature: float, top_k: int, places: Places | None) -> torch.Tensor:
    """`Omega`, where adapters may have places."""
    if places is None:
        return softmin_weights(similarity, temperature, top_k)
    return places.shared_out(softmin_weights(places.handicapped(similarity, temperature), temperature, top_k))


def _evenly(predictions: Mapping[int, torch.Tensor], places: Places) -> torch.Tensor:
    """The mean over those that may be in a place, the base's where nobody may."""
    adapted = _stacked(predictions)
    even = adapted.new_zeros(adapted.shape[0], adapted.shape[1], *adapted.shape[-2:], dtype=places.masks.dtype)
    return _composed(predictions, _softmin(even, 1.0, 0, places), places)


def _mean_by_image(weights: torch.Tensor, image_of: torch.Tensor, images: int) -> torch.Tensor:
    """Weights `[N,B,H,W]` of each image: the mean over its sub-prompts' rows, which again sums to 1."""
    if weights.shape[1] == images:
        return weights
    totals = weights.new_zeros(weights.shape[0], images, *weights.shape[2:]).index_add_(1, image_of, weights)
    return totals / torch.bincount(image_of, minlength=images).to(weights).view(1, -1, 1, 1)
