"""What a composition costs, as the engine would plan it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import lcm

import torch

from lib_loratorio.engine.methods import SWITCH_EVERY, Composed, Remainder
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.planner import Planner
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

PLAIN = 2
"""Model evaluations of a step that is the host's own: the prompt's and the negative prompt's."""

LONGEST = 1000
"""Steps to which a longer period is cut: no sampling has as many."""


def evaluations_per_step(settings: Settings, adapters: Sequence[LoraTag], painted: Collection[int] = ()) -> float:
    """Model evaluations of one picture's composed step, the unconditional ones included: the mean over the steps after
    which they repeat.

    `adapters` take part in all of these, each with its tag. Global ones cost nothing, since they belong to the others'
    evaluations, unless they have a region or a share. `painted` are those, among the ones that compete and in their
    order, for which a mask has places.
    """
    if not settings.traits.apart:
        return PLAIN
    places = Painted(torch.tensor([sorted(painted)])) if painted else None
    planner = Planner(settings, [_adapter(tag) for tag in adapters], painted=places)
    period = min(_period(settings, len(planner.competing)), LONGEST)
    return sum(_evaluations(planner, settings.start, step) for step in range(period)) / period


def _period(settings: Settings, competing: int) -> int:
    """Steps after which evaluations repeat: where one takes its turn after the other, only some may need the base."""
    if not settings.traits.several:
        return SWITCH_EVERY * max(1, competing)
    return lcm(settings.guidance_every, settings.refresh_every)


def _evaluations(planner: Planner, fraction: float, step: int) -> int:
    planned = planner.step(fraction, step)
    if planned is None:
        return PLAIN
    # The planner goes on as after a real step, and asks for no more of its predictions than that they are there.
    known = torch.empty(1, 1, 1, 1)
    refreshed = Remainder(known, torch.zeros(1)) if len(planned.plan.conditional) > 1 else None
    planner.learn(planned.plan.conditional, Composed(None, None, difference=known, remainder=refreshed))
    return len(planned.plan.conditional) + len(planned.plan.unconditional)


def _adapter(tag: LoraTag) -> Adapter:
    return Adapter("", "", 1.0, 1.0, changes_text=False, changes_denoiser=True, source=None, tag=tag)
