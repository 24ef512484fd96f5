"""Cheaper guidance: the adapters' unconditional rows in some steps only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lib_loratorio.engine.methods import BASE, Composed, Method, Plan, Predictions
from lib_loratorio.settings import Settings


class CachedGuidance:
    """A method whose unconditional prediction `e~()` is, in some steps, that of the base and the last known difference
    from it: `e~() = e_0() + (e~() - e_0())`, the bracket from an earlier step, as noise.

    Args:
        method: the method.
        difference: `[B,C,H,W]`, the bracket; None for a step that evaluates it anew.
    """

    def __init__(self, method: Method, difference: torch.Tensor | None):
        self.method, self.difference = method, difference

    @staticmethod
    def saves(settings: Settings) -> bool:
        """Whether there are adapters' unconditional rows to be saved."""
        return settings.guidance_every > 1 and (
            settings.method == "composite" or (settings.method == "loratorio" and settings.lam < 1)
        )

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        plan = self.method.plan(adapters, step)
        if self.difference is not None:
            return plan._replace(unconditional=(BASE,))
        return plan._replace(unconditional=tuple(sorted({BASE, *plan.unconditional})))

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        unconditional = predictions.unconditional
        if unconditional is None:
            return self.method.combine(predictions, weights)
        base = unconditional[BASE]
        if self.difference is not None:
            composed = self.method.combine(replace(predictions, unconditional=None), weights)
            return composed._replace(unconditional=(base + self.difference / predictions.noise_unit).to(base))
        composed = self.method.combine(predictions, weights)
        return composed._replace(difference=(composed.unconditional.float() - base.float()) * predictions.noise_unit)
