"""How adapters take part in the sampling: when, and as what."""

import pytest
import torch
from made_adapters import adapter

from lib_loratorio.engine.methods import BASE, Plan, Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Planner
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.adapter import merged_below
from lib_loratorio.loras.block_weights import read_weights
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts, read_strength
from lib_loratorio.settings import Settings


@pytest.mark.parametrize(
    "named, expected",
    [
        ({}, LOCAL),
        ({"ltstart": "0.2"}, LoraTag(0.2, 1.0)),
        ({"te": "0.5", "ltend": "0.7", "ltstart": ".25"}, LoraTag(0.25, 0.7)),
        ({"unet": "0.5", "dyn": "8", "x": "0.5"}, LOCAL),
        ({"lt": "Global", "ltend": "0.5"}, LoraTag(0.0, 0.5, "global")),
        ({"lt": "local"}, LOCAL),
        ({"LT": " GLOBAL "}, LoraTag(role="global")),
        ({" lt": "global"}, LoraTag(role="global")),
        ({"LTSTART": "0.5"}, LoraTag(0.5)),
        ({"Ltend ": " 0.5 "}, LoraTag(0.0, 0.5)),
    ],
)
def test_windows_of_tags(named, expected):
    assert LoraTag.read(named, "a") == expected


@pytest.mark.parametrize(
    "named, steps",
    [
        ({"start": "5"}, range(5, 20)),
        ({"start": "0"}, range(20)),
        ({"start": "1"}, range(20)),
        ({"START": " 2 "}, range(2, 20)),
        ({"stop": "10"}, range(10)),
        ({"stop": "99"}, range(20)),
        ({"start": "3", "stop": "7"}, range(3, 7)),
        ({"Step": "5-10"}, range(5, 10)),
        ({"step": " 1 - 4 "}, range(4)),
        ({"step": "2-4", "start": "9", "stop": "x"}, range(2, 4)),
        ({"ltstart": "0.5", "stop": "15"}, range(10, 15)),
        ({"start": "8", "ltend": "0.5"}, range(8, 10)),
    ],
)
def test_windows_in_steps(named, steps):
    tag = LoraTag.read(named, "a")
    assert [step for step in range(20) if tag.holds(step / 20, step)] == list(steps)
    planner = Planner(Settings(method="composite"), [adapter(tag), adapter()])
    assert [step for step in range(20) if 0 in planner.step(step / 20, step).plan.conditional] == list(steps)


@pytest.mark.parametrize(
    "named, text",
    [
        ({"lbw": "OUTS"}, "OUTS"),
        ({" LBW ": " OUTS "}, "OUTS"),
        ({"lbw": "X" + ",1" * 16, "x": "0.5"}, "0.5" + ",1" * 16),
    ],
)
def test_block_weights_of_tags(named, text):
    tag = LoraTag.read(named, "a")
    assert tag.blocks.numbers == read_weights(text, "a").numbers and not tag.has_steps


def test_block_weights_by_a_name_of_ones_own():
    assert LoraTag.read({"lbw": "MINE"}, "a", {"MINE": "2" + ",1" * 11}).blocks.factor("encoder") == 2


def test_random_block_weights_are_drawn_once():
    tag = LoraTag.read({"lbw": "R" + ",1" * 16}, "a")
    assert tag.drawn("7") == tag.drawn("7").drawn("8") != tag.drawn("8")
    assert 0 <= tag.drawn("7").blocks.factor("encoder") <= 1


def test_adapters_of_unequal_block_weights_are_unequal():
    tags = [LoraTag.read({"lbw": text}, "a") for text in ("OUTS", "OUTD", "OUTALL")]
    assert len({adapter(tag).key for tag in (LOCAL, *tags, *tags)}) == 4


@pytest.mark.parametrize(
    "named, word",
    [
        ({"ltsart": "0.2"}, "ltsart"),
        ({"lstart": "0.2"}, "lstart"),
        ({"ltstop": "0.2"}, "ltstop"),
        ({"itstart": "0.2"}, "itstart"),
        ({"LSTART": "0.2"}, "lstart"),
        ({"ltEnde": "0.2"}, "ltende"),
        ({"ltstart": "half"}, "ltstart=half"),
        ({"ltend": "1.5"}, "ltend=1.5"),
        ({"ltend": "nan"}, "ltend=nan"),
        ({"lt": "everywhere"}, "lt=everywhere"),
        ({"ltstart": "0.7", "ltend": "0.7"}, "below the end"),
        (
            {"lbww": "ALL"},
            "'lbww', which is not known; the names are ltstart, ltend, lt, .*, lbw, start, stop and step",
        ),
        ({"starts": "3"}, "'starts', which is not known"),
        ({"stops": "3"}, "'stops', which is not known"),
        ({"lbw": "OUTAL"}, "lbw=OUTAL, which is no preset"),
        ({"start": "0.5"}, "start=0.5; it must be a whole number of steps. ltstart and ltend take fractions"),
        ({"stop": "-3"}, "stop=-3; it must be a whole number"),
        ({"step": "5"}, "step=5; it must be two steps, such as 5-10"),
        ({"step": "5-"}, "step=5-; it must be a whole number"),
        ({"step": "5-9-"}, "step=5-9-; it must be a whole number"),
        ({"start": "5", "stop": "5"}, "start 5 and stop 5, and so no step"),
        ({"stop": "1"}, "start 0 and stop 1, and so no step"),
    ],
)
def test_what_cannot_be_a_window_is_named(named, word):
    with pytest.raises(SettingsError, match=word) as error:
        LoraTag.read(named, "some lora")
    assert "some lora" in str(error.value)


@pytest.mark.parametrize("text, expected", [("0.8", 0.8), (" -1 ", -1.0), ("1e-1", 0.1), (".5", 0.5), (2, 2.0)])
def test_strengths(text, expected):
    assert read_strength(text, "a") == expected


@pytest.mark.parametrize("text", ["0,8", "0. 6", "1.1.", "OUTALL", "0@0,1@0.5", "", "nan", "inf", "-inf", None])
def test_a_strength_that_is_no_number_names_the_lora_and_the_text(text):
    with pytest.raises(SettingsError) as error:
        read_strength(text, "some lora")
    assert f"the LoRA 'some lora' has the strength '{text}'" in str(error.value) and "such as 0.8" in str(error.value)


def test_a_window_ends_before_its_end_but_holds_the_last_step():
    windows = [LoraTag(0.25, 0.5), LoraTag(0.5, 1.0), LOCAL]
    found = [
        tuple(number for number, window in enumerate(windows) if window.holds(fraction, 0))
        for fraction in (0.0, 0.25, 0.499, 0.5, 1.0)
    ]
    assert found == [(2,), (0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    "tag, text",
    [
        (LOCAL, ""),
        (LoraTag(0.2), ":ltstart=0.2"),
        (LoraTag(0.25, 0.7), ":ltstart=0.25:ltend=0.7"),
        (LoraTag(end=0.7, role="global"), ":ltend=0.7:lt=global"),
        (LoraTag.read({"step": "5-10", "lbw": "ALL0.5"}, "a"), f":lbw={','.join(['0.5'] * 17)}:start=5:stop=10"),
    ],
)
def test_tags(tag, text):
    assert tag.text == text


@pytest.mark.parametrize(
    "name, expected",
    [
        ("loratorio", Plan((BASE, 1, 4), (BASE, 1, 4))),
        ("composite", Plan((1, 4), (1, 4))),
        ("switch", Plan((4,), (4,))),
    ],
)
def test_adapters_outside_their_window_are_in_no_plan(name, expected):
    late, early = LoraTag(0.5, 1.0), LoraTag(0.0, 0.5)
    planner = Planner(Settings(method=name), [adapter(tag) for tag in (late, early, late, late, LOCAL)])
    assert planner.step(0.25, 5).plan == expected


@pytest.mark.parametrize("name", ["loratorio", "composite", "switch"])
def test_without_adapters_a_step_is_the_base_s(name):
    method, plan, *_ = Planner(Settings(method=name), [adapter(LoraTag(0.5))]).step(0.25, 3)
    assert plan == Plan((BASE,), (BASE,))
    cond, uncond = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    composed = method.combine(Predictions({BASE: cond}, {BASE: uncond}, NoiseSpace.noise(), torch.arange(2)))
    assert composed.conditional is cond and composed.unconditional is uncond
    assert method.combine(Predictions({BASE: cond}, None, NoiseSpace.noise(), torch.arange(2))).unconditional is None


@pytest.mark.parametrize(
    "name, expected", [("loratorio", Plan((BASE, 1, 3), (BASE, 1, 3))), ("composite", Plan((1, 3), (1, 3)))]
)
def test_global_adapters_are_everywhere_and_compete_nowhere(name, expected):
    adapters = [adapter(LoraTag(role="global")), adapter(), adapter(LoraTag(0.5, role="global")), adapter()]
    planner = Planner(Settings(method=name), adapters)
    assert planner.step(0.25, 5)[1:3] == (expected, (0,))
    assert planner.step(0.5, 10)[1:3] == (expected, (0, 2))
    assert planner.competing == [1, 3]


@pytest.mark.parametrize("strengths, expected", [((0.0, 0.0), False), ((0,), False), ((0, -0.1), True), ((1.0,), True)])
def test_a_lora_of_strength_zero_is_none(strengths, expected):
    assert acts(*strengths) is expected


def test_global_adapters_alone_are_the_base():
    assert Planner(Settings(), [adapter(LoraTag(role="global"))]).step(0, 0)[1:3] == (Plan((BASE,), (BASE,)), (0,))


def test_what_lies_below_an_adapter_is_the_global_ones_before_it_or_all():
    first, _, second, _ = adapters = [
        adapter(LoraTag(end=end, role=role))
        for end, role in ((1, "global"), (0.1, "local"), (0.5, "global"), (0.2, "local"))
    ]
    assert merged_below(adapters) == [[], [first, second], [first], [first, second]]
