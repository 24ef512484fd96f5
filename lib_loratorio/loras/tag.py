"""How an adapter takes part in a sampling, as its tag says: `<lora:name:0.8:ltstart=0.2:ltend=0.7:lt=global>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lib_loratorio.errors import SettingsError
from lib_loratorio.settings import within

NAMES = ("ltstart", "ltend", "lt")
ROLES = ("local", "global")


@dataclass(frozen=True)
class Part:
    """When, in fractions of the sampling, and as what.

    Outside `[start, end)` an adapter is not evaluated; an end of 1 includes the last step. A local adapter competes for
    places; a global one belongs to the base and to every local adapter's evaluation.
    """

    start: float = 0.0
    end: float = 1.0
    role: str = "local"

    def holds(self, fraction: float) -> bool:
        return within(fraction, self.start, self.end)

    @property
    def tag(self) -> str:
        """Its part of a tag; nothing for a local adapter in the whole sampling."""
        values = zip(NAMES, (f"{self.start:g}", f"{self.end:g}", self.role), ("0", "1", "local"))
        return "".join(f":{name}={value}" for name, value, default in values if value != default)


LOCAL = Part()


def part(named: Mapping[str, Any], lora: str) -> Part:
    """What a tag's named arguments say of the LoRA called `lora`.

    Other names are the host's or another extension's. Raises SettingsError for values out of range and mistyped names.
    """
    for name in named:
        if name not in NAMES and (name.startswith("lt") or get_close_matches(name, NAMES[:2], 1, 0.9)):
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
    return Part(start, end, role)


def _fraction(named: Mapping[str, Any], name: str, default: float, lora: str) -> float:
    try:
        value = float(named.get(name, default))
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value <= 1:
        raise SettingsError(f"the LoRA '{lora}' has {name}={named[name]}; it must be a number from 0 to 1.")
    return value


def taking_part(parts: Sequence[Part], fraction: float) -> tuple[int, ...]:
    """The numbers of the adapters that take part at this fraction of the sampling."""
    return tuple(number for number, part in enumerate(parts) if part.holds(fraction))


def merged_below(members: Sequence[Any]) -> list[list[Any]]:
    """For each of these adapters those that every evaluation of it has too: the global ones, of them the ones before
    it.
    """
    everywhere = [member for member in members if member.part.role == "global"]
    return [everywhere[: everywhere.index(member)] if member in everywhere else everywhere for member in members]
