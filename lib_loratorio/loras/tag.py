"""What a LoRA's tag says of its part in a sampling: `<lora:name:0.8:ltstart=0.2:ltend=0.7:lt=global>`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lib_loratorio.errors import SettingsError
from lib_loratorio.settings import within

NAMES = ("ltstart", "ltend", "lt")
ROLES = ("local", "global")

OTHERS = frozenset({"te", "unet", "dyn", "start", "stop", "step", "lbw", "lbwe"})
"""Names of the hosts and of other extensions, which are no mistyped ones of ours."""


@dataclass(frozen=True)
class LoraTag:
    """When, in fractions of the sampling, and as what an adapter takes part.

    Outside `[start, end)` an adapter is not evaluated; an end of 1 includes the last step. A local adapter competes for
    patches; a global one belongs to the base and to every local adapter's evaluation.
    """

    start: float = 0.0
    end: float = 1.0
    role: str = "local"

    @classmethod
    def read(cls, named: Mapping[str, Any], lora: str) -> LoraTag:
        """What the named arguments of the tag of the LoRA called `lora` say.

        Case and spaces around a name do not matter. Other names are the host's or another extension's. Raises
        SettingsError for values out of range and mistyped names.
        """
        named = {str(name).strip().lower(): value for name, value in named.items()}
        for name in named:
            if name not in NAMES and name not in OTHERS and _looks_like_ours(name):
                raise SettingsError(
                    f"the LoRA '{lora}' has '{name}', which is not known; the names are "
                    f"{', '.join(NAMES[:-1])} and {NAMES[-1]}."
                )
        start, end = (_fraction(named, name, default, lora) for name, default in zip(NAMES, (0.0, 1.0)))
        if not start < end:
            raise SettingsError(
                f"the LoRA '{lora}' has ltstart {start:g} and ltend {end:g}; the start must be below the end."
            )
        role = str(named.get("lt", "local")).strip().lower()
        if role not in ROLES:
            raise SettingsError(f"the LoRA '{lora}' has lt={named['lt']}; it must be {' or '.join(ROLES)}.")
        return cls(start, end, role)

    def holds(self, fraction: float) -> bool:
        """Whether an adapter takes part at this fraction of the sampling."""
        return within(fraction, self.start, self.end)

    @property
    def text(self) -> str:
        """These arguments as a tag has them; nothing for a local adapter in the whole sampling."""
        values = zip(NAMES, (f"{self.start:g}", f"{self.end:g}", self.role), ("0", "1", "local"))
        return "".join(f":{name}={value}" for name, value, default in values if value != default)


LOCAL = LoraTag()


def acts(*strengths: float) -> bool:
    """Whether a LoRA at these strengths is one at all: at strength 0 it is none, and not evaluated."""
    return any(strengths)


def read_strength(value: Any, lora: str) -> float:
    """The strength of the LoRA called `lora`, from a tag's text. Raises SettingsError for what is no finite number."""
    try:
        strength = float(value)
    except (TypeError, ValueError, OverflowError):
        strength = math.nan
    if not math.isfinite(strength):
        raise SettingsError(
            f"the LoRA '{lora}' has the strength '{value}'; it must be a number, such as 0.8, with a point."
        )
    return strength


def _looks_like_ours(name: str) -> bool:
    return name.startswith("lt") or bool(get_close_matches(name, NAMES[:2], 1, 0.8))


def _fraction(named: Mapping[str, Any], name: str, default: float, lora: str) -> float:
    try:
        value = float(named.get(name, default))
    except (TypeError, ValueError, OverflowError):
        value = -1.0
    if not 0 <= value <= 1:
        raise SettingsError(f"the LoRA '{lora}' has {name}={named[name]}; it must be a number from 0 to 1.")
    return value
