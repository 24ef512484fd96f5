"""Figures with a box each: their captions, their LoRAs' regions, what is counted, and the report."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lab import detector, model, world
from lab.evaluation import boxes, places_report
from lab.evaluation.captions import skill_sets
from lab.evaluation.couple import Coupled, columns
from lab.evaluation.ways import CAPTIONED, COLOURED, NO_REGION, OWN_CAPTIONS, PLACED


def test_sets_are_figures_whose_order_is_not_the_captions():
    contents = [(s.count, *s.contents()) for s in skill_sets("places")]
    assert len(contents) == 12 and {count for count, *_ in contents} == {2, 3}
    for count, skills, shown in contents:
        assert len(skills) == count and set(skills) <= set(world.FIGURES)
        assert all(sorted(one.figures) == sorted(skills) and one.style is None for one in shown)
    in_order = [one.figures == skills for _, skills, shown in contents for one in shown]
    assert 0 < sum(in_order) < len(in_order)


@pytest.mark.parametrize("count", boxes.WORDS)
def test_regions_are_the_boxes_that_are_looked_into(count, tmp_path):
    skills = world.FIGURES[:count]
    for lora, (left, right) in zip(
        PLACED["LoRAtorio, regions"].loras(skills, tmp_path), boxes.edges(count), strict=True
    ):
        (box,) = lora.tag.region.boxes
        assert (box.left, box.top, box.right, box.bottom) == pytest.approx((left, 0, right, 1))
    assert all(lora.tag.region is None for lora in PLACED[NO_REGION].loras(skills, tmp_path))


def test_own_words_are_not_in_the_prompt_of_all(tmp_path):
    shown, way = world.Content(("cat", "gem"), "white", None), PLACED["LoRAtorio, regions, own words"]
    assert way.prompt(shown) == "a white ground"
    assert [lora.prompt for lora in way.loras(("gem", "cat"), tmp_path)] == ["flarn", "mippa"]
    other = PLACED["LoRAtorio, regions"]
    assert other.prompt(shown) == shown.caption and not any(lora.prompt for lora in other.loras(("cat",) * 2, tmp_path))


def test_captions_are_each_loras_own(tmp_path):
    shown, own, one = world.Content(("cat", "gem"), "white", None), COLOURED["own captions"], COLOURED["one caption"]
    assert [lora.prompt for lora in CAPTIONED[OWN_CAPTIONS].loras(("gem", "cat"), tmp_path, shown)] == [
        "flarn on a white ground",
        "mippa on a white ground",
    ]
    assert [lora.prompt for lora in own.loras(("gem", "cat"), tmp_path, shown)] == [
        "flarn on a white ground",
        "mippa on a grey ground",
    ]
    assert own.prompt(shown, ("gem", "cat")) == "" and not any(
        lora.prompt for lora in one.loras(("gem", "cat"), tmp_path, shown)
    )
    assert one.prompt(shown, ("gem", "cat")) == "flarn on a white ground and mippa on a grey ground"


def test_grounds_of_boxes_are_those_of_most_of_their_pixels():
    shown = world.Content(("cat", "gem"), list(world.GROUNDS)[-1], None)
    asked = boxes.grounds(shown)
    assert asked == [list(world.GROUNDS)[-1], next(iter(world.GROUNDS))]
    halves = np.empty((2, 128, 128, 3), np.uint8)
    for half, name in ((np.s_[:, :, :64], asked[0]), (np.s_[:, :, 64:], asked[1])):
        halves[half] = world.GROUNDS[name]
    halves[0, :32, :64] = world.GROUNDS[asked[1]]
    halves[1, :96, 64:] = world.GROUNDS[asked[0]]
    halves[:, 100:, :20] = world.COLOURS["red"]
    found = boxes.grounds_found(halves, [asked, asked])
    assert found.own_ground.tolist() == [1, 0.5] and found.bled.tolist() == [0.125, 0.375]


def test_a_figure_in_anothers_box_is_astray():
    seen = np.zeros((3, 2, 2), bool)  # picture, box, figure
    seen[0, 0, 0] = seen[0, 1, 1] = seen[1, 0, 1] = seen[1, 0, 0] = True
    inside, astray = boxes.tally(seen)
    assert inside.tolist() == [1, 0.5, 0] and astray.tolist() == [0, 1, 0]


def test_detector_tells_a_box_from_another():
    judge = detector.load(model.WEIGHTS / "detector.safetensors")
    inside, astray = boxes.accuracy(judge, 2, renders=8)
    assert (inside, astray) == (1, 0)
    inside, astray = boxes.accuracy(judge, 3, renders=16)
    assert inside > 0.9 and astray < 0.1


def test_columns_share_the_places_by_area():
    halves, thirds = columns(4, 2).reshape(2, 4, 4), columns(4, 3).reshape(3, 4, 4)
    assert halves[:, 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    torch.testing.assert_close(thirds[0, 3], torch.tensor([1, 1 / 3, 0, 0]))
    torch.testing.assert_close(thirds.sum(0), torch.ones(4, 4))


def test_each_box_attends_to_its_own_text():
    def text_of(attn, hidden, text, **kw):
        return hidden if text is None else text[:, :1].expand_as(hidden)

    coupled = Coupled(text_of, [torch.full((1, 2, 3), value) for value in (5.0, 7.0)])
    hidden, text = torch.zeros(2, 4, 3), torch.stack([torch.full((2, 3), 1.0), torch.full((2, 3), 2.0)])
    assert coupled(None, hidden, text)[..., 0].tolist() == [[1, 1, 1, 1], [5, 7, 5, 7]]
    assert coupled(None, hidden) is hidden


def _records(sets):
    return [
        {
            "split": "places",
            "way": way,
            "count": 2,
            "number": number,
            "skills": ["alien", "cat"],
            "present": [1.0, 0.5],
            "complete": [1, 0],
            "others": [0, 0],
            "distance": [1.0, 2.0],
            "inside": [0.5, 0.5] if way == NO_REGION else [1.0, 1.0],
            "astray": [1, 1] if way == NO_REGION else [0, 0],
            "seconds": 1.0,
            "evaluations": 40.0,
            **({"own_ground": [1.0, 1.0], "bled": [0.25, 0.25]} if way in COLOURED else {}),
        }
        for number in range(sets)
        for way in {**PLACED, **CAPTIONED, **COLOURED}
    ]


def test_report_has_the_sets_that_every_way_has(tmp_path):
    judge, path = detector.load(model.WEIGHTS / "detector.safetensors"), tmp_path / "places.md"
    records = _records(3)
    records.remove(next(record for record in records if record["way"] == "Merge"))
    records.remove(next(record for record in records if record["way"] == "own captions"))
    places_report.write(records, path, judge)
    text = path.read_text()
    assert "4 captions" in text and "**Only 2 of 12 sets so far (2 of 2 figures and 0 of 3 figures)" in text
    row = "| LoRAtorio, regions | 100% | +50.0 (+50.0 to +50.0) | -1.00 (-1.00 to -1.00) | +0.0 (+0.0 to +0.0) |"
    assert row in text
    row = "| Merge, attention couple, captions | 40 | 100 (100 to 100) | 25 (25 to 25) | 100 (100 to 100) |"
    assert row in text and "(4 captions,\nsets measured: 2; LoRA" in text and "(6 captions, sets measured: 3)" in text
