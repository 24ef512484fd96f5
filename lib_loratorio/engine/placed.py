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
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.places import Places, region_mask
from lib_loratorio.loras.adapter import BASE, Adapter
from lib_loratorio.loras.region import WHOLE, Box, Region


@dataclass(frozen=True)
class Ground:
    """What places depend on besides the adapters' tags.

    window: the part of the picture that is sampled. feather: see `region_mask`. patch_size: of the patch weights.
    painted: the places that are painted.
    """

    window: Box = WHOLE
    feather: float = 0.0
    patch_size: int = 1
    painted: Painted | None = None


@dataclass(frozen=True)
class Place:
    """Where an adapter may be: in its region, and where its colour is painted. None for everywhere.

    share: see `places`. colour: its number among the colours.
    """

    region: Region | None = None
    share: float | None = None
    colour: int | None = None

    @property
    def is_everywhere(self) -> bool:
        return self.region is None and self.share is None and self.colour is None

    def mask(self, size: tuple[int, int], ground: Ground) -> torch.Tensor:
        """`M [H,W]` at latent pixels."""
        mask = region_mask(self.region, size, ground.window, ground.feather)
        if self.colour is None:
            return mask
        return mask * ground.painted.mask(self.colour, size, ground.window, ground.feather)


def places_of(adapters: Sequence[Adapter], painted: Painted | None = None) -> list[Place]:
    """The adapters' places; colours belong to those that compete, in their order."""
    with_colour = painted.painted if painted else frozenset()
    found, colour = [], 0
    for adapter in adapters:
        own = colour if adapter.competes and colour in with_colour else None
        found.append(Place(adapter.tag.region, adapter.tag.share, own))
        colour += adapter.competes
    return found


class Placed:
    """The method, with places.

    Args:
        method: the method.
        places: of all adapters of the sampling.
        gated: the numbers of the global ones with a region that take part.
        ground: what else places depend on.
    """

    def __init__(self, method: Method, places: Sequence[Place], gated: Sequence[int], ground: Ground):
        self.method, self.places, self.gated, self.ground = method, places, tuple(gated), ground

    def plan(self, adapters: Sequence[int], step: int) -> Plan:
        """The method's, with the base where anything may be left to it, and with the gated ones."""
        plan = self.method.plan(adapters, step)
        more = self.gated
        places = [self.places[model] for model in plan.conditional if model != BASE]
        if more or all(not place.is_everywhere for place in places):
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
        places = self._at(competing, next(iter(of.values()))) if competing else None
        return self.method.combine(
            predictions._replace(conditional=conditional, unconditional=unconditional, places=places), weights
        )

    def _at(self, numbers: Sequence[int], like: torch.Tensor) -> Places:
        masks = [self._mask(self.places[number], like) for number in numbers]
        return Places.of(masks, [self.places[number].share for number in numbers], self.ground.patch_size)

    def _mask(self, place: Place, like: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return place.mask(tuple(like.shape[-2:]), self.ground).to(like.device, dtype)

    def _with_gated(self, of: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """`ê` of all but the gated ones, whose own predictions are used up."""
        gated = [number for number in self.gated if number in of]
        others = {model: prediction for model, prediction in of.items() if model not in self.gated}
        if not gated:
            return others
        base = of[BASE]
        added = 0
        for number in gated:
            place = self.places[number]
            gate = self._mask(place, base) * (1.0 if place.share is None else place.share)
            added = added + gate * (of[number].to(gate.dtype) - base.to(gate.dtype))
        return {model: (prediction + added).to(prediction.dtype) for model, prediction in others.items()}
