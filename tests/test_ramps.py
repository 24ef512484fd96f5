"""Strengths that change over the sampling."""

import pytest
from made_adapters import adapter

from lib_loratorio.engine.methods import BASE
from lib_loratorio.engine.planner import Planner
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.ramp import Ramp
from lib_loratorio.loras.tag import LOCAL, LoraTag
from lib_loratorio.settings import Settings


def tag(**named):
    return LoraTag.read(named, "a")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0@0,0.8@0.3,0.2@1", {0: 0, 0.15: 0.4, 0.3: 0.8, 0.65: 0.5, 1: 0.2, 1.2: 0.2}),
        ("1@0.2,0@0.6", {0: 1, 0.2: 1, 0.4: 0.5, 0.6: 0, 0.9: 0}),
        ("0.5@0.5", {0: 0.5, 1: 0.5}),
        ("1@0, 1@0.5, 0.2@0.5 ,0.2@1", {0.49: 1, 0.5: 0.2, 1: 0.2}),
        ("-1@0,1@1", {0: -1, 0.75: 0.5}),
        ("0@0,0@0.5,1@0.5", {0: 0, 0.49: 0, 0.5: 1}),
    ],
)
def test_factors_lie_on_straight_lines_between_points(text, expected):
    ramp = tag(ltw=text).ramp
    assert {fraction: pytest.approx(ramp.at(fraction)) for fraction in expected} == expected
    assert tag(ltw=ramp.text).ramp == ramp


@pytest.mark.parametrize(
    "text",
    ["", "1", "1@", "@1", "1@2", "1@-0.1", "1@0.5,0@0.2", "a@0", "nan@0", "1@nan", "inf@0", "1@0,,0@1", "1@.5@1"],
)
def test_what_is_no_ramp_is_named_with_the_form(text):
    with pytest.raises(SettingsError) as error:
        LoraTag.read({"ltw": text}, "some lora")
    told = str(error.value)
    assert f"the LoRA 'some lora' has ltw={text}; it must be factor@fraction" in told and "0@0,1@0.3,0.2@1" in told


@pytest.mark.parametrize("text, told", [("1@0.5,2@0.5,3@0.5", "at most two at the same"), ("0@0,0@1", "0 throughout")])
def test_ramps_of_no_use_are_told(text, told):
    with pytest.raises(SettingsError, match=told):
        tag(ltw=text)


def test_a_window_is_a_ramp():
    assert Ramp.window(0.25, 0.5) == tag(ltw="0@0.25,1@0.25,1@0.5,0@0.5").ramp
    for fraction in (0, 0.24, 0.25, 0.4, 0.49, 0.5, 0.9, 1):
        assert LoraTag(0.25, 0.5).factor(fraction, 0) == tag(ltw="0@0.25,1@0.25,1@0.5,0@0.5").factor(fraction, 0)


def test_a_ramp_acts_within_the_window_and_the_steps():
    both = tag(ltw="0@0,1@1", ltstart="0.25", ltend="0.75", stop="6")
    assert [both.factor(step / 10, step) for step in range(10)] == [0, 0, 0, 0.3, 0.4, 0.5, 0, 0, 0, 0]
    assert both.text == ":ltstart=0.25:ltend=0.75:ltw=0@0,1@1:stop=6"


@pytest.mark.parametrize("method", ["loratorio", "composite"])
def test_a_lora_is_evaluated_where_its_factor_is_not_0(method):
    planner = Planner(Settings(method=method), [adapter(tag(ltw="0@0,1@0.5,0@1")), adapter(), adapter(LoraTag(0.5))])
    steps = [planner.step(step / 4, step) for step in range(5)]
    assert [sorted({*step.plan.conditional} - {BASE}) for step in steps] == [[1], [0, 1], [0, 1, 2], [0, 1, 2], [1, 2]]
    assert [step.factors.by_adapter for step in steps] == [{}, {0: 0.5}, {}, {0: 0.5}, {}]


def test_an_adapters_own_strength_is_multiplied():
    one = adapter()
    half = one.times(0.5).times(0.5)
    assert (half.denoiser_strength, half.text_strength, half.factor) == (0.25, 1.0, 0.25)
    assert one.times(1) is one and LOCAL.factor(0.3, 3) == 1


@pytest.mark.parametrize(
    "named, parts",
    [
        ({}, {(0, 1): True}),
        ({"ltw": "0@0,1@0.5"}, {(0, 0.5): False, (0.5, 1): True, (0.4, 1): False, (0, 0): True}),
        ({"ltw": "1@0,1@0.5,0@0.5,1@0.75"}, {(0, 0.5): True, (0.5, 0.75): False, (0.75, 1): True, (0.4, 0.6): False}),
        ({"ltw": "0@0,2@1"}, {(0.4, 0.6): False, (0.5, 0.5): True}),
        ({"ltw": "0.5@0.5"}, {(0, 0.1): False}),
        ({"ltw": "1@0.3"}, {(0, 1): True}),
        ({"ltstart": "0.25", "ltend": "0.5"}, {(0, 0.25): False, (0.25, 0.5): True, (0.3, 0.4): True, (0.5, 1): False}),
        ({"ltstart": "0.25", "ltw": "0.5@0.25,1@0.25"}, {(0.25, 1): True, (0, 1): False}),
    ],
)
def test_where_the_strength_is_the_tags_own(named, parts):
    assert {part: tag(**named).is_whole(*part) for part in parts} == parts
