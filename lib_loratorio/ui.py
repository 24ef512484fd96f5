"""The accordion. Its controls are in the order of `Settings`' fields, which is the positional API form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gradio as gr

from lib_loratorio.settings import INFOTEXT, METHODS, PRESETS, TEXT_ENCODER_MODES, Settings, SettingsError

TITLE = "LoRAtorio"
RESET = "reset"
_METHODS_OF = {
    "patch_size": ("loratorio",), "temperature": ("loratorio",), "lam": ("loratorio",), "top_k": ("loratorio",),
    "start": ("loratorio", "composite", "switch"), "end": ("loratorio", "composite", "switch"), "text_encoder": ("loratorio", "composite", "switch"),
    "adapters_per_pass": ("loratorio", "composite"), "verify": ("loratorio", "composite", "switch"), "maps": ("loratorio",),
}
"""The methods that make use of a setting, for those that not all of them use."""

HELP = (
    "Evaluates each LoRA of the prompt alone in every step, and lets the LoRA decide that has most to say in each "
    "part of the picture. Slower by about the number of LoRAs. "
    '<span class="loratorio-live"></span>'
)


def build(accordion: Callable[..., Any], elem_id: Callable[[str], str]) -> list:
    """The controls. `accordion` is the host's InputAccordion; `elem_id` names an element."""
    default = Settings()
    buttons = {}
    with accordion(default.enabled, label=TITLE, elem_id=elem_id("enabled")) as enabled:
        gr.HTML(HELP, elem_classes="loratorio-help", elem_id=elem_id("help"))
        with gr.Row():
            for name in (*PRESETS, RESET):
                buttons[name] = gr.Button(name, size="sm", elem_id=elem_id(f"preset_{name}"))
        with gr.Row():
            method = gr.Dropdown(list(METHODS), value=default.method, label="Method", elem_id=elem_id("method"),
                                 info="loratorio weighs LoRAs by place; composite averages them; switch takes turns; merge is the WebUI's own")
            text_encoder = gr.Radio(list(TEXT_ENCODER_MODES), value=default.text_encoder, label="Text encoder", elem_id=elem_id("text_encoder"),
                                    info="own: each LoRA reads the prompt with its own text encoder; merged: all read it as the WebUI does")
        with gr.Row():
            patch_size = gr.Slider(1, 32, value=default.patch_size, step=1, label="Patch size", elem_id=elem_id("patch_size"),
                                   info="edge of the places that are weighed, in latent pixels (8 picture pixels each)")
            temperature = gr.Slider(0.001, 1, value=default.temperature, step=0.001, label="Temperature", elem_id=elem_id("temperature"),
                                    info="low: one LoRA wins each place; high: all share it")
        with gr.Row():
            lam = gr.Slider(0, 1, value=default.lam, step=0.05, label="Base weight (lambda)", elem_id=elem_id("lam"),
                            info="share of the bare model in what the guidance moves away from; 1 is also cheaper")
            top_k = gr.Slider(0, 16, value=default.top_k, step=1, label="LoRAs per place (top k)", elem_id=elem_id("top_k"),
                              info="0: all of them")
        with gr.Row():
            start = gr.Slider(0, 1, value=default.start, step=0.01, label="Start", elem_id=elem_id("start"),
                              info="fraction of the sampling; before it LoRAs are merged as usual")
            end = gr.Slider(0, 1, value=default.end, step=0.01, label="End", elem_id=elem_id("end"),
                            info="fraction of the sampling; after it LoRAs are merged as usual")
        with gr.Row():
            adapters_per_pass = gr.Slider(0, 16, value=default.adapters_per_pass, step=1, label="Evaluations per pass",
                                          elem_id=elem_id("adapters_per_pass"), info="0: as many as fit into memory; fewer need less memory")
            with gr.Column():
                maps = gr.Checkbox(default.maps, label="Show weight maps: where each LoRA weighed most, beside each picture", elem_id=elem_id("maps"))
                verify = gr.Checkbox(default.verify, label="Verify (slow): compare every evaluation with the WebUI's own merge", elem_id=elem_id("verify"))
    controls = [enabled, method, patch_size, temperature, lam, top_k, start, end, text_encoder, adapters_per_pass, verify, maps]
    for name, button in buttons.items():
        button.click(_preset(name), inputs=[], outputs=controls[1:], show_progress=False)
    of_methods = [control for control, field in zip(controls, fields(Settings)) if field.name in _METHODS_OF]
    method.change(_greyed, inputs=[method], outputs=of_methods, show_progress=False)
    return controls


def _preset(name: str) -> Callable[[], list]:
    """Sets every control but the check box."""
    values = Settings(**PRESETS.get(name, {})).to_api()
    return lambda: [value for field, value in values.items() if field != "enabled"]


def _greyed(method: str) -> list:
    """Greys the controls that the method makes no use of."""
    return [gr.update(interactive=method in _METHODS_OF[field.name]) for field in fields(Settings) if field.name in _METHODS_OF]


def infotext_fields(controls: list) -> list[tuple]:
    """Pairs of control and the function that reads its value from a picture's parameters."""
    return [(control, _reader(field.name)) for control, field in zip(controls, fields(Settings))]


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
