"""The accordion and the settings page, which are the same on every host: here in AUTOMATIC1111's stand-in."""

from dataclasses import astuple, fields

import pytest
from internals import CUSTOM, PRESETS, START, Settings

WEIGHING = ("patch_size", "temperature", "lam", "top_k", "maps", "scout", "scout_every", "scout_share")
OF_SAMPLING = (
    *("start", "end", "text_encoder", "adapters_per_pass", "verify", "pool", "pool_mode", "trigger_words"),
    *("guidance_every", "refresh_every", "feather"),
)


@pytest.fixture
def page(a1111):
    for kind in (a1111.gradio.Button, a1111.gradio.Radio):
        kind.made.clear()
    return a1111


def reset(page):
    """What the button does: its function, inputs and outputs."""
    (button,) = [button for button in page.gradio.Button.made if button.value == "reset"]
    (listener,) = button.events["click"]
    return listener


def by_name(page):
    return dict(zip((field.name for field in fields(Settings)), page.script.ui(False)))


def test_all_controls_in_the_order_of_the_settings(page):
    controls = page.script.ui(False)
    assert tuple(control.value for control in controls) == astuple(START) == astuple(Settings(lam=1.0, refresh_every=2))
    assert page.script.show(True) is page.scripts.AlwaysVisible
    assert len({control.kwargs["elem_id"] for control in controls}) == len(controls)


def test_sending_to_the_other_tab_takes_every_control_along(page):
    """The host copies those of both tabs' fields whose second part is in `paste_field_names`."""
    scripts = page.script, page.extension.LoratorioScript()
    for script in scripts:
        script.ui(False)
    sent, received = (
        [field for field, name in script.infotext_fields if name in page.script.paste_field_names] for script in scripts
    )
    assert [field.value for field in sent] == [field.value for field in received] == list(astuple(START))


def test_infotext_that_cannot_be_read_warns_once(page):
    page.script.ui(False)
    values = [read({"LoRAtorio": "method=unheard_of"}) for _, read in page.script.infotext_fields]
    assert values == [None] * len(values)
    assert len(page.gradio.warnings) == 1 and "unheard_of" in page.gradio.warnings[0]


def test_a_preset_sets_how_loras_are_weighed(page):
    controls = by_name(page)
    (mode,) = [made for made in page.gradio.Radio.made if made.kwargs["label"] == "Quality or speed"]
    assert (mode.value, mode.kwargs["choices"]) == ("balanced", list(PRESETS)), "nothing is custom at first"
    assert mode not in controls.values() and mode.do_not_save_to_config
    ((function, inputs, outputs),) = mode.events["input"]
    changed = [setting for setting, control in controls.items() if control in outputs]
    assert inputs == [mode] and set(changed) == {"method", "patch_size", "temperature", "lam", "top_k", "refresh_every"}
    for name, values in PRESETS.items():
        assert Settings(**dict(zip(changed, function(name), strict=True))) == Settings(**values)
    assert function(CUSTOM) == [{}] * len(changed), "leaves all as it is"


def test_the_preset_is_told_by_the_settings(page):
    controls = by_name(page)
    names = ("method", "patch_size", "temperature", "lam", "top_k", "refresh_every")
    for name in names:
        function, inputs, _ = controls[name].events["change"][0]
        assert inputs == [controls[name] for name in names]
    for preset, values in PRESETS.items():
        settings = Settings(**values).to_api()
        assert function(*(settings[name] for name in names)) == {"choices": list(PRESETS), "value": preset}
    for changed in ({"lam": 0.9}, {"method": "merge"}, {"method": None}, {"top_k": ""}):
        settings = {**START.to_api(), **changed}
        custom = function(*(settings[name] for name in names))
        assert custom == {"choices": [*PRESETS, CUSTOM], "value": CUSTOM}
    page.shared.opts.loratorio_default_lam = 0.3
    page.script.ui(False)
    assert CUSTOM in [made.value for made in page.gradio.Radio.made]


def test_reset_sets_all_but_the_check_box_and_the_mask(page):
    controls = by_name(page)
    function, inputs, outputs = reset(page)
    changed = [setting for setting, control in controls.items() if control in outputs]
    assert inputs == [] and set(changed) == set(controls) - {"enabled", "mask"}
    names = {control.kwargs["elem_id"]: name for name, control in controls.items()}
    values = {names[output.kwargs["elem_id"]]: value for output, value in zip(outputs, function(), strict=True)}
    assert Settings(**values) == START


@pytest.mark.parametrize(
    ("method", "grey"),
    [("loratorio", []), ("composite", [*WEIGHING]), ("merge", [*WEIGHING, *OF_SAMPLING])],
)
def test_controls_that_a_method_does_not_use_are_grey(page, method, grey):
    controls = page.script.ui(False)
    names = [field.name for field in fields(Settings)]
    function, inputs, outputs = controls[1].events["change"][-1]
    assert inputs == [controls[1]]
    changes = dict(zip((names[controls.index(control)] for control in outputs), function(method), strict=True))
    assert {name for name, change in changes.items() if not change["interactive"]} == set(grey)
    page.shared.opts.loratorio_default_method = method
    at_first = zip(names, page.script.ui(False))
    assert {name for name, control in at_first if control.kwargs.get("interactive") is False} == set(grey)


def test_accordion_starts_with_the_settings_pages_defaults(page):
    chosen = Settings(
        enabled=True,
        method="loratorio",
        patch_size=4,
        temperature=0.02,
        lam=1.0,
        start=0.25,
        text_encoder="merged",
        maps=True,
    )
    for name, value in chosen.to_api().items():
        if name == "mask":
            continue  # belongs to a picture, and so has no place on the settings page
        assert page.shared.opts.data_labels[f"loratorio_default_{name}"].default == getattr(START, name)
        setattr(page.shared.opts, f"loratorio_default_{name}", value)
    controls = page.script.ui(False)
    assert tuple(control.value for control in controls) == astuple(chosen)
    assert all(control.do_not_save_to_config for control in controls)
    function, _, outputs = reset(page)
    names = {control.kwargs["elem_id"]: field.name for field, control in zip(fields(Settings), controls)}
    values = {names[output.kwargs["elem_id"]]: value for output, value in zip(outputs, function(), strict=True)}
    assert Settings(enabled=True, **values) == chosen


def test_defaults_that_do_not_go_together_are_not_used(page, caplog):
    page.shared.opts.loratorio_default_start, page.shared.opts.loratorio_default_end = 0.8, 0.2
    assert tuple(control.value for control in page.script.ui(False)) == astuple(START)
    assert "start is 0.8" in caplog.text
