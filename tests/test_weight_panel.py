"""The panel drawn from weights."""

import numpy as np
import torch
from PIL import Image

from lib_loratorio.engine.painted import NOBODY, Painted
from lib_loratorio.loras.mask_image import numbers_in
from lib_loratorio.loras.region import Box
from lib_loratorio.page.weight_panel import COLOURS, TILE, as_painted, weight_panel


def test_winner_has_its_colour():
    weights = torch.zeros(2, 4, 4)
    weights[0, :, :2] = weights[1, :, 2:] = 1
    panel = weight_panel(Image.new("RGB", (60, 60)), weights, ["left", "a very long name indeed for a narrow tile"], 16)
    assert panel.width > 4 * TILE and panel.height > TILE
    last = panel.crop((panel.width - TILE - 8, 8, panel.width - 8, 8 + TILE))
    expected = [tuple(round(0.6 * channel) for channel in COLOURS[number]) for number in (0, 1)]
    assert max(abs(a - b) for a, b in zip(last.getpixel((10, 100)), expected[0])) <= 1
    assert max(abs(a - b) for a, b in zip(last.getpixel((TILE - 20, 100)), expected[1])) <= 1


def _last(panel):
    return panel.crop((panel.width - TILE - 8, 8, panel.width - 8, 8 + TILE))


def test_what_is_nobodys_is_shown():
    weights = torch.zeros(2, 4, 4)
    weights[0, :, :2] = weights[1, :1, 2:] = 1
    panel = weight_panel(Image.new("RGB", (60, 60)), weights, ["a", "b"], 16)
    full = weight_panel(Image.new("RGB", (60, 60)), torch.ones(2, 4, 4) / 2, ["a", "b"], 16)
    assert _last(panel).getpixel((TILE - 20, 200)) == (0, 0, 0)
    assert panel.height > full.height, "the legend has a line more"


def test_regions_are_outlined_in_the_colours_of_their_loras():
    weights = torch.ones(2, 4, 4) / 2
    boxes = [[Box(0, 0, 0.5, 0.5), Box(0.75, 0.75, 1, 1)], []]
    panel = weight_panel(Image.new("RGB", (256, 256)), weights, ["a", "b"], 64, regions=boxes)
    plain = weight_panel(Image.new("RGB", (256, 256)), weights, ["a", "b"], 64)
    of_a = (TILE + 16, 8)
    assert panel.getpixel((of_a[0] + 60, of_a[1] + 127)) == COLOURS[0]
    assert panel.getpixel((of_a[0] + 192, of_a[1] + 220)) == COLOURS[0]
    assert _last(panel).getpixel((60, 127)) == COLOURS[0]
    of_b = (2 * TILE + 24, 8, 3 * TILE + 24, 8 + TILE)
    assert panel.crop(of_b).tobytes() == plain.crop(of_b).tobytes()


def test_who_wins_where_is_a_mask():
    weights = torch.zeros(3, 2, 4)
    weights[0, :, 0] = weights[1, :, 1] = weights[2, 0, 2] = 0.9
    colours = np.array([*COLOURS[:3], (0, 0, 0)], np.uint8)
    assert (np.asarray(as_painted(weights)) == colours[[[0, 1, 2, 3], [0, 1, 3, 3]]]).all()
    assert numbers_in(as_painted(weights), ["a", "b", "c"]).tolist() == [[0, 1, 2, -1], [0, 1, -1, -1]]
    assert as_painted(torch.ones(9, 2, 2) / 9) is None


def test_painted_places_are_outlined_in_the_colours_of_their_loras():
    """Along their inner edge, in the tile of their LoRA and in the last one."""
    weights, picture = torch.ones(2, 4, 4) / 2, Image.new("RGB", (256, 256))
    numbers = torch.full((8, 8), NOBODY)
    numbers[:4, :4], numbers[6:, 6:] = 0, 5
    panel = weight_panel(picture, weights, ["a", "b"], 64, painted=Painted(numbers))
    plain = weight_panel(picture, weights, ["a", "b"], 64)
    of_a, last = (TILE + 16, 8), (3 * TILE + 32, 8)
    for left, top in (of_a, last):
        edge = [(127, 60), (60, 127), (0, 60), (60, 0)]
        assert [panel.getpixel((left + x, top + y)) for x, y in edge] == [COLOURS[0]] * 4
        for x, y in ((64, 64), (129, 60), (192, 192), (193, 200)):
            assert panel.getpixel((left + x, top + y)) == plain.getpixel((left + x, top + y)) != COLOURS[0]
    of_b = (2 * TILE + 24, 8, 3 * TILE + 24, 8 + TILE)
    assert panel.crop(of_b).tobytes() == plain.crop(of_b).tobytes()


def test_a_part_of_the_picture_shows_a_part_of_what_is_painted():
    numbers = torch.arange(32).view(4, 8)
    assert Painted(numbers).seen_in(Box(0.25, 0.5, 0.5, 1)).numbers.tolist() == [[18, 19], [26, 27]]
