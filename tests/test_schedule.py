"""When an adapter takes part in the sampling."""

import pytest
import torch

from lib_loratorio.methods import BASE, METHODS, Plan, Predictions, planned
from lib_loratorio.schedule import ALWAYS, Window, taking_part, window
from lib_loratorio.settings import Settings, SettingsError


@pytest.mark.parametrize("named, expected", [
    ({}, ALWAYS),
    ({"ltstart": "0.2"}, Window(0.2, 1.0)),
    ({"te": "0.5", "ltend": "0.7", "ltstart": ".25"}, Window(0.25, 0.7)),
    ({"lbw": "OUTALL", "start": "0.5", "stop": "3"}, ALWAYS),
])
def test_windows_of_tags(named, expected):
    assert window(named, "a") == expected


@pytest.mark.parametrize("named, word", [
    ({"ltsart": "0.2"}, "ltsart"),
    ({"lstart": "0.2"}, "lstart"),
    ({"ltstop": "0.2"}, "ltstop"),
    ({"ltstart": "half"}, "ltstart=half"),
    ({"ltend": "1.5"}, "ltend=1.5"),
    ({"ltend": "nan"}, "ltend=nan"),
    ({"ltstart": "0.7", "ltend": "0.7"}, "below the end"),
])
def test_what_cannot_be_a_window_is_named(named, word):
    with pytest.raises(SettingsError, match=word) as error:
        window(named, "some lora")
    assert "some lora" in str(error.value)


def test_a_window_ends_before_its_end_but_holds_the_last_step():
    windows = [Window(0.25, 0.5), Window(0.5, 1.0), ALWAYS]
    found = [taking_part(windows, fraction) for fraction in (0.0, 0.25, 0.499, 0.5, 1.0)]
    assert found == [(2,), (0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize("window, tag", [(ALWAYS, ""), (Window(0.2), ":ltstart=0.2"), (Window(0.25, 0.7), ":ltstart=0.25:ltend=0.7")])
def test_tags_of_windows(window, tag):
    assert window.tag == tag


@pytest.mark.parametrize("name, expected", [
    ("loratorio", Plan((BASE, 1, 4), (BASE, 1, 4))), ("composite", Plan((1, 4), (1, 4))), ("switch", Plan((4,), (4,))),
])
def test_adapters_outside_their_window_are_in_no_plan(name, expected):
    method = METHODS[name](Settings())
    assert planned(method, (1, 4), 5) == (method, expected)


@pytest.mark.parametrize("name", ["loratorio", "composite", "switch"])
def test_without_adapters_a_step_is_the_base_s(name):
    method, plan = planned(METHODS[name](Settings()), (), 3)
    assert plan == Plan((BASE,), (BASE,))
    cond, uncond = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    composed = method.combine(Predictions({BASE: cond}, {BASE: uncond}, None, torch.arange(2)))
    assert composed.conditional is cond and composed.unconditional is uncond
    assert method.combine(Predictions({BASE: cond}, None, None, torch.arange(2))).unconditional is None
