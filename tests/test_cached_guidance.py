"""Unconditional rows in every so many steps only, against the equation by hand."""

import pytest
import torch
from made_adapters import adapter

from lib_loratorio.engine.cached_guidance import CachedGuidance
from lib_loratorio.engine.methods import BASE, METHODS, Plan, Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Planner
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings


def test_plans_over_the_steps():
    planner = Planner(Settings(guidance_every=3), [adapter(), adapter()])
    full, saved = Plan((BASE, 0, 1), (BASE, 0, 1)), Plan((BASE, 0, 1), (BASE,))
    plans = []
    for step in range(7):
        method, plan, *_ = planner.step(step / 7, step)
        plans.append(plan)
        planner.learn((0, 1), method.combine(predictions(plan, seed=step)))
    assert plans == [full, saved, saved, full, saved, saved, full]


def predictions(plan, seed, space=None, edge=6):
    generator = torch.Generator().manual_seed(seed)
    conditional, unconditional = (
        {model: torch.randn(1, 4, edge, edge, generator=generator, dtype=torch.float64) for model in of} for of in plan
    )
    return Predictions(
        conditional, unconditional or None, space or NoiseSpace.noise(), torch.zeros(1, dtype=torch.long)
    )


@pytest.mark.parametrize("settings", [Settings(lam=0.25), Settings(lam=0.0), Settings(method="composite")])
@pytest.mark.parametrize("units", [(1.0, 1.0), (-1 / 14.6, -1 / 7.2)])
def test_the_difference_from_the_base_is_reused_as_noise(settings, units):
    """For denoised latents a difference of `d` in the noise is one of `-sigma * d`."""
    method = METHODS[settings.method](settings)
    first = CachedGuidance(method, None)
    then = predictions(first.plan((0, 1), 0), 1, NoiseSpace(unit=units[0]))
    learned = first.combine(then)
    unconditional = method.combine(then).unconditional
    assert torch.equal(learned.unconditional, unconditional)
    second = CachedGuidance(method, learned.difference)
    plan = second.plan((0, 1), 1)
    assert plan == Plan(method.plan((0, 1), 1).conditional, (BASE,))
    now = predictions(plan, 2, NoiseSpace(unit=units[1]))
    composed = second.combine(now)
    expected = now.unconditional[BASE] + (unconditional - then.unconditional[BASE]) * units[0] / units[1]
    torch.testing.assert_close(composed.unconditional, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(composed.conditional, method.combine(now._replace(unconditional=None)).conditional)
    assert composed.difference is None


def test_a_smaller_latent_within_a_step_has_the_mean_of_the_difference():
    """As samplers such as reForge's "Euler DY" ask for it; what is known of the whole latent stays."""
    planner = Planner(Settings(guidance_every=4, lam=0.25), [adapter(), adapter()])
    method, plan, *_ = planner.step(0, 0)
    whole = method.combine(predictions(plan, 1))
    planner.learn((0, 1), whole)
    planner.learn((0, 1), method.combine(predictions(plan, 2, edge=3)))
    method, plan, *_ = planner.step(0.25, 1)
    smaller, same = predictions(plan, 3, edge=3), predictions(plan, 4)
    mean = torch.nn.functional.avg_pool2d(whole.difference, 2)
    expected = smaller.unconditional[BASE] + mean
    torch.testing.assert_close(method.combine(smaller).unconditional, expected, rtol=1e-6, atol=1e-6)
    expected = same.unconditional[BASE] + whole.difference
    torch.testing.assert_close(method.combine(same).unconditional, expected, rtol=1e-6, atol=1e-6)


def test_the_base_is_evaluated_too_where_the_method_would_not():
    assert CachedGuidance(METHODS["composite"](Settings()), None).plan((0, 1), 0) == Plan((0, 1), (BASE, 0, 1))


def test_a_step_without_guidance_teaches_nothing():
    planner = Planner(Settings(guidance_every=2), [adapter()])
    method, plan, *_ = planner.step(0, 0)
    planner.learn((0,), method.combine(predictions(Plan(plan.conditional, ()), 1)))
    assert planner.step(0.1, 1).plan == Plan((0,), (BASE, 0)), "there is nothing to reuse yet"


@pytest.mark.parametrize("role", ["local", "global"])
def test_who_has_left_does_not_push_any_more(role):
    """A second adapter takes part in the first half: the difference with it is not that without it."""
    planner = Planner(Settings(guidance_every=8), [adapter(), adapter(LoraTag(end=0.5, role=role))])
    evaluated = []
    for step in range(4):
        method, plan, *_ = planner.step(step / 4, step)
        evaluated.append(plan.unconditional)
        competing = [model for model in plan.conditional if model != BASE]
        planner.learn(competing, method.combine(predictions(plan, seed=step)))
    full = (BASE, 0, 1) if role == "local" else (BASE, 0)
    assert evaluated == [full, (BASE,), (BASE, 0), (BASE,)]


@pytest.mark.parametrize(
    "settings", [Settings(guidance_every=3, lam=1.0), Settings(guidance_every=3, method="switch"), Settings()]
)
def test_where_nothing_can_be_saved_nothing_changes(settings):
    planner = Planner(settings, [adapter(), adapter()])
    for step in range(7):
        method, plan, *_ = planner.step(step / 7, step)
        own = METHODS[settings.method](settings)
        assert type(method) is type(own) and plan == own.plan((0, 1), step)
        planner.learn(plan.conditional, method.combine(predictions(plan, seed=step)))
