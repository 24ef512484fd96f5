"""Unconditional rows in every so many steps only, against the equation by hand."""

from dataclasses import replace

import pytest
import torch
from members import Member

from lib_loratorio.engine.cached_guidance import CachedGuidance
from lib_loratorio.engine.methods import BASE, METHODS, Plan, Predictions
from lib_loratorio.engine.planner import Planner
from lib_loratorio.loras.tag import Part
from lib_loratorio.settings import Settings


def test_plans_over_the_steps():
    course = Planner(Settings(guidance_every=3), [Member(), Member()])
    full, saved = Plan((BASE, 0, 1), (BASE, 0, 1)), Plan((BASE, 0, 1), (BASE,))
    plans = []
    for step in range(7):
        method, plan, _ = course.step(step / 7, step)
        plans.append(plan)
        course.learn((0, 1), method.combine(predictions(plan, seed=step)))
    assert plans == [full, saved, saved, full, saved, saved, full]


def predictions(plan, seed, noise_offset=None, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    conditional, unconditional = (
        {model: torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64) for model in of} for of in plan
    )
    return Predictions(conditional, unconditional or None, noise_offset, torch.zeros(1, dtype=torch.long), **kwargs)


@pytest.mark.parametrize("settings", [Settings(lam=0.25), Settings(lam=0.0), Settings(method="composite")])
@pytest.mark.parametrize("units", [(1.0, 1.0), (-1 / 14.6, -1 / 7.2)])
def test_the_difference_from_the_base_is_reused_as_noise(settings, units):
    """For denoised latents a difference of `d` in the noise is one of `-sigma * d`."""
    method = METHODS[settings.method](settings)
    first = CachedGuidance(method, None)
    then = predictions(first.plan((0, 1), 0), 1, noise_unit=units[0])
    learned = first.combine(then)
    unconditional = method.combine(then).unconditional
    assert torch.equal(learned.unconditional, unconditional)
    second = CachedGuidance(method, learned.difference)
    plan = second.plan((0, 1), 1)
    assert plan == Plan(method.plan((0, 1), 1).conditional, (BASE,))
    now = predictions(plan, 2, noise_unit=units[1])
    composed = second.combine(now)
    expected = now.unconditional[BASE] + (unconditional - then.unconditional[BASE]) * units[0] / units[1]
    torch.testing.assert_close(composed.unconditional, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(composed.conditional, method.combine(replace(now, unconditional=None)).conditional)
    assert composed.difference is None


def test_the_base_is_evaluated_too_where_the_method_would_not():
    assert CachedGuidance(METHODS["composite"](Settings()), None).plan((0, 1), 0) == Plan((0, 1), (BASE, 0, 1))


def test_a_step_without_guidance_teaches_nothing():
    course = Planner(Settings(guidance_every=2), [Member()])
    method, plan, _ = course.step(0, 0)
    course.learn((0,), method.combine(predictions(Plan(plan.conditional, ()), 1)))
    assert course.step(0.1, 1).plan == Plan((BASE, 0), (BASE, 0)), "there is nothing to reuse yet"


@pytest.mark.parametrize("role", ["local", "global"])
def test_who_has_left_does_not_push_any_more(role):
    """A second adapter takes part in the first half: the difference with it is not that without it."""
    course = Planner(Settings(guidance_every=8), [Member(), Member(Part(end=0.5, role=role))])
    evaluated = []
    for step in range(4):
        method, plan, _ = course.step(step / 4, step)
        evaluated.append(plan.unconditional)
        course.learn(plan.conditional[1:], method.combine(predictions(plan, seed=step)))
    full = (BASE, 0, 1) if role == "local" else (BASE, 0)
    assert evaluated == [full, (BASE,), (BASE, 0), (BASE,)]


@pytest.mark.parametrize(
    "settings", [Settings(guidance_every=3, lam=1.0), Settings(guidance_every=3, method="switch"), Settings()]
)
def test_where_nothing_can_be_saved_nothing_changes(settings):
    assert not CachedGuidance.saves(settings)
