"""Plans and combinations of the methods, against the equations written out for single pixels."""

import math

import pytest
import torch

from lib_loratorio.engine.methods import BASE, METHODS, SWITCH_EVERY, Plan, Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.settings import Settings


def pixels(*values):
    """Predictions of one row, two channels and one pixel each."""
    return [torch.tensor(value, dtype=torch.float64).view(1, 2, 1, 1) for value in values]


def predictions(conditional, unconditional, space=None, image_of=(0,)):
    return Predictions(conditional, unconditional, space or NoiseSpace.noise(), torch.tensor(image_of))


def test_plans():
    everyone = (0, 1, 2)
    assert METHODS["loratorio"](Settings()).plan(range(3), 0) == Plan((BASE, *everyone), (BASE, *everyone))
    assert METHODS["loratorio"](Settings(lam=1)).plan(range(3), 0) == Plan((BASE, *everyone), (BASE,))
    assert METHODS["loratorio"](Settings(lam=0)).plan(range(3), 0) == Plan((BASE, *everyone), everyone)
    assert METHODS["loratorio"](Settings()).plan((2,), 0) == Plan((2,), (BASE, 2))
    assert METHODS["composite"](Settings()).plan(range(3), 0) == Plan(everyone, everyone)
    assert METHODS["merge"](Settings()).plan(range(3), 0) is None


def test_switch_takes_turns_in_prompt_order():
    switch = METHODS["switch"](Settings())
    turns = [switch.plan(range(3), step).conditional for step in range(0, 4 * SWITCH_EVERY, SWITCH_EVERY)]
    assert turns == [(0,), (1,), (2,), (0,)]
    assert switch.plan(range(3), SWITCH_EVERY - 1) == Plan((0,), (0,))


def weights_of(cosines, temperature):
    e = [math.exp(-cosine / temperature) for cosine in cosines]
    return [value / sum(e) for value in e]


@pytest.mark.parametrize("denoised", [False, True])
def test_loratorio_by_hand(denoised):
    """The base points along (1, 0); one adapter at 60 degrees to it, the other at 90, both of length 2."""
    noise = pixels([1, 0], [1, math.sqrt(3)], [0, 2])
    unconditional = pixels([5, 5], [1, 0], [0, 1])
    z = torch.full((1, 2, 1, 1), 7.0, dtype=torch.float64)
    host = [z - value for value in noise] if denoised else noise
    settings = Settings(temperature=0.5, lam=0.25, patch_size=1)
    composed = METHODS["loratorio"](settings).combine(
        predictions(
            {BASE: host[0], 0: host[1], 1: host[2]},
            {BASE: unconditional[0], 0: unconditional[1], 1: unconditional[2]},
            NoiseSpace.denoised(z, torch.ones(1)) if denoised else None,
        )
    )
    first, second = weights_of([0.5, 0.0], 0.5)
    expected = [first * 1, first * math.sqrt(3) + second * 2]
    expected = [7 - value for value in expected] if denoised else expected
    assert composed.conditional.flatten().tolist() == pytest.approx(expected)
    assert composed.unconditional.flatten().tolist() == pytest.approx(
        [0.25 * 5 + 0.75 * first, 0.25 * 5 + 0.75 * second]
    )


def test_one_adapter_needs_no_conditional_prediction_of_the_base():
    adapter, base, unconditional = pixels([1, 2], [3, 4], [5, 8])
    method = METHODS["loratorio"](Settings(lam=0.25))
    composed = method.combine(predictions({0: adapter}, {BASE: base, 0: unconditional}))
    assert torch.equal(composed.conditional, adapter)
    assert composed.unconditional.flatten().tolist() == [0.25 * 3 + 0.75 * 5, 0.25 * 4 + 0.75 * 8]
    assert composed.weights.tolist() == [[[[1.0]]]]


def test_lambda_one_is_the_bases_unconditional_prediction():
    base, adapter, unconditional = pixels([1, 0], [0, 1], [3, 4])
    composed = METHODS["loratorio"](Settings(lam=1)).combine(
        predictions({BASE: base, 0: adapter}, {BASE: unconditional})
    )
    assert torch.equal(composed.unconditional, unconditional)
    assert torch.equal(composed.conditional, adapter)


def test_without_unconditional_rows_there_is_none_to_hand_over():
    base, adapter = pixels([1, 0], [0, 1])
    for name in ("loratorio", "composite", "switch"):
        conditional = (
            {0: adapter} if name == "switch" else {BASE: base, 0: adapter} if name == "loratorio" else {0: adapter}
        )
        assert METHODS[name](Settings()).combine(predictions(conditional, None)).unconditional is None


def test_several_prompts_a_picture_average_their_weights_for_the_unconditional_rows():
    """Picture 0 has two sub-prompts (AND), picture 1 has one."""
    base = torch.tensor([[1.0, 0], [1, 0], [1, 0]], dtype=torch.float64).view(3, 2, 1, 1)
    a = torch.tensor([[0.0, 1], [1, 0], [0, 1]], dtype=torch.float64).view(3, 2, 1, 1)
    b = torch.tensor([[1.0, 0], [0, 1], [0, 1]], dtype=torch.float64).view(3, 2, 1, 1)
    u = {
        BASE: torch.zeros(2, 2, 1, 1).double(),
        0: torch.ones(2, 2, 1, 1).double(),
        1: torch.zeros(2, 2, 1, 1).double(),
    }
    settings = Settings(temperature=0.01, lam=0, patch_size=1)
    composed = METHODS["loratorio"](settings).combine(predictions({BASE: base, 0: a, 1: b}, u, image_of=(0, 0, 1)))
    assert composed.unconditional[:, 0].flatten().tolist() == pytest.approx([0.5, 0.5])
    assert composed.conditional[:, 1].flatten().tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_composite_is_the_mean_of_both():
    a, b, ua, ub = pixels([1, 0], [0, 3], [2, 2], [4, 0])
    composed = METHODS["composite"](Settings()).combine(predictions({0: a, 1: b}, {0: ua, 1: ub}))
    assert composed.conditional.flatten().tolist() == [0.5, 1.5]
    assert composed.unconditional.flatten().tolist() == [3.0, 1.0]


def test_switch_hands_its_adapter_through():
    a, ua = pixels([1, 0], [2, 2])
    composed = METHODS["switch"](Settings()).combine(predictions({1: a}, {1: ua}))
    assert torch.equal(composed.conditional, a) and torch.equal(composed.unconditional, ua)
