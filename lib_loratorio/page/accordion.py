"""The accordion, made of the settings' declarations. Its controls are in the order of `Settings`' fields, which is the
positional API form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import gradio as gr

from lib_loratorio.declaration import NONE, Choice, Entries, Flag
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.mask_image import at_hand
from lib_loratorio.page import pool_picker
from lib_loratorio.settings import INFOTEXT, METHODS, PRESETS, SETTINGS, Settings

TITLE, HELP = SETTINGS["enabled"].label, SETTINGS["enabled"].help
RESET = "reset"

SHOWN = sorted((name for name in SETTINGS if SETTINGS[name].place), key=lambda name: SETTINGS[name].place)
"""The settings that have a control in the accordion, in the order they are shown."""

PRICED = " ".join(name for name in SETTINGS if SETTINGS[name].priced)
"""The settings of which the live help asks the price."""

FEW = 3
"""So many choices are shown side by side; more are a list that opens."""


class Control(NamedTuple):
    """How a setting is shown: a component of gradio, the text at it, the line below it, and further arguments."""

    component: type
    label: str
    info: str | None
    options: dict[str, Any]

    def make(self, value: Any, **kwargs) -> Any:
        info = {"info": self.info} if self.info else {}
        return self.component(value=value, label=self.label, **info, **self.options, **kwargs)


def control(name: str) -> Control:
    """The control of a setting."""
    declared = SETTINGS[name]
    kind, label, info = declared.kind, declared.label, declared.help
    if isinstance(kind, Flag):
        return Control(gr.Checkbox, f"{label}: {info}" if declared.place else label, None, {})
    if isinstance(kind, Choice):
        choices = list(kind.choices)
        return Control(gr.Radio if len(choices) <= FEW else gr.Dropdown, label, info, {"choices": choices})
    if isinstance(kind, Entries):
        return Control(gr.Textbox, label, info, {"lines": 1, "max_lines": 8})
    return Control(gr.Slider, label, info, declared.slider._asdict())


def build(
    accordion: Callable[..., Any],
    elem_id: Callable[[str], str],
    default: Settings | None = None,
    loras: Callable[[], Iterable[str]] = tuple,
) -> list:
    """The controls.

    Args:
        accordion: the host's InputAccordion.
        elem_id: names an element.
        default: what the controls start with.
        loras: gives the host's LoRAs, as paths within their folder.
    """
    default = default or Settings()
    buttons, made = {}, {}
    with accordion(default.enabled, label=TITLE, elem_id=elem_id("enabled")) as made["enabled"]:
        gr.HTML(
            f'<span>{HELP}</span> <span class="loratorio-live" data-settings="{PRICED}"></span>',
            elem_classes="loratorio-help",
            elem_id=elem_id("help"),
        )
        with gr.Row():
            for name in (*PRESETS, RESET):
                buttons[name] = gr.Button(name, size="sm", min_width=60, elem_id=elem_id(f"preset_{name}"))
        for _, row in groupby(SHOWN, key=lambda name: SETTINGS[name].place[0]):
            with gr.Row():
                for name in row:
                    made[name] = control(name).make(
                        getattr(default, name),
                        elem_id=elem_id(name),
                        interactive=default.traits.include(SETTINGS[name].uses),
                    )
        pool_picker.build(made["pool"], loras, elem_id)
        made["mask"] = gr.Textbox(
            value=default.mask, label=SETTINGS["mask"].label, lines=1, max_lines=1, elem_id=elem_id("mask")
        )
        gr.HTML('<div class="loratorio-places"></div>', elem_id=elem_id("places"))  # the page's script fills it
    controls = [made[name] for name in SETTINGS]
    for saved in (*controls, getattr(made["enabled"], "accordion", None)):
        if saved is not None:
            saved.do_not_save_to_config = True  # the host would go on with the defaults of the version it saw first
    for name, button in buttons.items():
        values = (default if name == RESET else Settings(**PRESETS[name])).to_api()
        changed = [
            setting for setting in SETTINGS if setting in SHOWN and (name == RESET or SETTINGS[setting].in_presets)
        ]
        button.click(
            _giving([values[setting] for setting in changed]),
            inputs=[],
            outputs=[made[setting] for setting in changed],
            show_progress=False,
        )
    made["method"].change(
        _greyed, inputs=[made["method"]], outputs=[made[name] for name in _of_some_methods()], show_progress=False
    )
    return controls


def _giving(values: list) -> Callable[[], list]:
    return lambda: values


def _of_some_methods() -> list[str]:
    """The settings that some method makes no use of."""
    return [name for name in SHOWN if not all(traits.include(SETTINGS[name].uses) for traits in METHODS.values())]


def _greyed(method: str) -> list:
    """Greys the controls that the method makes no use of."""
    traits = METHODS.get(method, NONE)  # of an emptied list
    return [gr.update(interactive=traits.include(SETTINGS[name].uses)) for name in _of_some_methods()]


def infotext_fields(controls: list) -> list[tuple]:
    """Pairs of control and the function that reads its value from a picture's parameters."""
    return [(control, _reader(name)) for control, name in zip(controls, SETTINGS)]


def sent_fields() -> list:
    """What a host that sends a picture to another tab takes along: of both tabs' `infotext_fields`, those with a second
    part from this list.
    """
    return [_reader(name) for name in SETTINGS]


@cache  # one function for both tabs: see `sent_fields`
def _reader(name: str) -> Callable[[dict], Any]:
    def read(params: dict) -> Any:
        text = params.get(INFOTEXT)
        if not text:
            return False if name == "enabled" else None
        try:
            value = getattr(Settings.from_infotext(text), name)
            return at_hand(value) if name == "mask" else value
        except SettingsError as error:
            if name == "enabled":
                gr.Warning(str(error))
            return None

    return read
