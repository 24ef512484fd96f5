"""Callbacks by kind. As in the host, what one of them raises is reported and otherwise ignored."""

from dataclasses import dataclass
from typing import Any

from modules import errors


@dataclass
class CFGDenoiserParams:
    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any


@dataclass
class CFGDenoisedParams:
    x: Any
    sampling_step: int
    total_sampling_steps: int
    inner_model: Any


@dataclass
class ScriptCallback:
    script: str
    callback: Any


callback_map: dict[str, list[ScriptCallback]] = {}


def _register(kind):
    return lambda callback: callback_map.setdefault(f"callbacks_{kind}", []).append(ScriptCallback("", callback))


def _call(kind, *args):
    for registered in callback_map.get(f"callbacks_{kind}", []):
        try:
            registered.callback(*args)
        except Exception:
            errors.report(f"callback {kind}", exc_info=True)


on_ui_settings = _register("ui_settings")
on_before_ui = _register("before_ui")
on_app_started = _register("app_started")
on_cfg_denoiser = _register("cfg_denoiser")
on_cfg_denoised = _register("cfg_denoised")


def ui_settings_callback():
    _call("ui_settings")


def before_ui_callback():
    _call("before_ui")


def cfg_denoiser_callback(params):
    _call("cfg_denoiser", params)


def cfg_denoised_callback(params):
    _call("cfg_denoised", params)
