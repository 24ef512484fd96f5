"""What the accordion's live help tells: the LoRAs of a prompt, and what a step costs with them."""

import base64
import io
import json

import pytest
from PIL import Image

from lib_loratorio.engine.price import LONGEST, evaluations_per_step
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.tag import LOCAL
from lib_loratorio.page.live import loras_of, price, price_of
from lib_loratorio.palette import COLOURS
from lib_loratorio.settings import METHODS, SETTINGS, Settings


@pytest.mark.parametrize(
    "tag, expected",
    [
        ("<lora:a>", "a 1"),
        ("<lora:a:0.80>", "a 0.80"),
        ("<lyco:a:0.5>", "a 0.5"),
        ("<lora:a:-0.5:-0.7>", "a -0.5/-0.7"),
        ("<lora:a:0.5:0.5>", "a 0.5"),
        ("<lora:a:0.5:0.50>", "a 0.5/0.50"),
        ("<lora:a:0.5:0.7:ltstart=0.2>", "a 0.5/0.7"),
        ("<lora:a:te=0.5:unet=0>", "a 0.5/0"),
        ("<lora:a:0.3:te=0.5>", "a 0.5"),
        ("<lora:a:unet=0.5>", "a 1/0.5"),
        ("<lora:a:0:1>", "a 0/1"),
        ("<lora:a:1:dyn=4>", "a 1"),
        ("<lora:a::0.5>", "a 0.5"),
        ("<lora:a:strong>", "a strong"),
        ("<lora:a b-c.1:1>", "a b-c.1 1"),
        ("<lora:a:1:lt=0.5=1>", "a 1"),
        ("<lora:a:0>", None),
        ("<lora:a:-0.0>", None),
        ("<lora:a:te=0:unet=0>", None),
        ("<lora:a:1:te=0:unet=0>", None),
        ("<lora:a:te=>", None),
        ("<lora:a:1", None),
        ("<lora:>", None),
        ("<hypernet:a:1>", None),
    ],
)
def test_tags(tag, expected):
    found = [f"{lora.name} {lora.strength}" for lora in loras_of(f"a cat, {tag} (red:1.2)")]
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    "argument, role",
    [
        ("", "local"),
        (":lt=global", "global"),
        (":lt= GLOBAL ", "global"),
        (": LT=global", "global"),
        (":lt=local", "local"),
        (":lt=glob", "local"),
        (":ltstart=2:lt=global", "global"),
        (":ltbegin=0.5", "local"),
    ],
)
def test_roles(argument, role):
    (lora,) = loras_of(f"<lora:a:1{argument}>")
    assert lora.role == role


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, (2, 3, 8)),
        ({"lam": 1}, (2, 2, 5)),
        ({"lam": 0}, (2, 2, 7)),
        ({"guidance_every": 2}, (2, 2.5, 6.5)),
        ({"guidance_every": 4}, (2, 2.25, 5.75)),
        ({"guidance_every": 2, "lam": 0}, (2, 2.5, 6.5)),
        ({"guidance_every": 4, "lam": 1}, (2, 2, 5)),
        ({"method": "composite"}, (2, 2, 6)),
        ({"method": "composite", "lam": 1}, (2, 2, 6)),
        ({"method": "composite", "guidance_every": 2}, (2, 2.5, 5.5)),
        ({"method": "switch", "guidance_every": 3}, (2, 2, 2)),
        ({"method": "merge"}, (2, 2, 2)),
        ({"refresh_every": 3, "lam": 1}, (2, 2, 10 / 3)),
        ({"refresh_every": 2}, (2, 3, 11 / 2)),
        ({"refresh_every": 3, "guidance_every": 2, "lam": 0.5}, (2, 5 / 2, 23 / 6)),
        ({"refresh_every": 2, "method": "composite"}, (2, 2, 5)),
        ({"refresh_every": 2, "method": "switch"}, (2, 2, 2)),
        ({"refresh_every": 2, "pool": "a,b", "pool_mode": "scout"}, (2, 3, 11 / 2)),
        ({"start": 0.3, "end": 0.6, "top_k": 1}, (2, 3, 8)),
        ({"pool": "a,b", "pool_mode": "scout"}, (2, 3, 8)),
    ],
)
def test_price_of_none_one_and_three_loras(settings, expected):
    assert tuple(evaluations_per_step(Settings(**settings), [LOCAL] * count) for count in (0, 1, 3)) == pytest.approx(
        expected
    )


def test_price_of_a_period_longer_than_any_sampling():
    assert evaluations_per_step(Settings(guidance_every=10**9), [LOCAL]) == pytest.approx(2 + 1 / LONGEST)


def test_what_the_page_is_told():
    prompt = "a cat <lora:a:0.8> <lora:b:0.5:0.7:lt=global> <lora:off:0>"
    assert price(prompt, Settings()) == {
        "loras": [
            {"name": "a", "strength": "0.8", "role": "local"},
            {"name": "b", "strength": "0.5/0.7", "role": "global"},
        ],
        "evaluations": 3.0,
        "presets": {"quality": 2, "balanced": 2, "fast": 2, "paper": 3},
        "pool": "none",
        "problems": {},
        "unreadable": "",
    }
    assert price("", Settings(pool="x"))["pool"] == "added"
    assert price("", Settings(pool="x", method="merge"))["pool"] == "ignored"


def test_settings_come_as_text():
    settings = '{"method": "composite", "guidance_every": "2", "pool": " ,"}'
    assert price_of("<lora:a:1>", settings) == price("<lora:a:1>", Settings(method="composite", guidance_every=2))


@pytest.mark.parametrize(
    "settings, match",
    [
        ("", "the settings are ''; they must be a JSON object"),
        ("[]", r"the settings are '\[\]'"),
        ('{"lam": 2}', "lam is 2; it must be a number from 0 to 1"),
        ('{"lam": NaN}', "lam is nan"),
        ('{"lambda": 1}', "unknown setting lambda"),
    ],
)
def test_settings_that_cannot_be_read(settings, match):
    with pytest.raises(SettingsError, match=match):
        price_of("a cat", settings)


def _mask():
    file = io.BytesIO()
    Image.new("RGB", (4, 4), COLOURS[0]).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


MASK = _mask()
"""All of the picture is the first LoRA's."""

OTHER_VALUES = {
    "enabled": [True],
    "method": METHODS,
    "patch_size": [5],
    "temperature": [0.5],
    "lam": [0, 1],
    "top_k": [1],
    "start": [0.3],
    "end": [0.5],
    "text_encoder": ["merged"],
    "adapters_per_pass": [1],
    "verify": [True],
    "maps": [True],
    "pool": ["a"],
    "pool_mode": ["scout", "named"],
    "scout": [0.5],
    "scout_every": [3],
    "scout_share": [0.1],
    "trigger_words": [True],
    "guidance_every": [4],
    "refresh_every": [3],
    "feather": [0.3],
    "mask": [MASK],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_page_asks_with_the_settings_that_matter(name):
    told = {
        json.dumps(
            price("<lora:a:1> <lora:b:1>", Settings(**{"pool": "x" if name == "pool_mode" else "", name: value}))
        )
        for value in (SETTINGS[name].default, *OTHER_VALUES[name])
    }
    assert (len(told) > 1) is SETTINGS[name].priced


def test_a_pool_that_the_prompt_names():
    def named(prompt, settings):
        assert prompt.split() == ["a", "red", "cat"] and settings.pool == "styles/*"
        return [("anna", 0.8), ("ink", 0.5)]

    settings = Settings(pool="styles/*", pool_mode="named")
    told = price("a red <lora:anna:1> cat", settings, named)
    assert told["loras"] == [
        {"name": "anna", "strength": "1", "role": "local"},
        {"name": "ink", "strength": "0.5", "role": "local", "pooled": True},
    ]
    assert (told["evaluations"], told["pool"]) == (6, "named")
    assert price("a cat", Settings(pool="styles/*", pool_mode="named", method="merge"), named)["pool"] == "ignored"


@pytest.mark.parametrize(
    "prompt, painted, settings, expected",
    [
        ("<lora:a:1> <lora:b:1>", [0, 1], {"method": "composite"}, 6),
        ("<lora:a:1> <lora:b:1>", [0], {"method": "composite"}, 4),
        ("<lora:a:1> <lora:b:1:ltat=left>", [0], {"method": "composite"}, 6),
        ("<lora:a:1> <lora:b:1:ltat=left>", [1], {"method": "composite"}, 4),
        ("<lora:b:1:ltat=left> <lora:a:1>", [1], {"method": "composite"}, 6),
        ("<lora:g:1:lt=global> <lora:a:1>", [0], {"method": "composite"}, 4),
        ("<lora:a:1> <lora:b:1>", [0, 1], {"lam": 0.0}, 6),
        ("<lora:a:1> <lora:b:1>", [5], {"lam": 0.0}, 5),
        ("<lora:a:1> <lora:b:1>", [0, 1], {"method": "merge"}, 2),
        ("<lora:g:1:lt=global:ltat=top>", [], {"method": "merge"}, 2),
        ("<lora:a:1> <lora:b:1>", [0], {"method": "switch"}, 3),
        ("<lora:a:1> <lora:b:1:ltat=left> <lora:c:1:ltshare=0.5>", [], {"method": "switch"}, (2 + 4 + 4) / 3),
    ],
)
def test_price_of_places(prompt, painted, settings, expected):
    """Colours belong to the LoRAs that compete, in their order; with switch the base is needed in some turns only."""
    assert price(prompt, Settings(**settings), painted=painted)["evaluations"] == pytest.approx(expected)


def test_the_price_has_the_settings_mask():
    given = Settings(method="composite", mask=MASK)
    assert price("<lora:a:1>", given)["evaluations"] == 4
    assert price("<lora:a:1> <lora:b:1>", given)["evaluations"] == 4
    assert price_of("<lora:a:1>", '{"method": "composite"}', painted="0, 1")["evaluations"] == 4
    assert price_of("<lora:a:1>", '{"method": "composite"}', painted="1")["evaluations"] == 2
    with pytest.raises(SettingsError, match="mask is no image that can be read"):
        price("<lora:a:1>", Settings(mask="aGFsbG8="))
    with pytest.raises(SettingsError, match="painted is 'left'; it must be numbers of LoRAs"):
        price_of("<lora:a:1>", "{}", painted="left")


def test_the_presets_prices_are_those_of_the_other_settings_at_hand():
    prompt = "<lora:a:1> <lora:b:1> <lora:c:1>"
    told = price(prompt, Settings(method="merge", lam=0.3, guidance_every=2))
    assert (told["evaluations"], told["presets"]["paper"]) == (2, 6.5)
    assert told["presets"]["quality"] == 5


def test_regions_are_told_as_they_are_written():
    told = price("<lora:a:1:ltat= left > <lora:b:1:LTBOX=0,0,1,0.2> <lora:c:1:ltat=lef>", Settings())["loras"]
    assert [lora.get("where") for lora in told] == ["left", "0,0,1,0.2", None]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("<lora:a:1> <lora:b:1>", {}),
        ("<lora:a:1> <lora:b:1> <lora:a:0.5>", {"twice": ["a"]}),
        ("<lora:a:1> <lora:a:0>", {}),
        (
            "<lora:nobody:1> <lora:xl:1> <lora:nobody:1>",
            {"twice": ["nobody"], "unknown": ["nobody"], "unsuited": ["xl"]},
        ),
    ],
)
def test_what_is_wrong_with_loras(prompt, expected):
    problems = {"nobody": "unknown", "xl": "unsuited"}
    assert price(prompt, Settings(), problem_of=lambda name: problems.get(name, ""))["problems"] == expected


def test_a_tag_that_cannot_be_read_is_told():
    assert "has ltat=lef; it must be" in price("<lora:a:1:ltat=left> <lora:b:1:ltat=lef>", Settings())["unreadable"]
    assert price("<lora:a:1:lbw=MINE:ltat=left>", Settings())["unreadable"] == "", "may be another extension's preset"


@pytest.mark.parametrize("strength", ["0,8", "0.8:0,5", "te=x", "high"])
def test_a_strength_that_cannot_be_read_is_told(strength):
    told = price(f"<lora:a:{strength}>", Settings())["unreadable"]
    assert told.startswith("the LoRA 'a' has the strength '") and "it must be a number, such as 0.8" in told
    assert price("<lora:a> <lora:b:.5:> <lora:c:0:0>", Settings())["unreadable"] == ""
