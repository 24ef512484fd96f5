"""Declarations, validation, API forms and infotext of Settings."""

from pathlib import Path

import pytest

from lib_loratorio import cli
from lib_loratorio.declaration import Flag, Number
from lib_loratorio.engine.methods import METHODS as IMPLEMENTED
from lib_loratorio.engine.methods import SWITCH_EVERY
from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.tag import LOCAL
from lib_loratorio.presets import CUSTOM, PRESETS, START, preset_of
from lib_loratorio.settings import GROUPS, METHODS, SETTINGS, Settings, Traits

DOCS = Path(__file__).parents[1] / "docs"


def test_every_method_is_implemented():
    assert list(IMPLEMENTED) == list(METHODS)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", 0, "a number from 1e-06 up"),
        ("temperature", float("nan"), "a number from 1e-06 up"),
        ("temperature", float("inf"), "a number from 1e-06 up"),
        ("temperature", "warm", "a number from 1e-06 up"),
        ("temperature", None, "a number from 1e-06 up"),
        ("temperature", True, "a number from 1e-06 up"),
        ("patch_size", 0, "a whole number from 1 to 256"),
        ("patch_size", 1.5, "a whole number from 1 to 256"),
        ("patch_size", float("inf"), "a whole number from 1 to 256"),
        ("lam", 1.01, "a number from 0 to 1"),
        ("lam", -0.01, "a number from 0 to 1"),
        ("top_k", -1, "a whole number from 0 up"),
        ("adapters_per_pass", -1, "a whole number from 0 up"),
        ("start", -0.1, "a number from 0 to 1"),
        ("end", 2, "a number from 0 to 1"),
        ("method", "blend", "one of loratorio, composite, switch, merge"),
        ("text_encoder", 3, "one of own, merged"),
        ("method", ["loratorio"], "one of loratorio, composite, switch, merge"),
        ("pool_mode", "all", "one of exact, scout, named"),
        ("scout", 1.5, "a number from 0 to 1"),
        ("scout", -0.1, "a number from 0 to 1"),
        ("scout_every", -1, "a whole number from 0 up"),
        ("scout_every", 0.5, "a whole number from 0 up"),
        ("scout_share", -0.5, "a number from 0 to 1"),
        ("scout_share", 1.01, "a number from 0 to 1"),
        ("guidance_every", 0, "a whole number from 1 up"),
        ("guidance_every", 1.5, "a whole number from 1 up"),
        ("guidance_every", 10**400, "a whole number from 1 up"),
        ("pool", 3, "text, or a list of texts"),
        ("pool", ["a", 3], "text, or a list of texts"),
        ("enabled", 1, "true or false"),
        ("verify", "yes", "true or false"),
        ("maps", " Yes", "true or false"),
        ("trigger_words", None, "true or false"),
    ],
)
def test_refusals_name_field_value_and_range(name, value, allowed):
    with pytest.raises(SettingsError) as error:
        Settings.from_api({name: value})
    assert str(error.value) == f"LoRAtorio: {name} is {value!r}; it must be {allowed}."


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_takes_any_value(name):
    with pytest.raises(SettingsError, match=rf"LoRAtorio: {name} is \["):
        Settings.from_api({name: [object()]})


@pytest.mark.parametrize("name", SETTINGS)
def test_a_declaration_goes_together(name):
    declared = SETTINGS[name]
    assert declared.kind(name, declared.default) == declared.default == getattr(Settings(), name)
    if isinstance(declared.kind, Number):
        low, high, _ = declared.slider
        assert declared.kind.low <= low <= declared.default <= high <= declared.kind.high
    if isinstance(declared.kind, Flag) and declared.option:
        assert declared.default is False, "an option without a value can only switch it on"
    assert declared.in_infotext in ("always", "changed", "never")
    assert declared.axis is None or not declared.axis.until or declared.axis.until in SETTINGS
    assert any(traits.include(declared.uses) for traits in METHODS.values())


def test_places_and_axes_are_taken_once():
    for taken in (
        [declared.place for declared in SETTINGS.values() if declared.place],
        [declared.axis.number for declared in SETTINGS.values() if declared.axis],
    ):
        assert len(taken) == len(set(taken))


def test_traits_include_what_is_needed():
    switch = Settings(method="switch").traits
    assert switch.include(Traits()) and switch.include(Traits(apart=True))
    assert not switch.include(Traits(apart=True, several=True)) and not switch.include(Traits(weighs=True))


def test_the_documentation_is_what_the_command_prints(capsys):
    assert cli.main(["settings"]) == 0
    assert capsys.readouterr().out == (DOCS / "settings.md").read_text(encoding="utf-8"), (
        "python -m lib_loratorio settings > docs/settings.md"
    )


def test_the_documentation_tells_how_long_switch_stays():
    assert f"the next every {SWITCH_EVERY} steps" in SETTINGS["method"].described


def test_presets():
    """The paper's is what all settings are without any; the others fall in price."""
    assert list(PRESETS) == ["quality", "balanced", "fast", "paper"]
    assert all(SETTINGS[name].in_presets for values in PRESETS.values() for name in values)
    assert Settings(**PRESETS["paper"]) == Settings() and (Settings().lam, Settings().refresh_every) == (0.5, 1)
    prices = {name: evaluations_per_step(Settings(**values), [LOCAL] * 3) for name, values in PRESETS.items()}
    assert prices == {"quality": 5, "balanced": 4, "fast": pytest.approx(10 / 3), "paper": 8}


def test_presets_are_told_by_their_values():
    for name, values in PRESETS.items():
        assert preset_of(Settings(enabled=True, start=0.2, maps=True, **values).to_api()) == name
    assert preset_of(START.to_api()) == "balanced" and preset_of({}) == "paper"
    assert preset_of({"lam": "1", "refresh_every": 2.0}) == "balanced", "a page's numbers may be text"
    assert preset_of({"lam": 0.9}) == preset_of({"lam": 2}) == preset_of({"method": None}) == CUSTOM
    assert CUSTOM not in PRESETS


def test_places_are_in_the_accordions_groups():
    groups = [declared.place[0] for declared in SETTINGS.values() if declared.place]
    assert set(groups) == {"", *GROUPS}
    assert [name for name, declared in SETTINGS.items() if declared.place and not declared.place[0]] == ["maps"]


def test_start_must_be_below_end():
    with pytest.raises(SettingsError, match=r"start is 0\.5; it must be below end, which is 0\.5"):
        Settings(start=0.5, end=0.5)


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(
        SettingsError,
        match=r"unknown setting tau; the settings are enabled, method, .*guidance_every, feather, mask, "
        r"refresh_every\.",
    ):
        Settings.from_api({"tau": 1})


def test_numbers_may_come_as_text_or_whole_floats():
    settings = Settings.from_api({"temperature": "0.25", "patch_size": 4.0, "enabled": "True"})
    assert (settings.temperature, settings.patch_size, settings.enabled) == (0.25, 4, True)
    assert isinstance(settings.patch_size, int)


def test_dict_and_positional_arguments_agree():
    settings = Settings(True, "composite", 3, 0.1, 0.25, 2, 0.1, 0.9, "merged", 1, True)
    assert Settings.from_args(list(settings.to_api().values())) == settings
    assert Settings.from_args([settings.to_api(), "default", 2]) == settings
    assert Settings.from_args([True, "switch"]) == Settings(enabled=True, method="switch")
    assert Settings.from_args([]) == Settings()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(enabled=True),
        Settings(True, "composite", 3, 1e-05, 1 / 3, 2, 0.1, 0.9, "merged", 1, True),
        Settings(True, temperature=1e300),
    ],
)
def test_infotext_round_trip(settings):
    text = settings.to_infotext()
    assert Settings.from_infotext(text) == settings
    assert not set(text) & set(',:"\n'), "the host would have to quote it"


def test_infotext_is_compact():
    assert Settings(enabled=True, patch_size=3).to_infotext() == "method=loratorio patch_size=3 temperature=0.1 lam=0.5"


@pytest.mark.parametrize("text", ["temperature", "temperature=hot", "colour=blue"])
def test_bad_infotext(text):
    with pytest.raises(SettingsError, match=r"LoRAtorio: "):
        Settings.from_infotext(text)


def test_step_range_is_half_open_but_for_its_last_end():
    settings = Settings(start=0.25, end=0.75)
    assert [settings.active(fraction) for fraction in (0.0, 0.25, 0.5, 0.75, 1.0)] == [False, True, True, False, False]
    assert Settings().active(1.2), "some samplers call the model more often than they announce"


@pytest.mark.parametrize(
    ("args", "off"),
    [
        ([], True),
        ([False, "nonsense"], True),
        ([{}], True),
        ([{"enabled": False, "temperature": -1}], True),
        ([True], False),
        ([{"enabled": True}], False),
        (["yes"], False),
        ([{"enabled": "no"}], False),
    ],
)
def test_is_off(args, off):
    assert Settings.is_off(args) is off
