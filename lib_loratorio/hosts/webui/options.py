"""The settings page: what every generation of this WebUI has in common, and what the accordion starts with."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from modules import shared

from lib_loratorio.errors import SettingsError
from lib_loratorio.page.accordion import SHOWN, TITLE, control
from lib_loratorio.presets import START
from lib_loratorio.settings import SETTINGS, Settings

STOP_ON_ERROR, DENSE_BUDGET, MAP_FORMAT = "loratorio_stop_on_error", "loratorio_dense_budget_mb", "loratorio_map_format"
DEFAULT = "loratorio_default_"
"""How the options begin that hold what a control starts with."""

AS_GRIDS = "as grids"


def add_options() -> None:
    def add(name: str, default: Any, label: str, component: type, component_args: dict | None = None) -> Any:
        info = shared.OptionInfo(default, label, component, component_args, section=("loratorio", TITLE))
        shared.opts.add_option(name, info)
        return info

    add(STOP_ON_ERROR, True, "Stop the generation when LoRAtorio cannot do what was asked", gr.Checkbox).info(
        "off: go on without LoRAtorio, and say so"
    )
    add(DENSE_BUDGET, 1024, "Memory for LoRA kinds without a compact form, in MB", gr.Number, {"precision": 0}).info(
        "LoHa, LoKr, full, OFT, DoRA and the like; what does not fit is computed anew in each step"
    )
    add(
        MAP_FORMAT,
        AS_GRIDS,
        "File format of saved weight maps",
        gr.Dropdown,
        {"choices": [AS_GRIDS, "png", "jpg", "webp"]},
    )
    for name in ("enabled", *SHOWN):
        shown = control(name)
        add(DEFAULT + name, getattr(START, name), shown.label, shown.component, shown.options or None).info(
            "what the accordion starts with"
        ).needs_reload_ui()


def _option(name: str, default: Any) -> Any:
    return getattr(shared.opts, name, default)  # without a page, options have no defaults


def stop_on_error() -> bool:
    return _option(STOP_ON_ERROR, True)


def dense_budget() -> int:
    """Bytes that cached dense deltas may take."""
    return int(_option(DENSE_BUDGET, 1024) * 2**20)


def map_format() -> str:
    """The ending of saved weight maps' file names."""
    chosen = _option(MAP_FORMAT, AS_GRIDS)
    return shared.opts.grid_format if chosen == AS_GRIDS else chosen


def starting_settings() -> Settings:
    """What the accordion starts with; where the options do not go together, the extension's own defaults."""
    try:
        return Settings(**{name: _option(DEFAULT + name, getattr(START, name)) for name in SETTINGS})
    except SettingsError as error:
        logging.warning(f"{error} These are the settings page's defaults, which are not used.")
        return START
