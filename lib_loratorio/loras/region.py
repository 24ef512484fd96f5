"""Where in the picture a LoRA may be, as its tag says it: `ltbox=0,0,0.5,1` or `ltat=left`, several with `+`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lib_loratorio.errors import SettingsError

SEVERAL = "+"


class Box(NamedTuple):
    """A part of a picture, in fractions of its width and height, counted from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def text(self) -> str:
        return ",".join(f"{edge:.10g}" for edge in self)

    def seen_in(self, window: Box) -> Box | None:
        """What a part of the picture shows of it, in fractions of that part; None for nothing."""
        width, height = window.right - window.left, window.bottom - window.top
        across = [min(max((edge - window.left) / width, 0.0), 1.0) for edge in (self.left, self.right)]
        down = [min(max((edge - window.top) / height, 0.0), 1.0) for edge in (self.top, self.bottom)]
        return Box(across[0], down[0], across[1], down[1]) if across[0] < across[1] and down[0] < down[1] else None


def seen_boxes(region: Region | None, window: Box) -> list[Box]:
    """A region's boxes as a part of the picture shows them; none without a region."""
    seen = [box.seen_in(window) for box in region.boxes] if region else []
    return [box for box in seen if box]


WHOLE = Box(0.0, 0.0, 1.0, 1.0)

_HALVES = {"left": (0.0, 0.5), "right": (0.5, 1.0), "top": (0.0, 0.5), "bottom": (0.5, 1.0)}
_THIRDS = {"first": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "last": (2 / 3, 1.0)}


def _box(x: tuple[float, float] = (0.0, 1.0), y: tuple[float, float] = (0.0, 1.0)) -> Box:
    return Box(x[0], y[0], x[1], y[1])


WORDS: dict[str, Box] = {
    "left": _box(x=_HALVES["left"]),
    "right": _box(x=_HALVES["right"]),
    "top": _box(y=_HALVES["top"]),
    "bottom": _box(y=_HALVES["bottom"]),
    "center": Box(0.25, 0.25, 0.75, 0.75),
    **{f"{y}-{x}": _box(_HALVES[x], _HALVES[y]) for y in ("top", "bottom") for x in ("left", "right")},
    "left-third": _box(x=_THIRDS["first"]),
    "middle-third": _box(x=_THIRDS["middle"]),
    "right-third": _box(x=_THIRDS["last"]),
    "top-third": _box(y=_THIRDS["first"]),
    "bottom-third": _box(y=_THIRDS["last"]),
}
"""The places that have a word: halves, quarters, thirds, and the middle of the picture."""


@dataclass(frozen=True)
class Region:
    """The union of boxes and of places that have a word."""

    given: tuple[Box, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        return (*self.given, *(WORDS[word] for word in self.words))

    @classmethod
    def read(cls, named: Mapping[str, Any], lora: str) -> Region | None:
        """What `ltbox` and `ltat` among the named arguments of the LoRA called `lora` say; None without these.

        Raises SettingsError for what is no box, and for other words.
        """
        if not {"ltbox", "ltat"} & named.keys():
            return None
        boxes = tuple(_read_box(part, named["ltbox"], lora) for part in _parts(named, "ltbox"))
        words = tuple(part.strip().lower() for part in _parts(named, "ltat"))
        for word in words:
            if word not in WORDS:
                raise SettingsError(
                    f"the LoRA '{lora}' has ltat={named['ltat']}; it must be one of {', '.join(WORDS)}, or several of "
                    f"these with {SEVERAL} between them."
                )
        return cls(boxes, words)

    @property
    def arguments(self) -> dict[str, str]:
        """As a tag has them; empty texts for what it does not have."""
        return {"ltbox": SEVERAL.join(box.text for box in self.given), "ltat": SEVERAL.join(self.words)}


def _parts(named: Mapping[str, Any], name: str) -> list[str]:
    return str(named[name]).split(SEVERAL) if name in named else []


def _read_box(text: str, whole_text: Any, lora: str) -> Box:
    try:
        edges = [float(edge) for edge in text.split(",")]
    except ValueError:
        edges = []
    if len(edges) != 4 or not all(math.isfinite(edge) and 0 <= edge <= 1 for edge in edges):
        raise SettingsError(f"the LoRA '{lora}' has ltbox={whole_text}; {_FORM}")
    box = Box(*edges)
    if not (box.left < box.right and box.top < box.bottom):
        raise SettingsError(f"the LoRA '{lora}' has ltbox={whole_text}, of which the box {text} is empty; {_FORM}")
    return box


_FORM = (
    "it must be four fractions of the picture from 0 to 1, left,top,right,bottom, such as 0,0,0.5,1 for its left half; "
    f"several boxes have {SEVERAL} between them."
)


def read_share(named: Mapping[str, Any], lora: str) -> float | None:
    """What `ltshare` says; None without it. Raises SettingsError."""
    if "ltshare" not in named:
        return None
    try:
        share = float(named["ltshare"])
    except (TypeError, ValueError, OverflowError):
        share = math.nan
    if not 0 < share <= 1:
        raise SettingsError(
            f"the LoRA '{lora}' has ltshare={named['ltshare']}; it must be a number above 0 and up to 1, the LoRA's "
            "share of each place that it may be in."
        )
    return share
