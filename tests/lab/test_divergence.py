"""What a caption is to a LoRA, and which LoRAs win the places, on values that are known."""

import numpy as np
import pytest

pytest.importorskip("diffusers")

from lab import world
from lab.evaluation import divergence
from lab.evaluation.captions import skill_sets
from lab.evaluation.divergence import ANOTHERS, ASKED, EMPTY, OWN, PLAIN, UNASKED, WEIGHINGS, Divergences, Look


def _look(caption, *skills):
    return Look(caption, np.zeros((world.SIZE, world.SIZE, 3), np.uint8), skills)


def test_a_caption_is_another_thing_to_every_lora():
    alone, both = _look("zorbo", "alien"), _look("zorbo and flarn", "alien", "gem")
    assert [divergence.kind(name, alone) for name in ("alien", "gem")] == [OWN, ANOTHERS]
    assert [divergence.kind(name, both) for name in ("alien", "cat")] == [ASKED, UNASKED]
    assert [divergence.kind("alien", look) for look in (_look("a red circle"), _look(""))] == [PLAIN, EMPTY]


def test_every_skill_is_looked_at_alone_and_the_sets_captions_once():
    sets = skill_sets("dev", 1)
    seen = divergence.looks(2, sets)
    assert [look.skills for look in seen[:18:2]] == [(name,) for name in world.NAMES]
    assert [bool(look.caption) for look in seen[18:22]] == [True, True, False, False]
    assert np.array_equal(seen[18].image, seen[20].image)
    assert [look.caption for look in seen[22:]] == [c.caption for s in sets for c in s.contents()[1]]
    assert all(world.SKILLS[look.skills[0]].trigger in look.caption for look in seen[:18])


def _values(looks, steps, places, **of):
    """`[LoRAs, steps, looks, places]`: what is named, by LoRA, in all steps and looks; a thousandth for the others."""
    values = np.full((len(world.NAMES), steps, looks, places), 0.001)
    for name, by_place in of.items():
        values[world.NAMES.index(name)] = by_place
    return values


def test_places_are_won_by_whom_diverges_most():
    seen = [_look("zorbo", "alien"), _look("zorbo and flarn", "alien", "gem")]
    values = _values(2, 3, 4, alien=[0.5, 0.1, 0.1, 0.1], cat=[0.2, 0.2, 0.2, 0.01], gem=[0.1, 0.1, 0.3, 0.02])
    assert divergence.won(values, seen) == {"1": [0.75, 0.75, 0.75]}


def test_weighings_say_who_wins_and_who_has_a_place(tmp_path):
    seen = [_look("zorbo and flarn", "alien", "gem")]
    own = _values(1, 1, 4, alien=[0.4, 0.02, 0.02, 0.02], cat=[0.51] * 4, gem=[0.01, 0.04, 0.01, 0.01])
    empty = _values(1, 1, 4, alien=[0.1, 0.02, 0.02, 0.02], cat=[0.5] * 4, gem=[0.01] * 4)
    found = Divergences(np.concatenate((own, empty), 2), [901])
    of = {line["weighing"]: line for line in divergence.weighing_lines("shipped", found, seen)}
    paper, less, mean = (of[name] for name in list(WEIGHINGS)[:3])
    assert paper["won"] == {"0": [0.0]} and paper["placed"] == {"0": 0.0}
    assert less["won"] == {"0": [0.5]} and less["placed"] == {"0": 1.0}
    assert mean["won"] == {"0": [0.5]} and of["over its own mean in the picture"]["won"] == {"0": [0.5]}


def test_lines_keep_the_mean_over_places_by_step_and_caption(tmp_path):
    seen = [_look("zorbo", "alien"), _look("flarn", "gem"), _look("zorbo and flarn", "alien", "gem")]
    found = Divergences(_values(3, 2, 4, alien=[0.4, 0.2, 0.1, 0.1]), [901, 401])
    divergence.write(tmp_path / "lines.jsonl", divergence.lines("shipped", found, seen))
    kept = divergence.read(tmp_path / "lines.jsonl")
    of = {(line["lora"], line["captions"]): line["divergence"] for line in kept if "lora" in line}
    assert of["alien", OWN] == [[0.2], [0.2]] and of["gem", ANOTHERS] == [[0.001], [0.001]]
    assert of["alien", ASKED] == [[0.2], [0.2]] and of["cat", UNASKED] == [[0.001], [0.001]]
    assert ("alien", PLAIN) not in of
    assert kept[-1]["won"] == {"2": [1.0, 1.0]} and kept[-1]["counts"] == [2] and kept[-1]["timesteps"] == [901, 401]
