"""How a setting is declared: the values it takes, what it is called, where it is shown, and the methods that use it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lib_loratorio.errors import SettingsError


class Traits(NamedTuple):
    """What a method does, or what a setting is of use to.

    weighs: weighs adapters by patch, so that there are weight maps and scouting. apart: evaluates adapters apart,
    rather than the host's merge. several: evaluates several adapters in a step.
    """

    weighs: bool = False
    apart: bool = False
    several: bool = False

    def include(self, needed: Traits) -> bool:
        """Whether all that is needed is among these."""
        return all(has or not needs for has, needs in zip(self, needed))


NONE = Traits()


class Kind:
    """The values that a setting takes. Called with the setting's name and a value, it gives that value in its own type,
    or raises SettingsError, which names both and what is allowed.
    """

    @property
    def allowed(self) -> str:
        """What is allowed, for people."""
        raise NotImplementedError

    def __call__(self, name: str, value: Any) -> Any:
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """These values in a JSON schema."""
        raise NotImplementedError

    def written(self, value: Any) -> Any:
        """What of a value stands in a picture's parameters."""
        return value

    def refused(self, name: str, value: Any) -> SettingsError:
        return SettingsError(f"{name} is {value!r}; it must be {self.allowed}.")


class Flag(Kind):
    """`true` or `false`, also as text."""

    allowed = "true or false"

    def __call__(self, name: str, value: Any) -> bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.strip().lower(), value)
        if not isinstance(value, bool):
            raise self.refused(name, value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class Choice(Kind):
    """One of some words, which are looked up anew each time."""

    def __init__(self, choices: Collection[str]):
        self.choices = choices

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.choices)}"

    def __call__(self, name: str, value: Any) -> str:
        if value not in list(self.choices):
            raise self.refused(name, value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.choices)}


class Entries(Kind):
    """Text with entries divided by commas or line breaks, or a list of such; comes out divided by commas."""

    allowed = "text, or a list of texts"

    def __call__(self, name: str, value: Any) -> str:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            raise self.refused(name, value)
        entries = (entry.strip() for part in parts for entry in part.replace("\n", ",").split(","))
        return ",".join(entry for entry in entries if entry)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class Picture(Kind):
    """An image as base64, with or without what a data URL begins with; or in place of it what `written` gives, by
    which a picture's parameters name one. Empty for none.
    """

    allowed = "an image file as base64"
    digest = "sha256-"

    def __call__(self, name: str, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.refused(name, value)
        text = "".join(value.partition("base64,")[2].split() if "base64," in value else value.split())
        if not text.startswith(self.digest) and self.content(text) is None:
            raise self.refused(name, f"{text[:20]}...")
        return text

    @staticmethod
    def content(text: str) -> bytes | None:
        """The file; None for what is not base64."""
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            return None

    def written(self, value: str) -> str:
        """What names it: the start of its file's SHA-256."""
        if not value or value.startswith(self.digest):
            return value
        return self.digest + hashlib.sha256(self.content(value) or b"").hexdigest()[:16]

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64"}


class Number(Kind):
    """Numbers from `low` to `high`, given as a number or as its text."""

    called, json_type = "a number", "number"

    def __init__(self, low: float, high: float = math.inf):
        self.low, self.high = low, high

    @property
    def allowed(self) -> str:
        return f"{self.called} from {self.low:g} " + (f"to {self.high:g}" if math.isfinite(self.high) else "up")

    def __call__(self, name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and self.low <= number <= self.high):
            raise self.refused(name, value)
        return number

    def schema(self) -> dict[str, Any]:
        return {"type": self.json_type, "minimum": self.low} | (
            {"maximum": self.high} if math.isfinite(self.high) else {}
        )


class Whole(Number):
    """Whole numbers from `low` to `high`."""

    called, json_type = "a whole number", "integer"

    def __call__(self, name: str, value: Any) -> int:
        number = super().__call__(name, value)
        if number != int(number):
            raise self.refused(name, value)
        return int(number)


class Slider(NamedTuple):
    """The part of a number's range that the page offers."""

    minimum: float
    maximum: float
    step: float


class Axis(NamedTuple):
    """An axis of the X/Y/Z plot.

    number: its place among the axes, by which requests over the API name it. label: where the setting's own does not
    suit. until: the setting that the second number of a range sets, where the axis has ranges.
    """

    number: int
    label: str = ""
    until: str = ""


@dataclass(frozen=True)
class Setting:
    """A setting, declared.

    default, kind: its default, and the values it takes.
    label, help: its name on the page, and the line that explains it there.
    meaning: the same for those who see no label, or who want more: documentation, command line and API.
    unit: of its numbers.
    uses: the traits that a method needs to make use of it; with other methods it is grey.
    place: its group in the accordion, empty for what is always seen; its row there; and its place in that row. None for
        what has no control of that kind.
    slider: for numbers, what the page offers of their range.
    axis: its axis of the X/Y/Z plot, if it has one.
    option: whether the command line has an option for it.
    in_infotext: "always", "never", or where its value has "changed" from the default.
    in_presets: whether a preset sets it.
    priced: whether the price of a step depends on it.
    """

    default: Any
    kind: Kind
    label: str
    help: str
    meaning: str = ""
    unit: str = ""
    uses: Traits = NONE
    place: tuple[str, int, int] | None = None
    slider: Slider | None = None
    axis: Axis | None = None
    option: bool = True
    in_infotext: str = "changed"
    in_presets: bool = False
    priced: bool = False

    @property
    def described(self) -> str:
        return self.meaning or self.help


def setting(default: Any, kind: Kind, **declared: Any) -> Any:
    """A field of a dataclass with a declaration, for which see `Setting`."""
    return field(default=default, metadata={Setting: Setting(default, kind, **declared)})
