"""What the adapters' strengths are multiplied by for a while, without any of their factors being stacked anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


class Factors:
    """By adapter what its strength is multiplied by; 1 for those that are not named."""

    def __init__(self, by_adapter: Mapping[int, float] | None = None):
        self.by_adapter = {adapter: factor for adapter, factor in (by_adapter or {}).items() if factor != 1}
        self._columns: dict[tuple, torch.Tensor] = {}

    def __getitem__(self, adapter: int) -> float:
        return self.by_adapter.get(adapter, 1.0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factors) and self.by_adapter == other.by_adapter

    __hash__ = None

    def scaled(self, down: torch.Tensor, adapters: Sequence[int]) -> torch.Tensor:
        """What takes these adapters' inputs to their ranks, `[adapters, ranks, inputs]`, each times its factor."""
        if self.by_adapter.keys().isdisjoint(adapters):
            return down
        key = tuple(adapters), down.device, down.dtype
        if key not in self._columns:
            self._columns[key] = down.new_tensor([self[adapter] for adapter in adapters])[:, None, None]
        return down * self._columns[key]


NONE = Factors()
