"""The accumulated weights, and the panel drawn from them."""

import pickle

import pytest
import torch
from PIL import Image

from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.page.infotext import infotext
from lib_loratorio.page.weight_panel import COLOURS, TILE, weight_panel


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


def test_winner_has_its_colour():
    weights = torch.zeros(2, 4, 4)
    weights[0, :, :2] = weights[1, :, 2:] = 1
    panel = weight_panel(Image.new("RGB", (60, 60)), weights, ["left", "a very long name indeed for a narrow tile"], 16)
    assert panel.width > 4 * TILE and panel.height > TILE
    last = panel.crop((panel.width - TILE - 8, 8, panel.width - 8, 8 + TILE))
    expected = [tuple(round(0.6 * channel) for channel in COLOURS[number]) for number in (0, 1)]
    assert max(abs(a - b) for a, b in zip(last.getpixel((10, 100)), expected[0])) <= 1
    assert max(abs(a - b) for a, b in zip(last.getpixel((TILE - 20, 100)), expected[1])) <= 1


def test_infotext_quotes_what_would_end_a_field():
    text = infotext("a cat", "", {"Steps": 3, "Model": 'a, "b"', "Schedule type": ""})
    assert text == 'a cat\nSteps: 3, Model: "a, \\"b\\""'


def test_memory_does_not_grow_with_the_steps():
    """But for one number per LoRA and call, which the summary lists."""

    def held(calls):
        maps = WeightMaps()
        for _ in range(calls):
            maps.add(torch.full((3, 2, 8, 8), 1 / 3))
        return len(pickle.dumps(maps))

    start, number = held(1), len(pickle.dumps(torch.zeros(3)))
    assert held(101) - start <= 100 * number < 100 * 3 * 2 * 8 * 8 * 4
