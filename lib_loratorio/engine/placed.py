"""A method whose adapters have places: regions, shares, and global adapters of some places only.

A global adapter `g` with a region is no part of the other evaluations. It is evaluated by itself, and its own
difference from the base is added, where it may be, to what everything else comes to:

    ê_i = e_i + sum_g s_g M_g (e_g - e_0)        for the base, i = 0, and for each adapter that competes

and everything goes on with `ê` in place of `e`. Its share `s_g` is 1 where its tag names none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lib_loratorio.engine.methods import Composed, Method, Plan, Predictions
from lib_loratorio.engine.places import Places, leave_places, region_mask
from lib_loratorio.loras.adapter import BASE, Adapter
from lib_loratorio.loras.region import WHOLE, Box


@dataclass(frozen=True)
class Ground:
    """What places depend on besides the adapters' tags.

    window: the part of the picture that is sampled. feather: see `region_mask`. patch_size: of the patch weights.
    """

    window: Box = WHOLE
    feather: float = 0.0
    patch_size: int = 1


class Placed:
    """The method, with places.

    Args:
        method: the method.
        adapters: all of the sampling.
        gated: the numbers of the global ones with a region that take part.
        ground: what else places depend on.
    """

    def __init__(self, method: Method, adapters: Sequence[Adapter], gated: Sequence[int], ground: Ground):
        self.method, self.adapters, self.gated, self.ground = method, adapters, tuple(gated), ground

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        """The method's, with the base where anything may be left to it, and with the gated ones."""
        plan = self.method.plan(adapters, step)
        more = self.gated
        if more or leave_places(*self._shares_and_regions([model for model in plan.conditional if model != BASE])):
            more = BASE, *more
        return plan._replace(
            conditional=tuple(sorted({*plan.conditional, *more})),
            unconditional=tuple(sorted({*plan.unconditional, *more})) if plan.unconditional else (),
        )

    def combine(self, predictions: Predictions, weights: torch.Tensor | None = None) -> Composed:
        conditional, unconditional = (
            of and self._with_gated(of) for of in (predictions.conditional, predictions.unconditional)
        )
        of = conditional or unconditional
        competing = [model for model in sorted(of) if model != BASE]
        places = self._places(competing, next(iter(of.values()))) if competing else None
        return self.method.combine(
            predictions._replace(conditional=conditional, unconditional=unconditional, places=places), weights
        )

    def _places(self, numbers: Sequence[int], like: torch.Tensor) -> Places:
        shares, regions = self._shares_and_regions(numbers)
        masks = [self._mask(region, like) for region in regions]
        return Places.of(masks, shares, self.ground.patch_size)

    def _shares_and_regions(self, numbers: Sequence[int]) -> tuple[list, list]:
        tags = [self.adapters[number].tag for number in numbers]
        return [tag.share for tag in tags], [tag.region for tag in tags]

    def _mask(self, region, like: torch.Tensor) -> torch.Tensor:
        size = tuple(like.shape[-2:])
        dtype = torch.promote_types(like.dtype, torch.float32)
        return region_mask(region, size, self.ground.window, self.ground.feather).to(like.device, dtype)

    def _with_gated(self, of: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """`ê` of all but the gated ones, whose own predictions are used up."""
        gated = [number for number in self.gated if number in of]
        others = {model: prediction for model, prediction in of.items() if model not in self.gated}
        if not gated:
            return others
        base = of[BASE]
        added = 0
        for number in gated:
            tag = self.adapters[number].tag
            gate = self._mask(tag.region, base) * (1.0 if tag.share is None else tag.share)
            added = added + gate * (of[number].to(gate.dtype) - base.to(gate.dtype))
        return {model: (prediction + added).to(prediction.dtype) for model, prediction in others.items()}
