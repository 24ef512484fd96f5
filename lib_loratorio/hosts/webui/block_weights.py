"""The extension LoRA Block Weight where it is installed: its presets, and whether it is at work in a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import extensions

from lib_loratorio.hosts.webui.other_scripts import shown_scripts
from lib_loratorio.loras.block_weights import PRESETS, read_presets

SCRIPT, FILE = "lora_block_weight.py", "lbwpresets.txt"
"""Its script, and the presets that it keeps beside that."""


def presets(p) -> dict[str, str]:
    """Block weights by name: the extension's first ones, those of its file, and what the request brings for it."""
    known = dict(PRESETS)
    for extension in extensions.extensions:
        folder = Path(extension.path, "scripts")
        if (folder / SCRIPT).is_file():
            known |= _read(folder / FILE)
    arguments = _arguments(p)
    return known | (read_presets(arguments[0]) if arguments and isinstance(arguments[0], str) else {})


def acts(p) -> bool:
    """Whether the extension changes the LoRAs that the WebUI itself merges for this request."""
    arguments = _arguments(p)
    return len(arguments) > 1 and bool(arguments[1])


def forget_steps(p) -> None:
    """Drops the steps at which the extension is still to start or stop the LoRAs of a pass that has been composed.

    It drops one when it finds the LoRA loaded in that step, on AUTOMATIC1111; else the next request's LoRA of that name
    would be stopped.
    """
    for kept in ("starts", "stops"):
        getattr(_script(p), kept, {}).clear()


def _read(file: Path) -> Mapping[str, str]:
    try:
        return read_presets(file.read_text("utf-8", "replace"))
    except OSError:
        return {}


def _arguments(p) -> Sequence[Any]:
    """Those of the extension's script in this request: the presets as a text, whether it is active, and others."""
    script = _script(p)
    return () if script is None else p.script_args[script.args_from : script.args_to]


def _script(p) -> Any | None:
    return next((script for script in shown_scripts(p) if Path(script.filename or "").name == SCRIPT), None)
