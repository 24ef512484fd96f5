"""The accordion. Its controls are in the order of `Settings`' fields, which is the positional API form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import gradio as gr

from lib_loratorio.errors import SettingsError
from lib_loratorio.page import pool_picker
from lib_loratorio.settings import INFOTEXT, METHODS, POOL_MODES, PRESETS, TEXT_ENCODER_MODES, Settings

TITLE = "LoRAtorio"
RESET = "reset"
WEIGHING = ("method", "patch_size", "temperature", "lam", "top_k")
"""What a preset sets: how LoRAs are weighed. Which take part, when, and what is shown of it stay the user's."""
PARALLEL = ("loratorio", "composite")
APART = (*PARALLEL, "switch")

HELP = (
    "Evaluates each LoRA of the prompt alone in every step, and lets the LoRA decide that has most to say in each "
    "part of the picture. Slower by about the number of LoRAs."
)


@dataclass(frozen=True)
class Control:
    """How a setting is shown. `methods` are those that make use of it: with others it is grey."""

    component: str
    label: str
    info: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = tuple(METHODS)

    def make(self, value: Any, **kwargs) -> Any:
        info = {"info": self.info} if self.info else {}
        return getattr(gr, self.component)(value=value, label=self.label, **info, **self.options, **kwargs)


def _slider(label: str, info: str, low: float, high: float, step: float, methods: tuple[str, ...]) -> Control:
    return Control("Slider", label, info, {"minimum": low, "maximum": high, "step": step}, methods)


ENABLED = Control("Checkbox", TITLE)
CONTROLS = {
    "method": Control(
        "Dropdown",
        "Method",
        "loratorio weighs LoRAs by place; composite averages them; switch takes turns; merge is the WebUI's own",
        {"choices": list(METHODS)},
    ),
    "text_encoder": Control(
        "Radio",
        "Text encoder",
        "own: each LoRA reads the prompt with its own text encoder; merged: all read it as the WebUI does",
        {"choices": list(TEXT_ENCODER_MODES)},
        APART,
    ),
    "patch_size": _slider(
        "Patch size",
        "edge of the places that are weighed, in latent pixels (8 picture pixels each)",
        1,
        32,
        1,
        ("loratorio",),
    ),
    "temperature": _slider(
        "Temperature", "low: one LoRA wins each place; high: all share it", 0.001, 1, 0.001, ("loratorio",)
    ),
    "lam": _slider(
        "Base weight (lambda)",
        "share of the bare model in what the guidance moves away from; 1 is also cheaper",
        0,
        1,
        0.05,
        ("loratorio",),
    ),
    "top_k": _slider("LoRAs per place (top k)", "0: all of them", 0, 16, 1, ("loratorio",)),
    "start": _slider("Start", "fraction of the sampling; before it LoRAs are merged as usual", 0, 1, 0.01, APART),
    "end": _slider("End", "fraction of the sampling; after it LoRAs are merged as usual", 0, 1, 0.01, APART),
    "maps": Control(
        "Checkbox", "Show weight maps: where each LoRA weighed most, beside each picture", methods=("loratorio",)
    ),
    "verify": Control("Checkbox", "Verify (slow): compare every evaluation with the WebUI's own merge", methods=APART),
    "adapters_per_pass": _slider(
        "Evaluations per pass", "0: as many as fit into memory; fewer need less memory", 0, 16, 1, PARALLEL
    ),
    "guidance_every": _slider(
        "Negative prompt every",
        "steps between two evaluations of the negative prompt with each LoRA; 1: in every step, more is faster",
        1,
        10,
        1,
        PARALLEL,
    ),
    "trigger_words": Control(
        "Checkbox", "Trigger words: each LoRA's own, from its file, in its own prompt only", methods=APART
    ),
    "pool_mode": Control(
        "Radio",
        "Pool",
        "exact: all of its LoRAs in every step; scout: all at first, then those that matter",
        {"choices": list(POOL_MODES)},
        APART,
    ),
    "pool": Control(
        "Textbox",
        "LoRAs in the pool",
        "besides the prompt's: name, name:0.8 or folder/*, divided by commas",
        {"lines": 1, "max_lines": 8},
        APART,
    ),
    "scout": _slider(
        "Scout until", "fraction of the sampling in which all of the pool take part", 0, 1, 0.05, ("loratorio",)
    ),
    "scout_share": _slider(
        "Scout's least share",
        "of the strongest LoRA's places, that one of the pool needs to stay",
        0,
        1,
        0.01,
        ("loratorio",),
    ),
    "scout_every": _slider("Scout again every", "steps; 0: never", 0, 50, 1, ("loratorio",)),
}
"""The controls by the setting's name, in the order they are shown, two in a row."""


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
    buttons, made, names = {}, {}, list(CONTROLS)
    with accordion(default.enabled, label=ENABLED.label, elem_id=elem_id("enabled")) as made["enabled"]:
        gr.HTML(
            f'<span>{HELP}</span> <span class="loratorio-live"></span>',
            elem_classes="loratorio-help",
            elem_id=elem_id("help"),
        )
        with gr.Row():
            for name in (*PRESETS, RESET):
                buttons[name] = gr.Button(name, size="sm", min_width=60, elem_id=elem_id(f"preset_{name}"))
        for row in zip(names[::2], [*names[1::2], None]):
            with gr.Row():
                for name in filter(None, row):
                    control = CONTROLS[name]
                    made[name] = control.make(
                        getattr(default, name), elem_id=elem_id(name), interactive=default.method in control.methods
                    )
        pool_picker.build(made["pool"], loras, elem_id)
    controls = [made[field.name] for field in fields(Settings)]
    for control in (*controls, getattr(made["enabled"], "accordion", None)):
        if control is not None:
            control.do_not_save_to_config = True  # the host would go on with the defaults of the version it saw first
    for name, button in buttons.items():
        values = (default if name == RESET else Settings(**PRESETS[name])).to_api()
        changed = [setting for setting in values if setting != "enabled"] if name == RESET else WEIGHING
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
    return [name for name, control in CONTROLS.items() if control.methods != tuple(METHODS)]


def _greyed(method: str) -> list:
    """Greys the controls that the method makes no use of."""
    return [gr.update(interactive=method in CONTROLS[name].methods) for name in _of_some_methods()]


def infotext_fields(controls: list) -> list[tuple]:
    """Pairs of control and the function that reads its value from a picture's parameters."""
    return [(control, _reader(field.name)) for control, field in zip(controls, fields(Settings))]


def sent_fields() -> list:
    """What a host that sends a picture to another tab takes along: of both tabs' `infotext_fields`, those with a second
    part from this list.
    """
    return [_reader(field.name) for field in fields(Settings)]


@cache  # one function for both tabs: see `sent_fields`
def _reader(name: str) -> Callable[[dict], Any]:
    def read(params: dict) -> Any:
        text = params.get(INFOTEXT)
        if not text:
            return False if name == "enabled" else None
        try:
            return getattr(Settings.from_infotext(text), name)
        except SettingsError as error:
            if name == "enabled":
                gr.Warning(str(error))
            return None

    return read
