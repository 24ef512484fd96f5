"""Block weights: a LoRA's strength block by block, in the form of the extension LoRA Block Weight (`lbw=` in a tag)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from random import Random

from lib_loratorio.errors import SettingsError

BASE, MIDDLE = "BASE", "M00"
"""Text encoders, and the middle of a UNet."""


def _numbered(side: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{side}{number:02}" for number in numbers)


SD = (BASE, *_numbered("IN", range(12)), MIDDLE, *_numbered("OUT", range(12)))
FLUX = ("CLIP", "T5", "IN", *_numbered("D", range(19)), *_numbered("S", range(38)), "OUT")

LISTS = {
    12: (BASE, *_numbered("IN", (4, 5, 7, 8)), MIDDLE, *_numbered("OUT", range(6))),
    17: (BASE, *_numbered("IN", (1, 2, 4, 5, 7, 8)), MIDDLE, *_numbered("OUT", range(3, 12))),
    20: (BASE, *_numbered("IN", range(9)), MIDDLE, *_numbered("OUT", range(9))),
    26: SD,
    61: FLUX,
}
"""The blocks that a list of so many numbers is for. A UNet's other blocks then have the number 0."""

LENGTHS = "12 numbers (SDXL), 17 (SD 1.x, 2.x), 20 (all blocks of SDXL), 26 (all of SD 1.x, 2.x) or 61 (FLUX.1)"


def _preset(*sides: str, number: str = "1") -> str:
    """17 numbers, those of the blocks whose names begin so being `number`."""
    return ",".join(number if block.startswith(sides) else "0" for block in LISTS[17])


_DEEP_IN, _DEEP_OUT = ("IN05", "IN07", "IN08"), ("OUT03", "OUT04", "OUT05", "OUT06")

PRESETS = {
    "NONE": _preset(),
    "ALL": _preset(""),
    "INS": _preset(BASE, "IN01", "IN02", "IN04"),
    "IND": _preset(BASE, *_DEEP_IN),
    "INALL": _preset(BASE, "IN"),
    "MIDD": _preset(BASE, *_DEEP_IN, MIDDLE, *_DEEP_OUT),
    "OUTD": _preset(BASE, *_DEEP_OUT),
    "OUTS": _preset(BASE, "OUT07", "OUT08", "OUT09", "OUT1"),
    "OUTALL": _preset(BASE, "OUT"),
    "ALL0.5": _preset("", number="0.5"),
    "FLUXALL": ",".join("1" * len(FLUX)),
}
"""The presets that LoRA Block Weight starts with: by name, numbers as a tag has them."""

RANDOM = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}
"""What stands for a random number, and its range."""

_UNET = re.compile(r"(?P<side>in|out)put_blocks_(?P<number>\d+)_|(?P<middle>middle_block_)")
_TRANSFORMER = re.compile(
    r"(?P<kind>[ds])(?:ouble|ingle)_blocks_(?P<number>\d+)_|(?P<first>img|txt|time|vector|guidance)_in_|final_layer_(?!norm)"
)


def block_of(layer: str) -> str | None:
    """The block of a layer by its name in a WebUI, which divides names by dots or underscores; None for one of none,
    such as a UNet's embedding of the time.
    """
    name = f"{layer.replace('.', '_')}_"
    if found := _UNET.search(name):
        return MIDDLE if found["middle"] else f"{found['side'].upper()}{int(found['number']):02}"
    if found := _TRANSFORMER.search(name):
        if found["kind"]:
            return f"{found['kind'].upper()}{int(found['number']):02}"
        return "IN" if found["first"] else "OUT"
    if "encoder" in name or "transformer_resblocks" in name:
        return BASE
    return None


@dataclass(frozen=True)
class Evenly:
    """What a LoRA's strength is multiplied by in every block alike, in the form of block weights."""

    number: float

    @property
    def listed(self) -> str:
        return repr(self.number)

    def factor(self, layer: str) -> float:
        return self.number


@dataclass(frozen=True)
class BlockWeights:
    """What a LoRA's strength is multiplied by in each block.

    text: as the tag has it. numbers: as many as one of `LISTS` has blocks; a key of `RANDOM` for one that is to be
    drawn.
    """

    text: str
    numbers: tuple[float | str, ...]

    @property
    def is_random(self) -> bool:
        return any(isinstance(number, str) for number in self.numbers)

    def drawn(self, seed: str) -> BlockWeights:
        """With numbers in place of the random ones: for the same seed the same."""
        random = Random(seed)
        return replace(
            self,
            numbers=tuple(
                round(random.uniform(*RANDOM[number]), 3) if isinstance(number, str) else number
                for number in self.numbers
            ),
        )

    @property
    def listed(self) -> str:
        """The numbers as a tag has them."""
        return ",".join(number if isinstance(number, str) else f"{number:g}" for number in self.numbers)

    @cached_property
    def _by_block(self) -> dict[str, float]:
        return dict(zip(LISTS[len(self.numbers)], self.numbers))

    @property
    def _is_flux(self) -> bool:
        return len(self.numbers) == len(FLUX)

    def factor(self, layer: str) -> float:
        """What the strength of a layer is multiplied by, 1 for layers of no block."""
        block = block_of(layer)
        if block == BASE and self._is_flux:
            block = "T5" if "t5" in layer else "CLIP"
        return 1.0 if block is None else self.of_block(block)

    def of_block(self, block: str) -> float:
        return self._by_block.get(block, 0.0)

    def require_suited(self, layers: Iterable[str], lora: str) -> None:
        """Raises SettingsError where these numbers are for other models than one whose UNet or transformer has these
        layers, which the LoRA called `lora` changes.
        """
        found = set(map(block_of, layers))
        if not found:
            return
        begins = f"the LoRA '{lora}' has lbw={self.text}"
        if found.isdisjoint((*SD, *FLUX)):
            raise SettingsError(
                f"{begins}, but block weights are known for SD 1.x, SD 2.x, SDXL and FLUX.1 only; take lbw out of "
                "its tag, or change the checkpoint."
            )
        if found.isdisjoint(FLUX if self._is_flux else SD):
            needed = "12, 17, 20 or 26" if self._is_flux else f"{len(FLUX)}, such as FLUXALL has"
            raise SettingsError(f"{begins}, {len(self.numbers)} numbers; this model needs {needed}.")


def read_presets(text: str) -> dict[str, str]:
    """The presets of a text as LoRA Block Weight keeps them: lines `NAME:numbers`; all other lines are comments."""
    lines = (line.partition(":") for line in text.splitlines() if "#" not in line)
    return {name.strip(): numbers.strip() for name, _, numbers in lines if numbers.count(",") + 1 in LISTS}


def read_weights(text: str, lora: str, presets: Mapping[str, str] = PRESETS, x: str = "1") -> BlockWeights:
    """What is behind `lbw=` in the tag of the LoRA called `lora`: numbers, or the name of one of the `presets`.

    `x` is the number that `X` stands for. Raises SettingsError, which names the LoRA, the text and what would be right.
    """
    text = text.strip()
    parts = [part.strip() for part in presets.get(text, text).split(",")]
    if len(parts) not in LISTS:
        if len(parts) > 1:
            wrong = f"which are {len(parts)} numbers"
        else:
            likely = get_close_matches(text.upper(), presets, 1)
            wrong = f"which is no preset{f' (did you mean {likely[0]}?)' if likely else ''}"
        raise SettingsError(
            f"the LoRA '{lora}' has lbw={text}, {wrong}; it must be {LENGTHS}, "
            f"or one of the presets {', '.join(presets)}."
        )
    return BlockWeights(text, tuple(_number(part, text, lora, x) for part in parts))


def _number(part: str, text: str, lora: str, x: str) -> float | str:
    if part in RANDOM:
        return part
    try:
        if part.startswith("X"):
            change = part[1:].strip()
            number = float(x) + (float(change) if change.startswith(("+", "-")) else 0.0 if not change else math.nan)
        else:
            number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        where = f" (with x={x})" if part.startswith("X") else ""
        raise SettingsError(
            f"the LoRA '{lora}' has lbw={text}, in which '{part}'{where} is no number; there may be numbers, "
            "R, U and X."
        )
    return number
