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
    """

    conditional: Mapping[int, torch.Tensor] | None
    unconditional: Mapping[int, torch.Tensor] | None
    space: NoiseSpace
    image_of: torch.Tensor


class Composed(NamedTuple):
    """What the guidance goes on with; a part is None where there is none to hand over.

    `weights` are the patch weights `[N,C,h,w]` of the conditional rows, from methods that weigh by patch. `difference`
    `[B,c,H,W]` is what later steps may need: `e~() - e_0()`, as noise.
    """

    conditional: torch.Tensor | None
    unconditional: torch.Tensor | None
    weights: torch.Tensor | None = None
    difference: torch.Tensor | None = None


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
    """Adapters weighed per patch by their divergence from the base, unconditional score re-centred."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        everyone = tuple(adapters)
        unconditional = ((BASE,) if self.settings.lam > 0 else ()) + (everyone if self.settings.lam < 1 else ())
        return Plan((BASE, *everyone), unconditional)

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        patch_weights = self._weights(predictions) if weights is None else weights
        conditional = unconditional = None
        if predictions.conditional is not None:
            conditional = compose(
                _stacked(predictions.conditional), self._expanded(patch_weights, predictions.conditional)
            )
        if predictions.unconditional is not None:
            expanded = self._expanded(patch_weights, predictions.unconditional)
            unconditional = self._recentred(predictions.unconditional, expanded, predictions.image_of)
        return Composed(conditional, unconditional, patch_weights)

    def _weights(self, predictions: Predictions) -> torch.Tensor:
        base, adapted = predictions.conditional[BASE], _stacked(predictions.conditional)
        similarity = patch_similarity(
            predictions.space.of(base), predictions.space.of(adapted), self.settings.patch_size
        )
        return softmin_weights(similarity, self.settings.temperature, self.settings.top_k)

    def _expanded(self, patch_weights: torch.Tensor, predictions: Mapping[int, torch.Tensor]) -> torch.Tensor:
        size = next(iter(predictions.values())).shape[-2:]
        return expand_weights(patch_weights, self.settings.patch_size, size)

    def _recentred(
        self, unconditional: Mapping[int, torch.Tensor], weights: torch.Tensor, image_of: torch.Tensor
    ) -> torch.Tensor:
        if self.settings.lam == 1:
            return unconditional[BASE]
        adapted = _stacked(unconditional)
        composed = compose(adapted, _mean_by_image(weights, image_of, adapted.shape[1]))
        return composed if self.settings.lam == 0 else recenter(unconditional[BASE], composed, self.settings.lam)


class Composite:
    """Every adapter alone, plain average of both predictions (Zhong et al. 2024, arXiv 2402.16843)."""

    def __init__(self, settings: Settings):
        self.settings = settings

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        return Plan(tuple(adapters), tuple(adapters))

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        def mean(of: Mapping[int, torch.Tensor] | None) -> torch.Tensor | None:
            return None if of is None else _stacked(of).mean(0)

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
            return None if of is None else next(iter(of.values()))

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


def _mean_by_image(weights: torch.Tensor, image_of: torch.Tensor, images: int) -> torch.Tensor:
    """Weights `[N,B,H,W]` of each image: the mean over its sub-prompts' rows, which again sums to 1."""
    if weights.shape[1] == images:
        return weights
    totals = weights.new_zeros(weights.shape[0], images, *weights.shape[2:]).index_add_(1, image_of, weights)
    return totals / torch.bincount(image_of, minlength=images).to(weights).view(1, -1, 1, 1)
