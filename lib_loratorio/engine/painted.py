"""Places painted in an image, one colour for each LoRA: as numbers, and as what each may be in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from lib_loratorio.loras.region import WHOLE, Box

NOBODY = -1
"""In place of a LoRA's number, where nothing is painted."""


@dataclass(frozen=True, eq=False)
class Painted:
    """`numbers [h,w]`: of each pixel the LoRA that is painted there, among those that compete, or `NOBODY`."""

    numbers: torch.Tensor
    _masks: dict = field(default_factory=dict, repr=False)  # each step of a sampling asks for the same ones

    @property
    def painted(self) -> frozenset[int]:
        """The LoRAs that have a place here; the others may be everywhere."""
        return frozenset(self.numbers.unique().tolist()) - {NOBODY}

    def seen_in(self, window: Box) -> Painted:
        """What a part of the picture shows of it."""
        return self if window == WHOLE else Painted(self.numbers[self._part(window)])

    def mask(self, number: int, size: tuple[int, int], window: Box = WHOLE, feather: float = 0.0) -> torch.Tensor:
        """`M [H,W]` of a LoRA at latent pixels: the share of its colour in a square around each.

        `window` is the part of the picture that the latent is; `feather` the square's edge, in fractions of the
        picture's shorter edge. Beyond the picture's border it goes on as at the border.
        """
        key = number, size, window, feather
        if key not in self._masks:
            self._masks[key] = self._mask(*key)
        return self._masks[key]

    def _mask(self, number: int, size: tuple[int, int], window: Box, feather: float) -> torch.Tensor:
        there = (self.numbers == number).double()[None, None]
        height, width = self.numbers.shape
        reach = round(feather * min(height, width) / 2)
        if reach:
            there = F.pad(there, (reach,) * 4, mode="replicate")
            there = F.avg_pool2d(F.avg_pool2d(there, (1, 2 * reach + 1), 1), (2 * reach + 1, 1), 1)
        return F.adaptive_avg_pool2d(there[(..., *self._part(window))], size)[0, 0]

    def _part(self, window: Box) -> tuple[slice, slice]:
        height, width = self.numbers.shape
        top, left = int(window.top * height), int(window.left * width)
        bottom, right = max(top + 1, round(window.bottom * height)), max(left + 1, round(window.right * width))
        return slice(top, bottom), slice(left, right)
