"""The weights over a sampling."""

import pickle

import pytest
import torch

from lib_loratorio.engine.weight_maps import WeightMaps


def test_mean_over_calls():
    maps, weights = WeightMaps(), torch.rand(5, 3, 2, 4, 6).softmax(1)
    for call in weights:
        maps.add(call)
    torch.testing.assert_close(maps.mean, weights.mean(0))
    torch.testing.assert_close(maps.shares(), weights.mean((0, 3, 4)))
    torch.testing.assert_close(torch.tensor(maps.shares_by_call), weights.mean((2, 3, 4)))
    assert maps.shares_by_call[0] == pytest.approx(weights[0].mean((1, 2, 3)).tolist())
    with pytest.raises(ValueError, match="those before were"):
        maps.add(torch.rand(3, 1, 4, 6))


def test_no_weights():
    with pytest.raises(ValueError, match="no weights"):
        WeightMaps().shares()


def test_memory_does_not_grow_with_the_steps():
    """But for one number per LoRA and call, which the summary lists."""

    def held(calls):
        maps = WeightMaps()
        for _ in range(calls):
            maps.add(torch.full((3, 2, 8, 8), 1 / 3))
        return len(pickle.dumps(maps))

    start, number = held(1), len(pickle.dumps(torch.zeros(3)))
    assert held(101) - start <= 100 * number < 100 * 3 * 2 * 8 * 8 * 4
