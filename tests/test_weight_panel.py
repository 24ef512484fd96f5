"""The panel drawn from weights."""

import torch
from PIL import Image

from lib_loratorio.page.weight_panel import COLOURS, TILE, weight_panel


def test_winner_has_its_colour():
    weights = torch.zeros(2, 4, 4)
    weights[0, :, :2] = weights[1, :, 2:] = 1
    panel = weight_panel(Image.new("RGB", (60, 60)), weights, ["left", "a very long name indeed for a narrow tile"], 16)
    assert panel.width > 4 * TILE and panel.height > TILE
    last = panel.crop((panel.width - TILE - 8, 8, panel.width - 8, 8 + TILE))
    expected = [tuple(round(0.6 * channel) for channel in COLOURS[number]) for number in (0, 1)]
    assert max(abs(a - b) for a, b in zip(last.getpixel((10, 100)), expected[0])) <= 1
    assert max(abs(a - b) for a, b in zip(last.getpixel((TILE - 20, 100)), expected[1])) <= 1
