"""Other extensions: which of them acts on the model, found by where their code lies."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from types import CodeType
from typing import Any

from modules import script_callbacks, shared
from torch import nn

OURS = "lib_loratorio"

WEBUI = PurePath(shared.__file__).parents[1]

FOLDERS = ("extensions", "extensions-builtin")
"""Where the WebUIs keep extensions, each in a folder of its own."""

NAMES = {
    "sd-webui-regional-prompter": "Regional Prompter",
    "sd-webui-negpip": "NegPiP",
    "multidiffusion-upscaler-for-automatic1111": "Tiled Diffusion",
    "sd-webui-incantations": "Incantations",
    "sd-webui-controlnet": "ControlNet",
    "sd-forge-couple": "Forge Couple",
    "sd-webui-cutoff": "Cutoff",
}
"""How users know extensions, by folder; others have the folder's name."""


REGIONAL_LATENT = "scripts.latent"
"""The module of Regional Prompter's Latent mode, which replaces the forward of torch's linear layers."""


def sets_loras_by_region() -> str | None:
    """Of an extension that gives regions their own LoRAs, on every WebUI: who it is, and what to do; else None."""
    if nn.Linear.forward.__module__ == REGIONAL_LATENT:
        return "Regional Prompter's Latent mode is active, which gives regions LoRAs of their own. Choose Attention"
    return None


def extension_of(function: Any) -> str | None:
    """The folder of the extension whose code a function is; None for the WebUI's own, torch's and ours."""
    code = _code(function)
    return None if code is None else _folder(code)


def named(folders: Iterable[str]) -> str:
    """Extensions as users read of them; "another extension" where none is known."""
    return " and ".join(sorted(NAMES.get(folder, f"the extension '{folder}'") for folder in folders)) or (
        "another extension"
    )


def acting_on(modules: Iterable[nn.Module], attributes: Iterable[tuple[Any, str]] = ()) -> set[str]:
    """The extensions that have replaced the forward of any of these modules, or an attribute of an object, or have put
    hooks on a module.
    """
    functions = [vars(owner).get(attribute) for owner, attribute in attributes]
    for module in modules:
        functions += [vars(module).get("forward"), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return {folder for folder in map(extension_of, functions) if folder}


def calling() -> set[str]:
    """The extension that is calling us, if any is."""
    return set(next(([folder] for folder in map(_folder, _callers()) if folder), []))


def changing_text() -> set[str]:
    """The extensions that are called, as we are, before each sampler call: what changes text there is one of them."""
    callbacks = getattr(script_callbacks, "callback_map", {}).get("callbacks_cfg_denoiser", [])
    return {folder for folder in (extension_of(callback.callback) for callback in callbacks) if folder}


def _callers() -> Iterator[CodeType]:
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(OURS):
            yield frame.f_code
        frame = frame.f_back


def _code(function: Any) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if getattr(function, "__code__", None) is None:  # an object that can be called
        function = vars(type(function)).get("__call__")
    if getattr(function, "__globals__", {}).get("__name__", "").startswith(OURS):
        return None
    return getattr(function, "__code__", None)


def _folder(code: CodeType) -> str | None:
    path = PurePath(code.co_filename)
    parts = (path.relative_to(WEBUI) if path.is_relative_to(WEBUI) else path).parts
    for place, part in reversed(list(enumerate(parts[:-2]))):
        if part in FOLDERS:
            return parts[place + 1]
    return None
