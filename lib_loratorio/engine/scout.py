"""A pool of adapters beside the prompt's: which of them are evaluated in a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lib_loratorio.settings import Settings

REGIONS = 8
"""The image is divided into so many regions along each edge, a small one into regions of two patches."""


class Scout:
    """Evaluates all of a pool at first and in every so many steps; between these only those that won enough patches.

    An adapter wins the patches in which it weighs most. Its share is taken over the calls since the scouting began, in
    the region of the image where it has most of them: a figure matters that has a small place of its own. It is
    measured by the strongest adapter's, so that pools of any size can be told apart; where none stands out, all stay.
    In a batch an adapter stays for all images where it stays for one. The prompt's own adapters always stay.

    Args:
        settings: in other pool modes than "scout", or with a method that does not weigh by patch, all of the pool are
            evaluated in every step.
        pool: the pool's adapters among all.

    `history` holds `(step, adapters)` for each change of the adapters that are evaluated.
    """

    def __init__(self, settings: Settings, pool: Sequence[int]):
        self.settings, self.pool = settings, frozenset(pool)
        self.history: list[tuple[int, tuple[int, ...]]] = []
        self._won: dict[int, torch.Tensor] = {}  # per image and region, summed over the calls of a scouting
        self._shares: dict[int, float] | None = None  # once the scouting is over

    def chosen(self, present: Sequence[int], fraction: float, step: int) -> tuple[int, ...]:
        """The adapters to evaluate of those present, at this fraction of the sampling and in this step."""
        chosen = tuple(present) if self._scouts(fraction, step) else self._staying(present)
        if not self.history or self.history[-1][1] != chosen:
            self.history.append((step, chosen))
        return chosen

    @property
    def is_scouting(self) -> bool:
        """Whether the latest step evaluates all of a pool to find out who stays."""
        scouts = self.settings.pool_mode == "scout" and self.settings.traits.weighs
        return bool(self.pool) and scouts and self._shares is None

    def _scouts(self, fraction: float, step: int) -> bool:
        settings = self.settings
        if not self.pool or settings.pool_mode != "scout" or not settings.traits.weighs:
            return True
        if self._won and fraction >= settings.scout and (not settings.scout_every or step % settings.scout_every):
            return False
        if self._shares is not None:
            self._won, self._shares = {}, None
        return True

    def _staying(self, present: Sequence[int]) -> tuple[int, ...]:
        if self._shares is None:
            won = {number: total.amax().item() for number, total in self._won.items()}
            most = max(won.values())
            self._shares = {number: share / most for number, share in won.items()}
        shares = self._shares
        staying = tuple(
            number
            for number in present
            if number not in self.pool or shares.get(number, 0.0) >= self.settings.scout_share
        )
        return staying or tuple(sorted(present, key=lambda number: -shares.get(number, 0.0))[:1])

    def told(self, names: Sequence[str]) -> str:
        """The history for people, with the adapters' names."""
        listed = (
            f"step {step + 1}: {', '.join(names[number] for number in adapters) or 'none'}"
            for step, adapters in self.history
        )
        return "; ".join(listed)

    def learn(self, adapters: Sequence[int], weights: torch.Tensor | None) -> None:
        """Takes in a composed call's patch weights `[n, C, h, w]` of these adapters."""
        if weights is None or self._shares is not None:
            return
        winners = F.one_hot(weights.argmax(0), len(adapters)).movedim(-1, 0).float()
        # Some samplers evaluate a smaller latent too within a step, which then counts in the first call's regions.
        first = next(iter(self._won.values()), None)
        if first is None:
            regions = [min(REGIONS, max(edge // 2, 1)) for edge in weights.shape[-2:]]
        else:
            regions = first.shape[-2:]
        for number, won in zip(adapters, F.adaptive_avg_pool2d(winners, regions)):
            self._won[number] = self._won.get(number, 0) + won
