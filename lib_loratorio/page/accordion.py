"""The accordion, made of the settings' declarations: what most people need at first sight, and the rest in closed
groups. Its controls are in the order of `Settings`' fields, which is the positional API form.
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
from lib_loratorio.presets import CUSTOM, IN_PRESETS, PRESETS, START, preset_of, values_of
from lib_loratorio.settings import GROUPS, INFOTEXT, METHODS, SETTINGS, Settings

TITLE, HELP = SETTINGS["enabled"].label, SETTINGS["enabled"].help
RESET = "reset"

MODE = "Quality or speed"
MODE_HELP = (
    "quality: each LoRA alone in every step; balanced and fast: in every second or third step; "
    "paper: as published, which is the slowest; custom: as set below"
)

FIRST = ""
"""The group that is always seen."""


def _order(name: str) -> tuple[int, int, int]:
    group, row, column = SETTINGS[name].place
    return (FIRST, *GROUPS).index(group), row, column


SHOWN = sorted((name for name in SETTINGS if SETTINGS[name].place), key=_order)
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
    default = default or START
    made = {}

    def rows(group: str) -> None:
        shown = [name for name in SHOWN if SETTINGS[name].place[0] == group]
        for _, row in groupby(shown, key=lambda name: SETTINGS[name].place[1]):
            names = [*row]
            with gr.Row():
                for name in names:
                    made[name] = control(name).make(
                        getattr(default, name),
                        elem_id=elem_id(name),
                        interactive=default.traits.include(SETTINGS[name].uses),
                    )
            if "pool" in names:
                pool_picker.build(made["pool"], loras, elem_id)

    with accordion(default.enabled, label=TITLE, elem_id=elem_id("enabled")) as made["enabled"]:
        gr.HTML(
            f'<div>{HELP}</div><div class="loratorio-live" data-settings="{PRICED}" role="status"></div>'
            '<div class="loratorio-warning" role="alert"></div>',
            elem_classes="loratorio-help",
            elem_id=elem_id("help"),
        )
        mode = gr.Radio(**_mode(preset_of(default.to_api())), label=MODE, info=MODE_HELP, elem_id=elem_id("mode"))
        rows(FIRST)
        for group in GROUPS:
            with gr.Accordion(group, open=False, elem_id=elem_id(f"group_{group.lower()}")):
                rows(group)
                if group == "Places":
                    made["mask"] = gr.Textbox(
                        value=default.mask, label=SETTINGS["mask"].label, lines=1, max_lines=1, elem_id=elem_id("mask")
                    )
                    # The page's script fills it.
                    gr.HTML('<div class="loratorio-places"></div>', elem_id=elem_id("places"))
        reset = gr.Button(RESET, size="sm", min_width=60, elem_id=elem_id("preset_reset"))
    controls = [made[name] for name in SETTINGS]
    for saved in (*controls, mode, getattr(made["enabled"], "accordion", None)):
        if saved is not None:
            saved.do_not_save_to_config = True  # the host would go on with the defaults of the version it saw first
    at_first = [default.to_api()[name] for name in SHOWN]
    reset.click(lambda: at_first, inputs=[], outputs=[made[name] for name in SHOWN], show_progress=False)
    weighing = [made[name] for name in IN_PRESETS]
    mode.input(_set_by, inputs=[mode], outputs=weighing, show_progress=False)
    for changed in weighing:  # by hand, by a preset, or by a picture's parameters
        changed.change(_mode_of, inputs=weighing, outputs=[mode], show_progress=False)
    made["method"].change(
        _greyed, inputs=[made["method"]], outputs=[made[name] for name in _of_some_methods()], show_progress=False
    )
    return controls


def _mode(chosen: str) -> dict[str, Any]:
    """What the choice of a preset shows. Nobody need choose `CUSTOM`: it is there where settings are no preset's."""
    return {"choices": [*PRESETS, *([CUSTOM] if chosen == CUSTOM else [])], "value": chosen}


def _mode_of(*values: Any) -> dict[str, Any]:
    return gr.update(**_mode(preset_of(dict(zip(IN_PRESETS, values)))))


def _set_by(mode: str) -> list:
    """The values of `IN_PRESETS` that a preset sets."""
    return [*values_of(mode).values()] if mode in PRESETS else [gr.update() for _ in IN_PRESETS]


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
