"""An adapter: one LoRA as one sampling has it, whichever host has loaded it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_loratorio.loras.tag import LOCAL, LoraTag

BASE = -1
"""The base model's number among the models of a sampling; adapters are numbered from 0, the prompt's in its order."""

MERGED = -2
"""The number of the model with all adapters that take part at once, as the host merges them."""


@dataclass(frozen=True)
class Adapter:
    """One LoRA at the strengths it was asked for.

    name: what its user calls it. path: its file.
    text_strength, denoiser_strength: of its layers in the text encoders, and in the UNet or transformer.
    changes_text, changes_denoiser: whether it has any effect there.
    source: the host's own object for it, which only that host's modules know.
    version: what tells contents of one file apart, such as its time of change and the rank that is used.
    tag: when, as what and with how much of its layers it takes part.
    pooled: whether it is of the pool, and so may be left out of a step.
    switched_off: the number of its layers in the UNet or transformer that its block weights leave nothing of.
    factor: what the strength that its source has in the UNet or transformer is multiplied by in a step at hand;
        `denoiser_strength` has it already.
    """

    name: str
    path: str
    text_strength: float
    denoiser_strength: float
    changes_text: bool
    changes_denoiser: bool
    source: Any
    version: Hashable = None
    tag: LoraTag = LOCAL
    pooled: bool = False
    switched_off: int = 0
    factor: float = 1.0

    @property
    def key(self) -> tuple:
        """Equal for adapters of equal effect."""
        blocks = self.tag.blocks and self.tag.blocks.numbers
        return self.name, self.path, self.version, self.text_strength, self.denoiser_strength, blocks

    def times(self, factor: float) -> Adapter:
        """With its strength in the UNet or transformer multiplied, as a ramp does it in a step."""
        if factor == 1:
            return self
        return replace(self, factor=self.factor * factor, denoiser_strength=self.denoiser_strength * factor)

    @property
    def is_global(self) -> bool:
        """Whether it belongs to the base and to every other adapter's evaluation."""
        return self.tag.is_global and not self.is_gated

    @property
    def is_gated(self) -> bool:
        """Whether it is a global one of some places only, which is added there to what all others come to."""
        return self.tag.is_global and self.tag.has_place

    @property
    def competes(self) -> bool:
        return not self.tag.is_global


def merged_below(adapters: Sequence[Adapter]) -> list[list[Adapter]]:
    """For each adapter the ones that every evaluation of it has too: the global ones, of them those before it."""
    every = [adapter for adapter in adapters if adapter.is_global]
    found, before = [], 0
    for adapter in adapters:
        found.append(every[:before] if adapter.is_global else every)
        before += adapter.is_global
    return found


def numbered_names(adapters: Sequence[Adapter]) -> list[str]:
    """The adapters' names; those of one name are numbered."""
    names = [adapter.name for adapter in adapters]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
