"""Cheaper guidance: the adapters' unconditional rows in some steps only."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib_loratorio.composition import resized
from lib_loratorio.engine.methods import Composed, Method, Plan, Predictions
from lib_loratorio.loras.adapter import BASE


class CachedGuidance:
    """A method whose unconditional prediction is, in some steps, the base's and its last known difference from it.

    `e~() = e_0() + (e~() - e_0())`, the bracket taken from an earlier step, as noise.

    Args:
        method: the method.
        difference: `[B,C,H,W]`, the bracket; None for a step that evaluates it anew.
    """

    def __init__(self, method: Method, difference: torch.Tensor | None):
        self.method, self.difference = method, difference

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        plan = self.method.plan(adapters, step)
        if self.difference is not None:
            return plan._replace(unconditional=(BASE,))
        return plan._replace(unconditional=tuple(sorted({BASE, *plan.unconditional})))

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        unconditional = predictions.unconditional
        if unconditional is None:
            return self.method.combine(predictions, weights)
        base, unit = unconditional[BASE], predictions.space.unit
        if self.difference is not None:
            composed = self.method.combine(predictions._replace(unconditional=None), weights)
            difference = resized(self.difference, base.shape[-2:])
            return composed._replace(unconditional=(base + difference / unit).to(base))
        composed = self.method.combine(predictions, weights)
        return composed._replace(difference=(composed.unconditional.float() - base.float()) * unit)
