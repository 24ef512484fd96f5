"""Fewer evaluations: adapters one by one in some steps only, and all at once in those between.

In a step between, the conditional prediction is `m(c) + r`: `m` is the model with all adapters at once, as the host
merges them, and `r = e~(c) - m(c)`, as noise, what composing made of it in the last step that evaluated both. What the
latent's change does to the prediction comes from `m`, what composing does from `r`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib_loratorio.composition import resized
from lib_loratorio.engine.methods import Composed, Method, Plan, Predictions, Remainder
from lib_loratorio.loras.adapter import MERGED


class KeptRemainder:
    """A method whose conditional prediction is, in some steps, the merged model's and a remainder.

    Args:
        method: the method.
        remainder: None for a step that evaluates it anew.
    """

    def __init__(self, method: Method, remainder: Remainder | None):
        self.method, self.remainder = method, remainder

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        plan = self.method.plan(adapters, step)
        return plan._replace(conditional=(MERGED, *(plan.conditional if self.remainder is None else ())))

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        if predictions.conditional is None:
            return self.method.combine(predictions, self._weights(weights, predictions.image_of))
        merged = predictions.conditional[MERGED]
        unit = predictions.space.unit
        if isinstance(unit, torch.Tensor) and unit.dim():
            unit = unit[predictions.image_of]
        if self.remainder is None:
            others = {model: of for model, of in predictions.conditional.items() if model != MERGED}
            composed = self.method.combine(predictions._replace(conditional=others), weights)
            noise = (composed.conditional.float() - merged.float()) * unit
            return composed._replace(remainder=Remainder(noise, predictions.image_of, composed.weights))
        composed = Composed(None, None, self._weights(weights, predictions.image_of))
        if predictions.unconditional is not None:
            composed = self.method.combine(predictions._replace(conditional=None), composed.weights)
        rows = _of_rows(self.remainder.noise, 0, self.remainder.image_of, predictions.image_of)
        noise = resized(rows, merged.shape[-2:])
        return composed._replace(conditional=(merged + noise / unit).to(merged))

    def _weights(self, weights: torch.Tensor | None, image_of: torch.Tensor) -> torch.Tensor | None:
        if weights is not None or self.remainder is None or self.remainder.weights is None:
            return weights
        return _of_rows(self.remainder.weights, 1, self.remainder.image_of, image_of)


def _of_rows(kept: torch.Tensor, dim: int, known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """What was kept of rows of the images `known`, for rows of the images `wanted`: where these are others, each has
    its image's mean.
    """
    if torch.equal(known, wanted):
        return kept
    return torch.stack([kept.index_select(dim, (known == image).nonzero()[:, 0]).mean(dim) for image in wanted], dim)
