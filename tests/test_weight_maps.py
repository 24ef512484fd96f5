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


def test_a_smaller_latent_within_a_step_counts_at_the_first_ones_size():
    maps = WeightMaps()
    first = torch.tensor([[1.0, 0.0], [0.5, 0.0]]).expand(1, 1, 2, 2)
    maps.add(torch.cat([first, 1 - first]), 2)
    smaller = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    maps.add(smaller, 1)
    expected = (torch.cat([first, 1 - first]) + smaller) / 2
    assert torch.allclose(maps.mean, expected) and maps.latent_width == 2
    assert maps.shares_by_call == [[0.375, 0.625], [0.25, 0.75]]
