"""Which adapters of a pool are evaluated in a step."""

import pytest
import torch
from members import Member

from lib_loratorio.course import Course
from lib_loratorio.methods import BASE, Composed, Plan
from lib_loratorio.scout import Scout
from lib_loratorio.settings import Settings

STEPS = 10
POOL = range(1, 5)
EVERYONE = (0, 1, 2, 3, 4)


def weights(*pictures):
    """`[n, C, 1, 2]`: each adapter's share in each picture, uneven over the places."""
    shares = torch.tensor(pictures).T[..., None, None]
    return shares * torch.tensor([[0.5, 1.5]])


def run(scout, present, *pictures):
    """The adapters evaluated in each step, where the adapters' shares stay the same."""
    chosen = []
    for step in range(STEPS):
        chosen.append(scout.chosen(present, step / STEPS, step))
        scout.learn(chosen[-1], weights(*pictures)[torch.tensor([present.index(number) for number in chosen[-1]])])
    return chosen


def test_between_the_scouting_steps_only_those_with_a_share_are_evaluated():
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_every=6, scout_share=0.15), POOL)
    chosen = run(scout, EVERYONE, [0.05, 0.15, 0.1, 0.5, 0.2])
    few = (0, 1, 3, 4)
    assert chosen == [EVERYONE, EVERYONE, few, few, few, few, EVERYONE, few, few, few]
    assert scout.history == [(0, EVERYONE), (2, few), (6, EVERYONE), (7, few)]


def test_a_share_is_the_mean_over_the_scouting():
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.25), POOL)
    for step, shares in enumerate(([0.0, 0.5, 0.1, 0.2, 0.2], [0.0, 0.1, 0.1, 0.2, 0.6])):
        scout.learn(scout.chosen(EVERYONE, step / STEPS, step), weights(shares))
    assert scout.chosen(EVERYONE, 0.2, 2) == (0, 1, 4)


def test_a_second_scouting_starts_anew():
    scout = Scout(Settings(pool_mode="scout", scout=0.1, scout_every=5, scout_share=0.3), POOL)
    scout.learn(scout.chosen(EVERYONE, 0, 0), weights([0, 1.0, 0, 0, 0]))
    assert scout.chosen(EVERYONE, 0.4, 4) == (0, 1)
    scout.learn(scout.chosen(EVERYONE, 0.5, 5), weights([0, 0.2, 0, 0.8, 0]))
    assert scout.chosen(EVERYONE, 0.6, 6) == (0, 3)


def test_an_adapter_stays_for_a_batch_where_one_picture_needs_it():
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.4), POOL)
    assert run(scout, EVERYONE, [0.5, 0.5, 0, 0, 0], [0.5, 0, 0, 0.5, 0])[-1] == (0, 1, 3)


def test_the_prompts_own_stay_and_without_them_the_best_one():
    settings = Settings(pool_mode="scout", scout=0.2, scout_share=0.9)
    assert run(Scout(settings, POOL), EVERYONE, [0.0, 0.1, 0.2, 0.6, 0.1])[-1] == (0,)
    assert run(Scout(settings, POOL), (1, 2, 3, 4), [0.1, 0.2, 0.6, 0.1])[-1] == (3,)


def test_scouting_goes_on_until_there_is_a_composed_call():
    scout = Scout(Settings(pool_mode="scout", scout=0.0), POOL)
    assert scout.chosen(EVERYONE, 0.9, 9) == EVERYONE
    scout.learn(EVERYONE, None)
    assert scout.chosen(EVERYONE, 0.9, 9) == EVERYONE


@pytest.mark.parametrize("changes", [{"pool_mode": "exact"}, {"method": "composite"}])
def test_all_in_every_step(changes):
    settings = Settings(**{"pool_mode": "scout", "scout_share": 1.0, **changes})
    assert run(Scout(settings, POOL), EVERYONE, [0.2] * 5) == [EVERYONE] * STEPS


def test_a_course_plans_what_the_scout_has_chosen():
    course = Course(Settings(pool_mode="scout", scout=0.5, scout_share=0.5), [Member(), Member(pooled=True), Member(pooled=True)])
    assert course.step(0, 0).plan == Plan((BASE, 0, 1, 2), (BASE, 0, 1, 2))
    course.learn((0, 1, 2), Composed(None, None, weights([0.1, 0.2, 0.7])))
    assert course.step(0.5, 5).plan == Plan((BASE, 0, 2), (BASE, 0, 2))
