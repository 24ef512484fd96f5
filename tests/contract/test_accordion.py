"""The accordion and the settings page, which are the same on every host: here in AUTOMATIC1111's stand-in."""

from dataclasses import astuple, fields

import pytest
from internals import PRESETS, Settings

WEIGHING = ("patch_size", "temperature", "lam", "top_k", "maps", "scout", "scout_every", "scout_share")
OF_SAMPLING = (
    *("start", "end", "text_encoder", "adapters_per_pass", "verify", "pool", "pool_mode", "trigger_words"),
    *("guidance_every", "refresh_every", "feather"),
)


@pytest.fixture
def page(a1111):
    a1111.gradio.Button.made.clear()
    return a1111


def buttons(page):
    """Presets and reset, by what stands on them; the accordion has others after these."""
    return {button.value: button.events["click"] for button in page.gradio.Button.made[: len(PRESETS) + 1]}


def test_all_controls_in_the_order_of_the_settings(page):
    controls = page.script.ui(False)
    assert tuple(control.value for control in controls) == astuple(Settings())
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
    assert [field.value for field in sent] == [field.value for field in received] == list(astuple(Settings()))


def test_infotext_that_cannot_be_read_warns_once(page):
    page.script.ui(False)
    values = [read({"LoRAtorio": "method=unheard_of"}) for _, read in page.script.infotext_fields]
    assert values == [None] * len(values)
    assert len(page.gradio.warnings) == 1 and "unheard_of" in page.gradio.warnings[0]


def test_presets_set_how_loras_are_weighed_and_reset_sets_all_but_the_check_box(page):
    controls = dict(zip((field.name for field in fields(Settings)), page.script.ui(False)))
    assert list(buttons(page)) == [*PRESETS, "reset"]
    for name, (function, inputs, outputs) in buttons(page).items():
        changed = [setting for setting, control in controls.items() if control in outputs]
        weighing = {"method", "patch_size", "temperature", "lam", "top_k", "refresh_every"}
        assert inputs == [] and set(changed) == (weighing if name in PRESETS else set(controls) - {"enabled", "mask"})
        assert Settings(**dict(zip(changed, function(), strict=True))) == Settings(**PRESETS.get(name, {}))


@pytest.mark.parametrize(
    ("method", "grey"),
    [("loratorio", []), ("composite", [*WEIGHING]), ("merge", [*WEIGHING, *OF_SAMPLING])],
)
def test_controls_that_a_method_does_not_use_are_grey(page, method, grey):
    controls = page.script.ui(False)
    names = [field.name for field in fields(Settings)]
    function, inputs, outputs = controls[1].events["change"]
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
        assert page.shared.opts.data_labels[f"loratorio_default_{name}"].default == getattr(Settings(), name)
        setattr(page.shared.opts, f"loratorio_default_{name}", value)
    controls = page.script.ui(False)
    assert tuple(control.value for control in controls) == astuple(chosen)
    assert all(control.do_not_save_to_config for control in controls)
    function, _, outputs = buttons(page)["reset"]
    reset = [field.name for field, control in zip(fields(Settings), controls) if control in outputs]
    assert Settings(enabled=True, **dict(zip(reset, function(), strict=True))) == chosen


def test_defaults_that_do_not_go_together_are_not_used(page, caplog):
    page.shared.opts.loratorio_default_start, page.shared.opts.loratorio_default_end = 0.8, 0.2
    assert tuple(control.value for control in page.script.ui(False)) == astuple(Settings())
    assert "start is 0.8" in caplog.text
