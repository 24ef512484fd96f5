"""The course of one sampling: who takes part in each step, and what later steps need to know of earlier ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import torch

from lib_loratorio.engine.cached_guidance import CachedGuidance
from lib_loratorio.engine.methods import METHODS, Bare, Composed, Method, Plan
from lib_loratorio.engine.scout import Scout
from lib_loratorio.loras.tag import Part, taking_part
from lib_loratorio.settings import Settings


class Member(Protocol):
    """An adapter, as far as the course of a sampling is concerned."""

    part: Part
    pooled: bool


class Step(NamedTuple):
    """What a sampler call is combined with; without a plan the host's own merge applies.

    `everywhere` are the adapters that belong to the base and to every other model.
    """

    method: Method
    plan: Plan | None
    everywhere: tuple[int, ...] = ()


class Planner:
    """Plans the steps of one sampling; `learn` is told of each composed one."""

    def __init__(self, settings: Settings, members: Sequence[Member]):
        self.settings, self.members = settings, members
        self.method = METHODS[settings.method](settings)
        self.competing = [number for number, member in enumerate(members) if member.part.role == "local"]
        self.scout = Scout(settings, [number for number, member in enumerate(members) if member.pooled])
        self._taking_part: tuple[tuple[int, ...], tuple[int, ...]] = (
            (),
            (),
        )  # in the latest step: everywhere, and competing
        self._known: tuple[Hashable, torch.Tensor] | None = None  # the last difference, and whose it is

    def step(self, fraction: float, step: int) -> Step:
        """The sampler call at this fraction of the sampling, which belongs to this sampling step."""
        if not self.settings.active(fraction):
            return Step(self.method, None)
        present = taking_part([member.part for member in self.members], fraction)
        everywhere = tuple(number for number in present if self.members[number].part.role == "global")
        local = self.scout.chosen([number for number in present if number not in everywhere], fraction, step)
        method: Method = self.method if local else Bare()
        self._taking_part = everywhere, local
        if local and CachedGuidance.saves(self.settings):
            method = CachedGuidance(method, self._difference() if step % self.settings.guidance_every else None)
        return Step(method, method.plan(local, step), everywhere)

    def _difference(self) -> torch.Tensor | None:
        """The last difference, if it is that of the adapters that take part now: one that sits a step out must not push
        it.
        """
        return self._known[1] if self._known and self._known[0] == self._taking_part else None

    def learn(self, adapters: Sequence[int], composed: Composed) -> None:
        """A sampler call has been composed of these adapters."""
        self.scout.learn(adapters, composed.weights)
        if composed.difference is not None:
            self._known = self._taking_part, composed.difference
