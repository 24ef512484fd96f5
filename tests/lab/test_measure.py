"""The evaluation's measures, on cases whose answer is known."""

import numpy as np
import pytest

from lab import measure, world


def test_bootstrap_of_equal_values_has_no_width():
    assert measure.bootstrap([0.25] * 6, [0, 0, 1, 1, 2, 2]) == (0.25, 0.25, 0.25)


def test_bootstrap_draws_whole_groups():
    values, groups = [0.0] * 50 + [1.0] * 50, [0] * 50 + [1] * 50
    mean, low, high = measure.bootstrap(values, groups)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two groups only: each may be left out
    _, low, high = measure.bootstrap(values, range(100))
    assert 0.38 < low < 0.45 and 0.55 < high < 0.62  # independent pictures: the binomial's 0.5 +- 0.1


def test_patch_distance_knows_the_caption_from_another():
    shown, other = world.content(("alien", "bricks"), 1), world.content(("robot", "waves"), 2)
    images = np.stack([world.render(shown, seed) for seed in range(4)])
    right = measure.patch_distance(images, [shown] * 4, 100)
    wrong = measure.patch_distance(images, [other] * 4, 100)
    assert right.max() < 0.3 * wrong.min()


def test_patch_distance_does_not_mind_where_figures_stand_but_minds_blur():
    shown = world.content(("cat",), 3)
    image = world.render(shown, 0)
    blocks = image[:: world.PIXEL, :: world.PIXEL].astype(float)
    blurred = (blocks + np.roll(blocks, 1, 0) + np.roll(blocks, 1, 1) + np.roll(blocks, 2, 0)) / 4
    blurred = blurred.astype(np.uint8).repeat(world.PIXEL, 0).repeat(world.PIXEL, 1)
    sharp, soft = measure.patch_distance(np.stack([image, blurred]), [shown] * 2, 50)
    assert soft > 1.5 * sharp


@pytest.mark.parametrize("skills", [("alien", "gem"), ("palette", "waves")])
def test_patch_distance_is_repeatable(skills):
    shown = world.content(skills, 5)
    image = world.render(shown, 9)[None]
    assert measure.patch_distance(image, [shown], 7) == measure.patch_distance(image, [shown], 7)
