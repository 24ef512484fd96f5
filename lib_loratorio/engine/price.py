"""What a composition costs, as the engine would plan it."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import torch

from lib_loratorio.engine.methods import Composed, Remainder
from lib_loratorio.engine.planner import Planner
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.tag import LOCAL, LoraTag
from lib_loratorio.settings import Settings

PLAIN = 2
"""Model evaluations of a step that is the host's own: the prompt's and the negative prompt's."""

LONGEST = 1000
"""Steps to which a longer period is cut: no sampling has as many."""


def evaluations_per_step(settings: Settings, local_adapters: int, placed: Sequence[LoraTag] = ()) -> float:
    """Model evaluations of one picture's composed step, the unconditional ones included: the mean over a period of
    `guidance_every` and `refresh_every` steps.

    `local_adapters` take part in all of them, and further ones with the tags `placed`, which have regions or shares.
    Other global ones cost nothing, since they belong to the others' evaluations.
    """
    planner = Planner(settings, [_adapter(tag) for tag in (*[LOCAL] * local_adapters, *placed)])
    period = min(lcm(settings.guidance_every, settings.refresh_every), LONGEST)
    return sum(_evaluations(planner, settings.start, step) for step in range(period)) / period


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
