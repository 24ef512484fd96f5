"""What a step costs."""

import pytest

from lib_loratorio.engine.price import LONGEST, evaluations_per_step
from lib_loratorio.settings import Settings


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, (2, 4, 8)),
        ({"lam": 1}, (2, 3, 5)),
        ({"lam": 0}, (2, 3, 7)),
        ({"guidance_every": 2}, (2, 3.5, 6.5)),
        ({"guidance_every": 4}, (2, 3.25, 5.75)),
        ({"guidance_every": 2, "lam": 0}, (2, 3.5, 6.5)),
        ({"guidance_every": 4, "lam": 1}, (2, 3, 5)),
        ({"method": "composite"}, (2, 2, 6)),
        ({"method": "composite", "lam": 1}, (2, 2, 6)),
        ({"method": "composite", "guidance_every": 2}, (2, 2.5, 5.5)),
        ({"method": "switch", "guidance_every": 3}, (2, 2, 2)),
        ({"method": "merge"}, (2, 2, 2)),
        ({"start": 0.3, "end": 0.6, "top_k": 1}, (2, 4, 8)),
        ({"pool": "a,b", "pool_mode": "scout"}, (2, 4, 8)),
    ],
)
def test_price_of_none_one_and_three_loras(settings, expected):
    assert tuple(evaluations_per_step(Settings(**settings), count) for count in (0, 1, 3)) == pytest.approx(expected)


def test_price_of_a_period_longer_than_any_sampling():
    assert evaluations_per_step(Settings(guidance_every=10**9), 1) == pytest.approx(3 + 1 / LONGEST)
