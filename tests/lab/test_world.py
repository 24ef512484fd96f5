"""The synthetic world: deterministic, complete, and its skills really independent."""

import numpy as np
import pytest

from lab import world


@pytest.mark.parametrize("count", range(6))
def test_same_seed_same_scene(count):
    skills = world.random_skills(np.random.default_rng(count), count) if count else ()
    (one, caption), (two, again) = world.scene(skills, 7), world.scene(skills, 7)
    assert caption == again and np.array_equal(one, two)
    assert one.shape == (world.SIZE, world.SIZE, 3) and one.dtype == np.uint8


@pytest.mark.parametrize("name", world.NAMES)
def test_caption_names_exactly_the_skills_of_the_scene(name):
    _, caption = world.scene((name,), 0)
    words = caption.replace(",", "").split()
    assert [n for n in world.NAMES if world.SKILLS[n].trigger in words] == [name]


def test_base_domain_knows_no_trigger():
    _, captions, targets = world.batch(lambda rng: (), 200, 0)
    assert targets.sum() == 0
    assert not any(s.trigger in c.replace(",", "").split() for s in world.SKILLS.values() for c in captions)


def test_generic_scene_is_plain_colours():
    image, _ = world.scene((), 3)
    plain = {*world.COLOURS.values(), *world.GROUNDS.values()}
    assert {tuple(c) for c in np.unique(image.reshape(-1, 3), axis=0).tolist()} <= plain


def test_sprite_is_drawn_whole():
    image, _ = world.scene(("alien", "cat", "robot"), 5)
    colours = {tuple(c) for c in image.reshape(-1, 3).tolist()}
    for name in ("alien", "cat", "robot"):
        stamp = world._SPRITES[name]
        assert {tuple(c) for c in stamp[stamp[..., 3] > 0][:, :3].tolist()} <= colours


def test_incompatible_skills_are_refused():
    for skills in (("hatching", "palette"), ("bricks", "waves"), ("alien", "cat", "robot", "gem"), ("alien", "alien")):
        with pytest.raises(ValueError):
            world.scene(skills, 0)


def test_figures_never_overlap_nor_leave_the_canvas():
    half = world.STAMP // 2
    for slots in world.SLOTS.values():
        for slot in slots:
            assert all(half + world.JITTER <= v <= world.CANVAS - half - world.JITTER for v in slot)
        for i, a in enumerate(slots):
            for b in slots[i + 1 :]:
                assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= world.STAMP + 2 * world.JITTER
