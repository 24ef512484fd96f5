"""When in the sampling an adapter takes part: `<lora:name:0.8:ltstart=0.2:ltend=0.7>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lib_loratorio.settings import SettingsError, within

NAMES = ("ltstart", "ltend")


@dataclass(frozen=True)
class Window:
    """Fractions of the sampling; outside `[start, end)` an adapter is not evaluated. An end of 1 includes the last step."""

    start: float = 0.0
    end: float = 1.0

    def holds(self, fraction: float) -> bool:
        return within(fraction, self.start, self.end)

    @property
    def tag(self) -> str:
        """Its part of a tag; nothing for the whole sampling."""
        parts = ((name, value) for name, value, default in zip(NAMES, (self.start, self.end), (0.0, 1.0)) if value != default)
        return "".join(f":{name}={value:g}" for name, value in parts)


ALWAYS = Window()


def window(named: Mapping[str, Any], lora: str) -> Window:
    """The window in a tag's named arguments, of the LoRA called `lora`.

    Other names are the host's or another extension's. Raises SettingsError for values out of range and mistyped names.
    """
    for name in named:
        if name not in NAMES and (name.startswith("lt") or get_close_matches(name, NAMES, 1, 0.9)):
            raise SettingsError(f"LoRAtorio: the LoRA '{lora}' has '{name}', which is not known; the names are {' and '.join(NAMES)}.")
    start, end = (_fraction(named, name, default, lora) for name, default in zip(NAMES, (0.0, 1.0)))
    if not start < end:
        raise SettingsError(f"LoRAtorio: the LoRA '{lora}' has ltstart {start:g} and ltend {end:g}; the start must be below the end.")
    return Window(start, end)


def _fraction(named: Mapping[str, Any], name: str, default: float, lora: str) -> float:
    try:
        value = float(named.get(name, default))
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value <= 1:
        raise SettingsError(f"LoRAtorio: the LoRA '{lora}' has {name}={named[name]}; it must be a number from 0 to 1.")
    return value


def taking_part(windows: Sequence[Window], fraction: float) -> tuple[int, ...]:
    """The numbers of the adapters that take part at this fraction of the sampling."""
    return tuple(number for number, window in enumerate(windows) if window.holds(fraction))
