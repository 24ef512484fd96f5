"""The distance of patches, on cases whose answer is known."""

import numpy as np
import pytest

from lab import world
from lab.evaluation.patches import patch_distance


def test_patch_distance_knows_the_caption_from_another():
    shown, other = world.content(("alien", "bricks"), 1), world.content(("robot", "waves"), 2)
    images = np.stack([world.render(shown, seed) for seed in range(4)])
    right = patch_distance(images, [shown] * 4, 100)
    wrong = patch_distance(images, [other] * 4, 100)
    assert right.max() < 0.3 * wrong.min()


def test_patch_distance_does_not_mind_where_figures_stand_but_minds_blur():
    shown = world.content(("cat",), 3)
    image = world.render(shown, 0)
    blocks = image[:: world.PIXEL, :: world.PIXEL].astype(float)
    blurred = (blocks + np.roll(blocks, 1, 0) + np.roll(blocks, 1, 1) + np.roll(blocks, 2, 0)) / 4
    blurred = blurred.astype(np.uint8).repeat(world.PIXEL, 0).repeat(world.PIXEL, 1)
    sharp, soft = patch_distance(np.stack([image, blurred]), [shown] * 2, 50)
    assert soft > 1.5 * sharp


@pytest.mark.parametrize("skills", [("alien", "gem"), ("palette", "waves")])
def test_patch_distance_is_repeatable(skills):
    shown = world.content(skills, 5)
    image = world.render(shown, 9)[None]
    assert patch_distance(image, [shown], 7) == patch_distance(image, [shown], 7)
