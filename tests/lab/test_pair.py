"""The rule by which the README's picture is chosen."""

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lab import pair
from lab.evaluation import measurements
from lab.evaluation.captions import skill_sets


def record(way, count, number, complete, distance, split="price"):
    return {
        "split": split,
        "way": way,
        "count": count,
        "number": number,
        "complete": complete,
        "distance": distance,
    }


def test_the_largest_gain_of_what_only_composing_shows():
    records = [
        record(pair.MERGED, 2, 0, [0, 1, 0], [9, 30, 40]),
        record(pair.BALANCED, 2, 0, [1, 1, 0], [5, 2, 1]),  # 4; shown by both; shown by neither
        record(pair.MERGED, 3, 0, [0, 0, 0], [9, 11, 9]),
        record(pair.BALANCED, 3, 0, [1, 1, 1], [6, 5, 8]),  # 3, 6, 1
        record(pair.MERGED, 4, 0, [0, 0, 0], [90, 90, 90], "strengths"),
        record(pair.BALANCED, 4, 0, [1, 1, 1], [0, 0, 0], "strengths"),
    ]
    assert pair.best(records) == ((3, 0), 1)


def test_it_is_chosen_of_all_test_captions():
    records = [one for one in measurements.read(pair.RESULTS) if one["split"] == "price"]
    for way in (pair.MERGED, pair.BALANCED):
        measured = {(one["count"], one["number"]) for one in records if one["way"] == way}
        assert measured == {(one.count, one.number) for one in skill_sets("test")}


def test_what_was_found_is_told_in_the_captions_order():
    present = [name in ("cat", "bricks") for name in pair.world.NAMES]
    assert pair.found(present, ("bricks", "alien", "cat")) == "found: bricks, cat"
    assert pair.found([False] * len(pair.world.NAMES), ("cat",)) == "found: nothing"
