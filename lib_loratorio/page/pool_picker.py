"""Controls that write the pool's text: LoRAs picked from a searchable list, at a strength."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

from lib_loratorio.settings import Settings

PICK, STRENGTH, ADD, REFRESH = "Pick LoRAs for the pool", "Their strength", "add to the pool", "refresh the list"

DIVIDING = frozenset(",:\n")


def choices(paths: Iterable[str]) -> list[str]:
    """What can be picked of LoRAs at these paths within their folder: each by name, and the folders, as `folder/*`.

    What has the characters in its name that divide the pool's text is not among them.
    """
    paths = list(paths)
    folders = {path.rpartition("/")[0] for path in paths} - {""}
    found = [
        *sorted(f"{folder}/*" for folder in folders),
        *sorted((path.rpartition("/")[2] for path in paths), key=str.lower),
    ]
    return [choice for choice in found if DIVIDING.isdisjoint(choice)]


def added(pool: str, picked: list[str], strength: float) -> str:
    """The pool's text with what was picked behind it."""
    return Settings(pool=[pool or "", *(f"{name}:{strength:g}" for name in picked or [])]).pool.replace(",", ", ")


def build(pool: Any, paths: Callable[[], Iterable[str]], elem_id: Callable[[str], str]) -> None:
    """Controls beside `pool`, the text's; `paths` gives the LoRAs that there are."""
    with gr.Row():
        picked = gr.Dropdown(choices(paths()), value=[], multiselect=True, label=PICK, elem_id=elem_id("pool_pick"))
        strength = gr.Slider(-2, 2, value=1, step=0.05, label=STRENGTH, elem_id=elem_id("pool_strength"))
    with gr.Row():
        add = gr.Button(ADD, size="sm", elem_id=elem_id("pool_add"))
        refresh = gr.Button(REFRESH, size="sm", elem_id=elem_id("pool_refresh"))
    for control in (picked, strength):
        control.do_not_save_to_config = True
    add.click(
        lambda *values: (added(*values), []),
        inputs=[pool, picked, strength],
        outputs=[pool, picked],
        show_progress=False,
    )
    refresh.click(lambda: gr.update(choices=choices(paths())), inputs=[], outputs=[picked], show_progress=False)
