"""Which adapters of a pool are evaluated in a step."""

import pytest
import torch
from made_adapters import adapter

from lib_loratorio.engine.methods import BASE, Composed, Plan
from lib_loratorio.engine.planner import Planner
from lib_loratorio.engine.scout import REGIONS, Scout
from lib_loratorio.settings import Settings

STEPS = 10
POOL = range(1, 5)
EVERYONE = (0, 1, 2, 3, 4)


def weights(*pictures):
    """`[n, C, 1, 80]`: in each picture each adapter weighs most in so many of the ten places of every region."""
    winners = torch.tensor(
        [[number for number, places in enumerate(tenths) for _ in range(places)] * REGIONS for tenths in pictures]
    )
    shares = torch.nn.functional.one_hot(winners, len(pictures[0])) * 0.3 + 0.7 / len(pictures[0])
    return shares.movedim(-1, 0)[:, :, None]


def run(scout, present, *pictures):
    """The adapters evaluated in each step, where the adapters' places stay the same."""
    chosen = []
    for step in range(STEPS):
        chosen.append(scout.chosen(present, step / STEPS, step))
        scout.learn(chosen[-1], weights(*pictures)[torch.tensor([present.index(number) for number in chosen[-1]])])
    return chosen


def test_between_the_scouting_steps_only_those_with_a_share_are_evaluated():
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_every=6, scout_share=0.5), POOL)
    chosen = run(scout, EVERYONE, [0, 2, 1, 4, 3])
    few = (0, 1, 3, 4)
    assert chosen == [EVERYONE, EVERYONE, few, few, few, few, EVERYONE, few, few, few]
    assert scout.history == [(0, EVERYONE), (2, few), (6, EVERYONE), (7, few)]
    assert (
        scout.told(["own", "a", "b", "c", "d"])
        == "step 1: own, a, b, c, d; step 3: own, a, c, d; step 7: own, a, b, c, d; step 8: own, a, c, d"
    )


def test_a_share_is_the_mean_over_the_scouting():
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.75), POOL)
    for step, shares in enumerate(([0, 5, 1, 2, 2], [0, 1, 1, 2, 6])):
        scout.learn(scout.chosen(EVERYONE, step / STEPS, step), weights(shares))
    assert scout.chosen(EVERYONE, 0.2, 2) == (0, 1, 4)


def test_a_share_is_that_of_the_region_where_an_adapter_has_most():
    """A figure of 2 x 2 places beside two grounds."""
    winners = torch.zeros(1, 16, 16, dtype=torch.long)
    winners[:, :, 8:] = 1
    winners[:, 4:6, 10:12] = 2
    winners[:, 15, 0] = 3
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.5), range(4))
    scout.learn(scout.chosen(range(4), 0, 0), torch.nn.functional.one_hot(winners, 4).movedim(-1, 0).half())
    assert scout.chosen(range(4), 0.2, 2) == (0, 1, 2)


@pytest.mark.parametrize("edge", [3, 8])
def test_where_none_stands_out_all_stay(edge):
    """As at high noise, where a picture says nothing yet: a pool's size alone must not drop it."""
    count = edge * edge
    everyone = tuple(range(count))
    winners = torch.arange(count).reshape(1, edge, edge).tile(1, REGIONS, REGIONS)
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.7), everyone)
    scout.learn(scout.chosen(everyone, 0, 0), torch.nn.functional.one_hot(winners, count).movedim(-1, 0).float())
    assert scout.chosen(everyone, 0.2, 2) == everyone


def test_shares_depend_on_who_wins_and_not_on_how_clearly():
    for temperature in (0.01, 10.0):
        scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.5), POOL)
        scout.learn(scout.chosen(EVERYONE, 0, 0), (weights([0, 2, 1, 4, 3]) / temperature).softmax(0))
        assert scout.chosen(EVERYONE, 0.2, 2) == (0, 1, 3, 4)


def test_a_second_scouting_starts_anew():
    scout = Scout(Settings(pool_mode="scout", scout=0.1, scout_every=5, scout_share=0.5), POOL)
    scout.learn(scout.chosen(EVERYONE, 0, 0), weights([0, 10, 0, 0, 0]))
    assert scout.chosen(EVERYONE, 0.4, 4) == (0, 1)
    scout.learn(scout.chosen(EVERYONE, 0.5, 5), weights([0, 2, 0, 8, 0]))
    assert scout.chosen(EVERYONE, 0.6, 6) == (0, 3)


def test_an_adapter_stays_for_a_batch_where_one_picture_needs_it():
    """The mean over the images would be half of what it has there, and not enough."""
    scout = Scout(Settings(pool_mode="scout", scout=0.2, scout_share=0.4), POOL)
    assert run(scout, EVERYONE, [7, 3, 0, 0, 0], [7, 0, 0, 3, 0])[-1] == (0, 1, 3)


def test_the_prompts_own_stay_and_the_best_of_the_pool_where_nobody_would():
    settings = Settings(pool_mode="scout", scout=0.2, scout_share=1.0)
    assert run(Scout(settings, POOL), EVERYONE, [5, 1, 0, 4, 0])[-1] == (0,)
    assert run(Scout(settings, POOL), (1, 2, 3, 4), [1, 2, 6, 1])[-1] == (3,)
    scout = Scout(settings, POOL)
    run(scout, EVERYONE, [5, 1, 0, 4, 0])
    assert scout.chosen((1, 2, 3, 4), 0.9, 9) == (3,), "the prompt's own has left"


def test_scouting_goes_on_until_there_is_a_composed_call():
    scout = Scout(Settings(pool_mode="scout", scout=0.0), POOL)
    assert scout.chosen(EVERYONE, 0.9, 9) == EVERYONE
    scout.learn(EVERYONE, None)
    assert scout.chosen(EVERYONE, 0.9, 9) == EVERYONE


@pytest.mark.parametrize("changes", [{"pool_mode": "exact"}, {"method": "composite"}])
def test_all_in_every_step(changes):
    settings = Settings(**{"pool_mode": "scout", "scout_share": 1.0, **changes})
    assert run(Scout(settings, POOL), EVERYONE, [2] * 5) == [EVERYONE] * STEPS


def test_a_planner_plans_what_the_scout_has_chosen():
    planner = Planner(
        Settings(pool_mode="scout", scout=0.5, scout_share=0.5), [adapter(), adapter(pooled=True), adapter(pooled=True)]
    )
    assert planner.step(0, 0).plan == Plan((BASE, 0, 1, 2), (BASE, 0, 1, 2))
    planner.learn((0, 1, 2), Composed(None, None, weights([1, 2, 7])))
    assert planner.step(0.5, 5).plan == Plan((BASE, 0, 2), (BASE, 0, 2))


def test_a_smaller_latent_within_a_step_counts_in_the_same_regions():
    """As samplers such as reForge's "Euler DY" evaluate it; each call has the same say."""
    scout = Scout(Settings(pool_mode="scout", scout=0.5, scout_share=0.6), [0, 1])
    scout.chosen((0, 1), 0.0, 0)
    left = torch.stack([torch.tensor([[1.0] * 4 + [0.0] * 4] * 8), torch.tensor([[0.0] * 4 + [1.0] * 4] * 8)])[:, None]
    scout.learn((0, 1), left)
    scout.learn((0, 1), left[..., ::2, ::2])
    scout.learn((0, 1), torch.ones(2, 1, 4, 4) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
    assert scout.chosen((0, 1), 0.5, 1) == (0, 1)  # 3 and 2 of 3 calls, in the regions where they have most
