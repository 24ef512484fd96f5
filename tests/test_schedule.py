"""How adapters take part in the sampling: when, and as what."""

import pytest
import torch
from members import Member

from lib_loratorio.engine.methods import BASE, Plan, Predictions
from lib_loratorio.engine.planner import Planner
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.tag import LOCAL, Part, merged_below, part, taking_part
from lib_loratorio.settings import Settings


@pytest.mark.parametrize(
    "named, expected",
    [
        ({}, LOCAL),
        ({"ltstart": "0.2"}, Part(0.2, 1.0)),
        ({"te": "0.5", "ltend": "0.7", "ltstart": ".25"}, Part(0.25, 0.7)),
        ({"lbw": "OUTALL", "start": "0.5", "stop": "3"}, LOCAL),
        ({"lt": "Global", "ltend": "0.5"}, Part(0.0, 0.5, "global")),
        ({"lt": "local"}, LOCAL),
    ],
)
def test_windows_of_tags(named, expected):
    assert part(named, "a") == expected


@pytest.mark.parametrize(
    "named, word",
    [
        ({"ltsart": "0.2"}, "ltsart"),
        ({"lstart": "0.2"}, "lstart"),
        ({"ltstop": "0.2"}, "ltstop"),
        ({"ltstart": "half"}, "ltstart=half"),
        ({"ltend": "1.5"}, "ltend=1.5"),
        ({"ltend": "nan"}, "ltend=nan"),
        ({"lt": "everywhere"}, "lt=everywhere"),
        ({"ltstart": "0.7", "ltend": "0.7"}, "below the end"),
    ],
)
def test_what_cannot_be_a_window_is_named(named, word):
    with pytest.raises(SettingsError, match=word) as error:
        part(named, "some lora")
    assert "some lora" in str(error.value)


def test_a_window_ends_before_its_end_but_holds_the_last_step():
    windows = [Part(0.25, 0.5), Part(0.5, 1.0), LOCAL]
    found = [taking_part(windows, fraction) for fraction in (0.0, 0.25, 0.499, 0.5, 1.0)]
    assert found == [(2,), (0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    "part, tag",
    [
        (LOCAL, ""),
        (Part(0.2), ":ltstart=0.2"),
        (Part(0.25, 0.7), ":ltstart=0.25:ltend=0.7"),
        (Part(end=0.7, role="global"), ":ltend=0.7:lt=global"),
    ],
)
def test_tags(part, tag):
    assert part.tag == tag


@pytest.mark.parametrize(
    "name, expected",
    [
        ("loratorio", Plan((BASE, 1, 4), (BASE, 1, 4))),
        ("composite", Plan((1, 4), (1, 4))),
        ("switch", Plan((4,), (4,))),
    ],
)
def test_adapters_outside_their_window_are_in_no_plan(name, expected):
    late, early = Part(0.5, 1.0), Part(0.0, 0.5)
    course = Planner(Settings(method=name), [Member(part) for part in (late, early, late, late, LOCAL)])
    assert course.step(0.25, 5).plan == expected


@pytest.mark.parametrize("name", ["loratorio", "composite", "switch"])
def test_without_adapters_a_step_is_the_base_s(name):
    method, plan, _ = Planner(Settings(method=name), [Member(Part(0.5))]).step(0.25, 3)
    assert plan == Plan((BASE,), (BASE,))
    cond, uncond = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    composed = method.combine(Predictions({BASE: cond}, {BASE: uncond}, None, torch.arange(2)))
    assert composed.conditional is cond and composed.unconditional is uncond
    assert method.combine(Predictions({BASE: cond}, None, None, torch.arange(2))).unconditional is None


@pytest.mark.parametrize(
    "name, expected", [("loratorio", Plan((BASE, 1, 3), (BASE, 1, 3))), ("composite", Plan((1, 3), (1, 3)))]
)
def test_global_adapters_are_everywhere_and_compete_nowhere(name, expected):
    members = [Member(Part(role="global")), Member(), Member(Part(0.5, role="global")), Member()]
    course = Planner(Settings(method=name), members)
    assert course.step(0.25, 5)[1:] == (expected, (0,))
    assert course.step(0.5, 10)[1:] == (expected, (0, 2))
    assert course.competing == [1, 3]


def test_global_adapters_alone_are_the_base():
    assert Planner(Settings(), [Member(Part(role="global"))]).step(0, 0)[1:] == (Plan((BASE,), (BASE,)), (0,))


def test_what_lies_below_an_adapter_is_the_global_ones_before_it_or_all():
    first, _, second, _ = members = [
        Member(Part(end=end, role=role))
        for end, role in ((1, "global"), (0.1, "local"), (0.5, "global"), (0.2, "local"))
    ]
    assert merged_below(members) == [[], [first, second], [first], [first, second]]
