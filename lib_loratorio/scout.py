"""A pool of adapters beside the prompt's: which of them are evaluated in a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib_loratorio.settings import Settings


class Scout:
    """Evaluates all of a pool at first and in every so many steps, and between these only those that kept a share of the weight.

    A share is the mean over all places and over the calls since the scouting began; in a batch an adapter stays for all
    pictures where it keeps its share in one. The prompt's own adapters always stay, and the best one where none does.

    Args:
        settings: with the pool mode "exact", or another method than LoRAtorio, all of the pool are evaluated in every step.
        pool: the pool's adapters among all.

    `history` holds `(step, adapters)` for each change of the adapters that are evaluated.
    """

    def __init__(self, settings: Settings, pool: Sequence[int]):
        self.settings, self.pool = settings, frozenset(pool)
        self.history: list[tuple[int, tuple[int, ...]]] = []
        self._shares: dict[int, torch.Tensor] = {}  # summed over the calls of a scouting
        self._calls = 0
        self._kept: frozenset[int] | None = None

    def chosen(self, present: Sequence[int], fraction: float, step: int) -> tuple[int, ...]:
        """The adapters to evaluate of those present, at this fraction of the sampling and in this step."""
        chosen = tuple(present) if self._scouts(fraction, step) else self._staying(present)
        if not self.history or self.history[-1][1] != chosen:
            self.history.append((step, chosen))
        return chosen

    def _scouts(self, fraction: float, step: int) -> bool:
        settings = self.settings
        if not self.pool or settings.pool_mode == "exact" or settings.method != "loratorio":
            return True
        if self._calls and fraction >= settings.scout and (not settings.scout_every or step % settings.scout_every):
            return False
        if self._kept is not None:
            self._shares, self._calls, self._kept = {}, 0, None
        return True

    def _staying(self, present: Sequence[int]) -> tuple[int, ...]:
        if self._kept is None:
            means = {number: (total / self._calls).amax().item() for number, total in self._shares.items()}
            self._kept = frozenset(number for number, mean in means.items() if mean >= self.settings.scout_share)
            if self.pool.issuperset(present) and not self._kept.intersection(present):
                self._kept = frozenset({max(means, key=means.get)})
        return tuple(number for number in present if number not in self.pool or number in self._kept)

    def told(self, names: Sequence[str]) -> str:
        """The history for people, with the adapters' names."""
        listed = (f"step {step + 1}: {', '.join(names[number] for number in adapters) or 'none'}" for step, adapters in self.history)
        return "; ".join(listed)

    def learn(self, adapters: Sequence[int], weights: torch.Tensor | None) -> None:
        """Takes in a composed call's patch weights `[n, C, h, w]` of these adapters."""
        if weights is None or self._kept is not None:
            return
        self._calls += 1
        for number, shares in zip(adapters, weights.float().mean((-2, -1))):
            self._shares[number] = self._shares.get(number, 0) + shares
