"""What the controls beside the pool's text offer and write."""

import pytest
import standin


@pytest.fixture
def picker():
    with standin.installed() as host:
        yield host.picker


def test_choices_are_folders_and_names(picker):
    assert picker.choices(["styles/ink", "styles/old/oil", "Zebra", "ant"]) == [
        "styles/*",
        "styles/old/*",
        "ant",
        "ink",
        "oil",
        "Zebra",
    ]


def test_what_cannot_be_written_cannot_be_picked(picker):
    assert picker.choices(["old, new/ink", "fine/a:b", "fine/a, b"]) == ["fine/*", "ink"]


@pytest.mark.parametrize(
    "pool, picked, strength, expected",
    [
        ("", ["cat", "styles/*"], 0.8, "cat:0.8, styles/*:0.8"),
        ("ink:0.5\n oil,", ["cat"], 1, "ink:0.5, oil, cat:1"),
        ("ink", [], 1, "ink"),
        (None, None, 1, ""),
    ],
)
def test_what_is_picked_goes_behind_what_is_there(picker, pool, picked, strength, expected):
    assert picker.added(pool, picked, strength) == expected
