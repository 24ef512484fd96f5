"""What a LoRA's tag says of its part in a sampling: `<lora:name:0.8:ltstart=0.2:ltend=0.7:lt=global>`.

The names `lbw`, `start`, `stop` and `step` are those of the extension LoRA Block Weight, and mean what they mean there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.block_weights import PRESETS, BlockWeights, read_weights
from lib_loratorio.loras.ramp import Ramp
from lib_loratorio.loras.region import Region, read_share

NAMES = ("ltstart", "ltend", "lt", "ltbox", "ltat", "ltshare", "ltw", "lbw", "start", "stop", "step")
KNOWN = f"{', '.join(NAMES[:-1])} and {NAMES[-1]}"
SHORTENED = ("ltbox", "ltat", "ltshare")
"""Those that are mistyped without `lt`; other names have a meaning of their own without it."""

X = "x"
"""The name of what the number `X` in block weights stands for."""

ROLES = ("local", "global")

OTHERS = frozenset({"te", "unet", "dyn", "lbwe", X})
"""Names of the hosts and of other extensions, which are no mistyped ones of ours."""


@dataclass(frozen=True)
class LoraTag:
    """When, where, as what and with how much of its layers an adapter takes part.

    Outside `[start, end)`, in fractions of the sampling, an adapter is not evaluated, and neither outside
    `[first_step, stop_step)`; an end of 1 includes the last step, and so does a `stop_step` of None. A local adapter
    competes for patches; a global one belongs to the base and to every local adapter's evaluation.

    blocks: what the strength is multiplied by in each layer. elements: what the tag has as LoRA Block Weight's `lbwe`,
    which nothing here can do. region: where in the picture the adapter may be; None for all of it. share: its fixed
    share of each place there; None for a local adapter that competes for it. ramp: what the strength is multiplied by
    over the sampling; where that is 0, the adapter is not evaluated. words: what the adapter alone reads behind the
    prompt, where its tag is not a WebUI's, which has them in a tag of their own.
    """

    start: float = 0.0
    end: float = 1.0
    role: str = "local"
    blocks: BlockWeights | None = None
    first_step: int = 0
    stop_step: int | None = None
    elements: str = ""
    region: Region | None = None
    share: float | None = None
    ramp: Ramp | None = None
    words: str = ""

    @classmethod
    def read(cls, named: Mapping[str, Any], lora: str, presets: Mapping[str, str] = PRESETS) -> LoraTag:
        """What the named arguments of the tag of the LoRA called `lora` say.

        Case and spaces around a name do not matter. Other names are the host's or another extension's. `presets` are
        block weights by name. Raises SettingsError for values out of range and mistyped names.
        """
        named = {str(name).strip().lower(): value for name, value in named.items()}
        for name in named:
            if name not in NAMES and name not in OTHERS and _looks_like_ours(name):
                raise SettingsError(f"the LoRA '{lora}' has '{name}', which is not known; the names are {KNOWN}.")
        start, end = (_fraction(named, name, default, lora) for name, default in zip(NAMES, (0.0, 1.0)))
        if not start < end:
            raise SettingsError(
                f"the LoRA '{lora}' has ltstart {start:g} and ltend {end:g}; the start must be below the end."
            )
        role = str(named.get("lt", "local")).strip().lower()
        if role not in ROLES:
            raise SettingsError(f"the LoRA '{lora}' has lt={named['lt']}; it must be {' or '.join(ROLES)}.")
        blocks = None
        if "lbw" in named:
            blocks = read_weights(str(named["lbw"]), lora, presets, str(named.get(X, "1")))
        region, share = Region.read(named, lora), read_share(named, lora)
        elements, ramp = str(named.get("lbwe", "")).strip(), Ramp.read(named, lora)
        return cls(start, end, role, blocks, *_steps(named, lora), elements, region, share, ramp)

    def holds(self, fraction: float, step: int) -> bool:
        """Whether an adapter takes part at this fraction of the sampling, which is in this step, counted from 0."""
        return self.factor(fraction, step) != 0

    def factor(self, fraction: float, step: int) -> float:
        """What the strength in the UNet or transformer is multiplied by then; 0 where the adapter takes no part."""
        if step < self.first_step or (self.stop_step is not None and step >= self.stop_step):
            return 0.0
        ramp = 1.0 if self.ramp is None else self.ramp.at(fraction)
        return ramp * Ramp.window(self.start, self.end).at(fraction)

    def is_whole(self, start: float, end: float) -> bool:
        """Whether the strength is the tag's own everywhere in these fractions of the sampling, `[start, end)`."""
        ramps = (Ramp.window(self.start, self.end), *([self.ramp] if self.ramp else []))
        return all(ramp.is_whole(start, end) for ramp in ramps)

    @property
    def has_steps(self) -> bool:
        return (self.first_step, self.stop_step) != (0, None)

    @property
    def is_global(self) -> bool:
        return self.role == "global"

    @property
    def has_place(self) -> bool:
        """Whether the tag says anything of where, or of how much of a place."""
        return self.region is not None or self.share is not None

    def drawn(self, seed: str) -> LoraTag:
        """With numbers in place of the random ones of its block weights: for the same seed the same."""
        return replace(self, blocks=self.blocks.drawn(seed)) if self.blocks and self.blocks.is_random else self

    @property
    def text(self) -> str:
        """These arguments as a tag has them; nothing for a local adapter in the whole sampling."""
        values = {
            "ltstart": f"{self.start:g}" if self.start else "",
            "ltend": f"{self.end:g}" if self.end != 1 else "",
            "lt": self.role if self.is_global else "",
            **(self.region.arguments if self.region else {}),
            "ltshare": "" if self.share is None else f"{self.share:g}",
            "ltw": self.ramp.text if self.ramp else "",
            "lbw": self.blocks.listed if self.blocks else "",
            "start": str(self.first_step) if self.first_step else "",
            "stop": "" if self.stop_step is None else str(self.stop_step),
        }
        return "".join(f":{name}={value}" for name, value in values.items() if value)


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
    return name.startswith("lt") or f"lt{name}" in SHORTENED or bool(get_close_matches(name, NAMES, 1, 0.8))


def _fraction(named: Mapping[str, Any], name: str, default: float, lora: str) -> float:
    try:
        value = float(named.get(name, default))
    except (TypeError, ValueError, OverflowError):
        value = -1.0
    if not 0 <= value <= 1:
        raise SettingsError(f"the LoRA '{lora}' has {name}={named[name]}; it must be a number from 0 to 1.")
    return value


def _steps(named: Mapping[str, Any], lora: str) -> tuple[int, int | None]:
    """The first step with the adapter, counted from 0, and the first one without it again.

    As LoRA Block Weight does it on AUTOMATIC1111: `start=5` after five steps, `stop=10` for ten steps, `step=5-10` in
    place of both; `start=1` is the start of the sampling, as `start=0` is.
    """
    start, stop = named.get("start"), named.get("stop")
    if "step" in named:
        start, divided, stop = str(named["step"]).partition("-")
        if not divided:
            raise SettingsError(f"the LoRA '{lora}' has step={named['step']}; it must be two steps, such as 5-10.")
    of_start, of_stop = ("step", "step") if "step" in named else ("start", "stop")
    first = 0 if start is None else _step(of_start, start, named, lora)
    first = 0 if first == 1 else first
    if stop is None:
        return first, None
    last = _step(of_stop, stop, named, lora)
    if last <= max(first, 1):
        raise SettingsError(
            f"the LoRA '{lora}' has start {first} and stop {last}, and so no step to take part in; the stop must be "
            "2 or more, and above the start."
        )
    return first, last


def _step(name: str, text: Any, named: Mapping[str, Any], lora: str) -> int:
    digits = str(text).strip()
    if not (digits.isascii() and digits.isdigit()):
        raise SettingsError(
            f"the LoRA '{lora}' has {name}={named[name]}; it must be a whole number of steps. ltstart and ltend take "
            "fractions of the sampling."
        )
    return int(digits)
