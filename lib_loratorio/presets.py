"""Settings that go together under a name, by what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lib_loratorio.errors import SettingsError
from lib_loratorio.settings import SETTINGS, Settings

IN_PRESETS = [name for name in SETTINGS if SETTINGS[name].in_presets]
"""The settings that a preset sets."""

PRESETS: dict[str, dict[str, Any]] = {
    "quality": {"lam": 1.0},
    "balanced": {"lam": 1.0, "refresh_every": 2},
    "fast": {"lam": 1.0, "refresh_every": 3},
    "paper": {},
}
"""What each sets beside the defaults of `IN_PRESETS`, which are the paper's: what each costs and shows is in
docs/evaluation-price.md.
"""

CUSTOM = "custom"
"""What settings are called that are no preset's."""

START = Settings(**PRESETS["balanced"])
"""What the accordion starts with; values that the API is not given are those of `Settings()`, the paper's."""


def values_of(preset: str) -> dict[str, Any]:
    """The values of `IN_PRESETS` that a preset sets."""
    values = Settings(**PRESETS[preset]).to_api()
    return {name: values[name] for name in IN_PRESETS}


def with_preset(settings: Settings, preset: str) -> Settings:
    """The settings, with those of `IN_PRESETS` that a preset sets."""
    return replace(settings, **values_of(preset))


def preset_of(values: Mapping[str, Any]) -> str:
    """The preset that sets these values of `IN_PRESETS`, given by name; `CUSTOM` for none.

    What is not given has its default. Values that no setting takes are no preset's.
    """
    try:
        given = Settings(**{name: value for name, value in values.items() if name in IN_PRESETS})
    except SettingsError:
        return CUSTOM
    return next((preset for preset, of in PRESETS.items() if Settings(**of) == given), CUSTOM)
