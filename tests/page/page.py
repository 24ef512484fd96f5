"""A page with the accordion alone, twice, as a WebUI has it: a prompt and the accordion in each of two tabs.

Prints its address when it is there, and runs until its standard input ends. Its argument is the folder of the packages
that a WebUI has beside gradio, such as torch.

Beside them, per tab, what the WebUI does around the accordion: `read` shows the controls' values, as a generation would
get them, and `paste` fills the controls from the infotext field in the box above it. Runs on the WebUIs' own gradio.
"""

import itertools
import json
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import gradio as gr

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(sys.argv[1])  # at the end: gradio has its own versions of some
import torch

from lib_loratorio.page import accordion as controls_of
from lib_loratorio.page.api import add_routes
from lib_loratorio.page.weight_panel import as_painted
from lib_loratorio.settings import INFOTEXT, Settings


@contextmanager
def accordion(value, label, elem_id):
    """In place of the WebUI's `InputAccordion`: a check box in an accordion that is open."""
    with gr.Accordion(label, elem_id=elem_id):
        yield gr.Checkbox(value, label="on", elem_id=f"{elem_id}-checkbox")


def tab(name):
    gr.Textbox(label="Prompt", lines=3, elem_id=f"{name}_prompt")
    for edge in ("width", "height"):
        gr.Number(512, label=edge, elem_id=f"{name}_{edge}", interactive=True)
    controls = controls_of.build(accordion, lambda item: f"script_{name}_loratorio_{item}")
    values = gr.Textbox(label="values", elem_id=f"{name}_values")
    reads = itertools.count(1)

    def read(*args):
        return f"{next(reads)} {json.dumps(dict(zip((field.name for field in fields(Settings)), args)))}"

    gr.Button("read", elem_id=f"{name}_read").click(read, inputs=controls, outputs=[values])
    infotext = gr.Textbox(label="infotext", elem_id=f"{name}_infotext")
    pairs = controls_of.infotext_fields(controls)

    def paste(text):
        found = [value({INFOTEXT: text} if text else {}) for _, value in pairs]
        return [gr.update() if value is None else gr.update(value=value) for value in found]

    gr.Button("paste", elem_id=f"{name}_paste").click(
        paste, inputs=[infotext], outputs=[control for control, _ in pairs]
    )


WRONG = {"nobody": "unknown", "sdxl-style": "unsuited"}
"""LoRAs with which something is wrong, by name."""

last_map = as_painted(torch.eye(2)[:, None].repeat(1, 3, 1))
"""The left half is the first LoRA's, the right half the second's."""

with gr.Blocks(analytics_enabled=False) as page:
    with gr.Tabs():
        for name in ("txt2img", "img2img"):
            with gr.Tab(name):
                tab(name)

if __name__ == "__main__":
    app, url, _ = page.queue().launch(server_name="127.0.0.1", show_api=False, quiet=True, prevent_thread_lock=True)
    add_routes(app, {}, lambda: last_map, problem_of=lambda name: WRONG.get(name, ""))
    print(url, flush=True)
    sys.stdin.read()
