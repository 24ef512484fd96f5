"""Who takes part in each step of a sampling, and what later steps need to know of earlier ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from lib_loratorio.deltas.factors import NONE, Factors
from lib_loratorio.engine.cached_guidance import CachedGuidance
from lib_loratorio.engine.kept_remainder import KeptRemainder
from lib_loratorio.engine.methods import METHODS, Bare, Composed, Method, Plan, Remainder
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.placed import Ground, Placed, places_of
from lib_loratorio.engine.scout import Scout
from lib_loratorio.loras.adapter import BASE, Adapter
from lib_loratorio.loras.region import WHOLE, Box
from lib_loratorio.settings import Settings


class Step(NamedTuple):
    """What a sampler call is composed of; the global adapters belong to the base and to every other model.

    `factors` multiply the adapters' strengths. `together` are the adapters that the merged model has, where it is
    evaluated.
    """

    method: Method
    plan: Plan
    global_adapters: tuple[int, ...] = ()
    factors: Factors = NONE
    together: tuple[int, ...] = ()


class Planner:
    """Plans the steps of one sampling; `learn` tells it of each composed one.

    `window` is the part of the picture that is sampled, `painted` the places that are painted for adapters.
    """

    def __init__(
        self,
        settings: Settings,
        adapters: Sequence[Adapter],
        window: Box = WHOLE,
        painted: Painted | None = None,
    ):
        self.settings, self.adapters = settings, adapters
        self.method = METHODS[settings.method](settings)
        self.competing = [number for number, adapter in enumerate(adapters) if adapter.competes]
        patch_size = settings.patch_size if settings.traits.weighs else 1
        self.ground = Ground(window, settings.feather, patch_size, painted)
        self.places = places_of(adapters, painted)
        self.absent: frozenset[int] = frozenset()  # the pool's that take no part in this sampling
        self.scout = Scout(settings, [number for number, adapter in enumerate(adapters) if adapter.pooled])
        self._taking_part: tuple[tuple[int, ...], tuple[int, ...]] = (), ()  # in the latest step: global, and competing
        self._known: tuple[Hashable, torch.Tensor] | None = None  # the last difference, and whose it is
        self._kept: tuple[Hashable, int, Remainder] | None = None  # the last remainder, whose it is, and its step
        self._step = 0

    def step(self, fraction: float, step: int) -> Step | None:
        """The sampler call at this fraction of the sampling, of this step; None where the host's own merge applies."""
        self._step = step
        if not self.settings.active(fraction):
            return None
        factors = {number: adapter.tag.factor(fraction, step) for number, adapter in enumerate(self.adapters)}
        present = [number for number, factor in factors.items() if factor and number not in self.absent]
        global_adapters = tuple(number for number in present if self.adapters[number].is_global)
        gated = tuple(number for number in present if self.adapters[number].is_gated)
        local = self.scout.chosen([number for number in present if number in self.competing], fraction, step)
        self._taking_part = (*global_adapters, *gated), local
        method: Method = self.method if local else Bare()
        plan = method.plan(local, step)
        if plan is None:
            return None
        if gated or not all(self.places[number].is_everywhere for number in local):
            method = Placed(method, self.places, gated, self.ground)
            plan = method.plan(local, step)
        together, is_between = (), False
        if self._saves_adapters(plan):
            remainder = self._remainder()
            together, is_between = tuple(sorted((*gated, *local))), remainder is not None
            method = KeptRemainder(method, remainder)
            plan = method.plan(local, step)
        if self._saves_guidance(plan, bool(together)):
            keeps = is_between or step % self.settings.guidance_every
            method = CachedGuidance(method, self._difference() if keeps else None)
            plan = method.plan(local, step)
        return Step(method, plan, global_adapters, Factors({number: factors[number] for number in present}), together)

    def _saves_adapters(self, plan: Plan) -> bool:
        """Whether there are rows of several models to be saved in some steps; a pool is scouted by each LoRA alone."""
        return self.settings.merges_between and len(plan.conditional) > 1 and not self.scout.is_scouting

    def _remainder(self) -> Remainder | None:
        """The last remainder, if the same adapters take part now and its step is not too long ago; none within its own
        step, in which some samplers evaluate several times.
        """
        if self._kept is None:
            return None
        whose, step, remainder = self._kept
        is_fresh = 0 < self._step - step < self.settings.refresh_every
        return remainder if is_fresh and whose == self._taking_part else None

    def _saves_guidance(self, plan: Plan, saves_adapters: bool) -> bool:
        """Whether there are adapters' unconditional rows to be saved in some steps."""
        wanted = saves_adapters or self.settings.guidance_every > 1
        to_save = wanted and any(model != BASE for model in plan.unconditional)
        return to_save and self.settings.traits.several

    def _difference(self) -> torch.Tensor | None:
        """The last difference, if the same adapters take part now: one that sits a step out must not push it."""
        return self._known[1] if self._known and self._known[0] == self._taking_part else None

    def learn(self, adapters: Sequence[int], composed: Composed) -> None:
        """A sampler call has been composed of these adapters."""
        self.scout.learn(adapters, composed.weights)
        if composed.difference is not None and not _is_finer(self._difference(), composed.difference):
            self._known = self._taking_part, composed.difference
        now, remainder = (self._taking_part, self._step), composed.remainder
        same_step = self._kept[2].noise if self._kept and self._kept[:2] == now else None
        if remainder is not None and not _is_finer(same_step, remainder.noise):
            self._kept = *now, remainder


def _is_finer(known: torch.Tensor | None, found: torch.Tensor) -> bool:
    """Whether what is known is of a larger latent: some samplers evaluate a smaller one too within a step."""
    return known is not None and known.shape[-2:].numel() > found.shape[-2:].numel()
