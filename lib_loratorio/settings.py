"""What a user can set: defaults, validation, and the forms it takes in infotext and API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from lib_loratorio.errors import SettingsError


class Traits(NamedTuple):
    """What a method does.

    weighs: weighs adapters by patch. apart: evaluates them apart, rather than the host's merge. several: evaluates
    several of them in a step.
    """

    weighs: bool
    apart: bool
    several: bool


METHODS = {
    "loratorio": Traits(weighs=True, apart=True, several=True),
    "composite": Traits(weighs=False, apart=True, several=True),
    "switch": Traits(weighs=False, apart=True, several=False),
    "merge": Traits(weighs=False, apart=False, several=False),
}
TEXT_ENCODER_MODES = ("own", "merged")
POOL_MODES = ("exact", "scout")


INFOTEXT = "LoRAtorio"
"""The infotext field that holds all settings."""

POOL = "LoRAtorio pool"
"""The infotext field that tells which adapters of a pool were evaluated from which step on."""


def within(fraction: float, start: float, end: float) -> bool:
    """Whether a fraction of the sampling is in `[start, end)`; an end of 1 includes the last step, and samplers may run
    past it.
    """
    return start <= fraction and (fraction < end or end == 1.0)


@dataclass(frozen=True)
class Settings:
    """All settings of one generation. Field order is the positional API form.

    `start` and `end` are fractions of the sampling: outside `[start, end)` the host's ordinary merged
    LoRAs apply. `top_k` 0 keeps all adapters; `adapters_per_pass` 0 puts as many evaluations into one
    model call as fit. `maps` shows, beside each picture, where each LoRA weighed most.

    `pool` lists LoRAs besides the prompt's. In its mode "exact" all of them are evaluated in every step; in "scout" all
    up to the fraction `scout` of the sampling and in every `scout_every`-th step (0: no more), and between these only
    those with at least `scout_share` of the strongest one's places, see `Scout`. `trigger_words` appends each LoRA's
    own to its own prompt. `guidance_every` evaluates the LoRAs' unconditional rows in every so many steps only.
    """

    enabled: bool = False
    method: str = "loratorio"
    patch_size: int = 1
    temperature: float = 0.1
    lam: float = 0.5
    top_k: int = 0
    start: float = 0.0
    end: float = 1.0
    text_encoder: str = "own"
    adapters_per_pass: int = 0
    verify: bool = False
    maps: bool = False
    pool: str = ""
    pool_mode: str = "exact"
    scout: float = 0.2
    scout_every: int = 0
    scout_share: float = 0.7
    trigger_words: bool = False
    guidance_every: int = 1

    def __post_init__(self) -> None:
        for name, convert in _CONVERSIONS.items():
            object.__setattr__(self, name, convert(name, getattr(self, name)))
        if not self.start < self.end:
            raise SettingsError(f"start is {self.start:g}; it must be below end, which is {self.end:g}.")

    @property
    def traits(self) -> Traits:
        """What the method does."""
        return METHODS[self.method]

    def active(self, fraction: float) -> bool:
        """Whether the step at this fraction of the sampling is composed; samplers may run past 1."""
        return within(fraction, self.start, self.end)

    @classmethod
    def from_api(cls, values: Mapping[str, Any]) -> Settings:
        """From one dict; missing keys take their defaults. Raises SettingsError."""
        names = [field.name for field in fields(cls)]
        unknown = [str(key) for key in values if key not in names]
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(names)}.")
        return cls(**values)

    @classmethod
    def from_args(cls, args: Sequence[Any]) -> Settings:
        """From a script's arguments: one dict first, or the values in field order. Raises SettingsError."""
        return cls.from_api(cls.named(args))

    @classmethod
    def named(cls, args: Sequence[Any]) -> dict[str, Any]:
        """A script's arguments as one dict, unchecked: what they say of settings by name."""
        if args and isinstance(args[0], Mapping):
            return dict(args[0])
        return dict(zip((field.name for field in fields(cls)), args))

    @staticmethod
    def is_off(args: Sequence[Any]) -> bool:
        """Whether a script's arguments leave the extension off, in which case the other values do not matter."""
        enabled = Settings.named(args).get("enabled", False)
        return enabled is False or str(enabled).strip().lower() == "false"

    def to_api(self) -> dict[str, Any]:
        return asdict(self)

    def to_infotext(self) -> str:
        """`name=value` pairs: what is central always, the rest where it differs from its default."""
        default = Settings()
        pairs = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _ALWAYS_WRITTEN or (field.name != "enabled" and value != getattr(default, field.name)):
                pairs.append(f"{field.name}={_text(value)}")
        return " ".join(pairs)

    @classmethod
    def from_infotext(cls, text: str) -> Settings:
        """The settings that `to_infotext` wrote, enabled. Raises SettingsError."""
        values: dict[str, Any] = {"enabled": True}
        for pair in text.split():
            name, separator, value = pair.partition("=")
            if not separator:
                raise SettingsError(f"cannot read {pair!r} in the infotext; expected name=value.")
            values[name] = unquote(value)
        return cls.from_api(values)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"lam": 0.5, "top_k": 0},
    "fast": {"lam": 1.0},
    "quality": {"temperature": 0.003},
}
"""What the accordion's buttons set beside the defaults of how LoRAs are weighed; "fast" needs N + 2 model evaluations a
step instead of 2N + 2; "quality" had the smallest patch distance of the variants in docs/evaluation.md.
"""

_ALWAYS_WRITTEN = ("method", "patch_size", "temperature", "lam")


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else quote(str(value), safe="/:,*?")


def _refuse(name: str, value: Any, allowed: str) -> SettingsError:
    return SettingsError(f"{name} is {value!r}; it must be {allowed}.")


class _Boolean:
    """`true` or `false`, also as text."""

    def __call__(self, name: str, value: Any) -> bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.strip().lower(), value)
        if not isinstance(value, bool):
            raise _refuse(name, value, "true or false")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class _Choice:
    """One of some words."""

    def __init__(self, *choices: str):
        self.choices = choices

    def __call__(self, name: str, value: Any) -> str:
        if value not in self.choices:
            raise _refuse(name, value, f"one of {', '.join(self.choices)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.choices)}


class _List:
    """Text with entries divided by commas or line breaks, or a list of such; comes out divided by commas."""

    def __call__(self, name: str, value: Any) -> str:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            raise _refuse(name, value, "text, or a list of texts")
        entries = (entry.strip() for part in parts for entry in part.replace("\n", ",").split(","))
        return ",".join(entry for entry in entries if entry)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class _Number:
    """Numbers from `low` to `high`, given as a number or as its text."""

    def __init__(self, low: float, high: float, whole: bool = False):
        self.low, self.high, self.whole = low, high, whole

    def __call__(self, name: str, value: Any) -> float | int:
        kind = "a whole number" if self.whole else "a number"
        allowed = f"{kind} from {self.low:g} " + (f"to {self.high:g}" if math.isfinite(self.high) else "up")
        if isinstance(value, bool):
            raise _refuse(name, value, allowed)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise _refuse(name, value, allowed) from None
        if not (math.isfinite(number) and self.low <= number <= self.high) or (self.whole and number != int(number)):
            raise _refuse(name, value, allowed)
        return int(number) if self.whole else number

    def schema(self) -> dict[str, Any]:
        return {"type": "integer" if self.whole else "number", "minimum": self.low} | (
            {"maximum": self.high} if math.isfinite(self.high) else {}
        )


_CONVERSIONS = {
    "enabled": _Boolean(),
    "method": _Choice(*METHODS),
    "patch_size": _Number(1, 256, whole=True),
    "temperature": _Number(1e-6, math.inf),
    "lam": _Number(0, 1),
    "top_k": _Number(0, math.inf, whole=True),
    "start": _Number(0, 1),
    "end": _Number(0, 1),
    "text_encoder": _Choice(*TEXT_ENCODER_MODES),
    "adapters_per_pass": _Number(0, math.inf, whole=True),
    "verify": _Boolean(),
    "maps": _Boolean(),
    "pool": _List(),
    "pool_mode": _Choice(*POOL_MODES),
    "scout": _Number(0, 1),
    "scout_every": _Number(0, math.inf, whole=True),
    "scout_share": _Number(0, 1),
    "trigger_words": _Boolean(),
    "guidance_every": _Number(1, math.inf, whole=True),
}


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the dict that the API takes."""
    properties = {
        field.name: {**_CONVERSIONS[field.name].schema(), "default": field.default} for field in fields(Settings)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": INFOTEXT,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
