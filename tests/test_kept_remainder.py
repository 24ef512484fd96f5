"""Each adapter alone in some steps only, against the equation by hand."""

import pytest
import torch
from made_adapters import adapter

from lib_loratorio.engine.kept_remainder import KeptRemainder
from lib_loratorio.engine.methods import METHODS, Plan, Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Planner
from lib_loratorio.loras.adapter import BASE, MERGED
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

ALL = (MERGED, BASE, 0, 1, 2)


def predictions(plan, seed, space=None, rows=2, edge=6):
    """Of two images, with `rows` conditional rows in turn."""
    generator = torch.Generator().manual_seed(seed)

    def of(models, rows):
        return {model: torch.randn(rows, 4, edge, edge, generator=generator, dtype=torch.float64) for model in models}

    image_of = torch.arange(rows) % 2
    return Predictions(of(plan.conditional, rows), of(plan.unconditional, 2) or None, space or NoiseSpace(), image_of)


def steps_of(settings, steps, adapters=None):
    """What is planned in these steps, each of which is composed."""
    adapters = adapters or [adapter() for _ in range(3)]
    planner, found = Planner(settings, adapters), []
    for call, step in enumerate(steps):
        planned = planner.step(step / (max(steps) + 1), step)
        found.append(planned)
        models = sorted({*planned.plan.conditional, *planned.together})
        competing = [model for model in models if model >= 0 and adapters[model].competes]
        planner.learn(competing, planned.method.combine(predictions(planned.plan, call)))
    return found


def plans(*args):
    return [planned.plan for planned in steps_of(*args)]


def test_plans_over_the_steps():
    refresh, between = Plan(ALL, (BASE,)), Plan((MERGED,), (BASE,))
    found = steps_of(Settings(refresh_every=3, lam=1.0), range(7))
    assert [step.plan for step in found] == [refresh, between, between, refresh, between, between, refresh]
    assert all(step.together == (0, 1, 2) for step in found)


def test_the_negative_prompt_of_each_lora_is_evaluated_with_the_prompts():
    refresh, between = Plan(ALL, (BASE, 0, 1, 2)), Plan((MERGED,), (BASE,))
    assert plans(Settings(refresh_every=2), range(4)) == [refresh, between, refresh, between]


def test_all_evaluations_of_a_step_are_alike():
    """Samplers of second order evaluate twice a step."""
    refresh, between = Plan(ALL, (BASE,)), Plan((MERGED,), (BASE,))
    found = plans(Settings(refresh_every=2, lam=1.0), [0, 0, 1, 1, 2, 2, 3])
    assert found == [refresh, refresh, between, between, refresh, refresh, between]


@pytest.mark.parametrize("role", ["local", "global"])
def test_all_are_evaluated_where_others_take_part(role):
    adapters = [adapter(), adapter(), adapter(LoraTag(end=0.5, role=role))]
    found = plans(Settings(refresh_every=9, lam=1.0), range(6), adapters)
    first = (0, 1, 2) if role == "local" else (0, 1)
    evaluated = [(MERGED, BASE, *first), (MERGED,), (MERGED,), (MERGED, BASE, 0, 1), (MERGED,), (MERGED,)]
    assert [plan.conditional for plan in found] == evaluated


def test_a_global_adapter_of_some_places_is_among_those_together():
    adapters = [adapter(), adapter(), adapter(LoraTag.read({"lt": "global", "ltat": "left"}, "lora"))]
    first, second = steps_of(Settings(refresh_every=2, lam=1.0), range(2), adapters)
    assert first.plan.conditional == (MERGED, BASE, 0, 1, 2) and first.together == (0, 1, 2)
    assert second.plan == Plan((MERGED,), (BASE,))


def test_a_pool_is_scouted_by_each_lora_alone():
    settings = Settings(refresh_every=2, lam=1.0, pool_mode="scout", scout=0.5, scout_share=0.0)
    adapters = [adapter(), adapter(pooled=True), adapter(pooled=True)]
    alone = (BASE, 0, 1, 2)
    expected = [alone, alone, alone, (MERGED, *alone), (MERGED,), (MERGED, *alone)]
    assert [plan.conditional for plan in plans(settings, range(6), adapters)] == expected


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(refresh_every=3, method="switch"), Settings(refresh_every=3, method="composite")]
)
def test_what_cannot_save_anything_is_the_method_itself(settings):
    """Each in every step; one at a time; a single LoRA that needs no base beside it."""
    count = 1 if settings.method == "composite" else 3
    planned = Planner(settings, [adapter() for _ in range(count)]).step(0, 0)
    assert type(planned.method) is METHODS[settings.method]


@pytest.mark.parametrize("settings", [Settings(), Settings(lam=0.0), Settings(lam=1.0), Settings(method="composite")])
@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("sigmas", [None, ((14.6, 9.1), (7.2, 3.3))])
def test_the_remainder_is_reused_as_noise(settings, rows, sigmas):
    """For denoised latents a remainder of `r` in the noise is one of `-sigma * r`, by image."""
    method = METHODS[settings.method](settings)
    units = [1.0, 1.0] if sigmas is None else [-1 / torch.tensor(of).double().view(-1, 1, 1, 1) for of in sigmas]
    first = KeptRemainder(method, None)
    then = predictions(first.plan((0, 1), 0), 1, NoiseSpace(unit=units[0]), rows)
    learned = first.combine(then)
    own = then._replace(conditional={model: of for model, of in then.conditional.items() if model != MERGED})
    right = method.combine(own)
    assert torch.equal(learned.conditional, right.conditional)
    assert torch.equal(learned.unconditional, right.unconditional)

    second = KeptRemainder(method, learned.remainder)
    plan = second.plan((0, 1), 1)
    assert plan == Plan((MERGED,), method.plan((0, 1), 1).unconditional)
    now = predictions(plan, 2, NoiseSpace(unit=units[1]), rows)
    ratio = torch.ones(2, 1, 1, 1) if sigmas is None else units[0] / units[1]
    expected = now.conditional[MERGED] + (right.conditional - then.conditional[MERGED]) * ratio[now.image_of]
    composed = second.combine(now)
    torch.testing.assert_close(composed.conditional, expected, rtol=1e-5, atol=1e-5)
    unconditional = method.combine(now._replace(conditional=None), right.weights).unconditional
    torch.testing.assert_close(composed.unconditional, unconditional)
    assert composed.remainder is None
    assert right.weights is None or torch.equal(composed.weights, right.weights)


def test_of_other_rows_each_has_its_images_mean():
    """As where a prompt's parts change in number while the picture is sampled."""
    method = METHODS["loratorio"](Settings(lam=1.0))
    first = KeptRemainder(method, None)
    learned = first.combine(predictions(first.plan((0, 1), 0), 1, rows=4))
    now = predictions(Plan((MERGED,), (BASE,)), 2, rows=2)
    composed = KeptRemainder(method, learned.remainder).combine(now)
    means = learned.remainder.noise[[0, 1]] / 2 + learned.remainder.noise[[2, 3]] / 2
    torch.testing.assert_close(composed.conditional, now.conditional[MERGED] + means, rtol=1e-5, atol=1e-5)
    weights = learned.weights[:, [0, 1]] / 2 + learned.weights[:, [2, 3]] / 2
    torch.testing.assert_close(composed.weights, weights)


def test_a_smaller_latent_within_a_step_has_the_mean_of_the_remainder():
    """As samplers such as reForge's "Euler DY" ask for it; what is known of the whole latent stays."""
    planner = Planner(Settings(refresh_every=4, lam=1.0), [adapter(), adapter()])
    planned = planner.step(0, 0)
    whole = planned.method.combine(predictions(planned.plan, 1))
    planner.learn((0, 1), whole)
    planner.learn((0, 1), planned.method.combine(predictions(planned.plan, 2, edge=3)))
    planned = planner.step(0.25, 1)
    smaller, same = predictions(planned.plan, 3, edge=3), predictions(planned.plan, 4)
    expected = smaller.conditional[MERGED] + torch.nn.functional.avg_pool2d(whole.remainder.noise, 2)
    torch.testing.assert_close(planned.method.combine(smaller).conditional, expected, rtol=1e-5, atol=1e-5)
    expected = same.conditional[MERGED] + whole.remainder.noise
    torch.testing.assert_close(planned.method.combine(same).conditional, expected, rtol=1e-5, atol=1e-5)


def test_the_negative_prompt_alone_is_composed_with_the_refreshed_steps_weights():
    """As where another extension asks for it, or a pipeline asks for it in a call of its own."""
    method = METHODS["loratorio"](Settings(lam=0.25))
    first = KeptRemainder(method, None)
    then = predictions(first.plan((0, 1), 0), 1)
    learned = first.combine(then)
    composed = KeptRemainder(method, learned.remainder).combine(then._replace(conditional=None))
    assert composed.conditional is None and torch.equal(composed.unconditional, learned.unconditional)


def test_a_step_without_guidance_leaves_the_difference_of_the_negative_prompt_unknown():
    """The next one evaluates each LoRA's negative prompt, with the last weights."""
    planner = Planner(Settings(refresh_every=3), [adapter(), adapter()])
    planned = planner.step(0, 0)
    planner.learn((0, 1), planned.method.combine(predictions(planned.plan, 1)._replace(unconditional=None)))
    planned = planner.step(0.2, 1)
    assert planned.plan == Plan((MERGED,), (BASE, 0, 1))
    composed = planned.method.combine(predictions(planned.plan, 2))
    assert composed.conditional is not None and composed.difference is not None
