"""Where adapters may be, as a factor on their patch weights: the equations, as pure tensor functions.

| symbol | meaning | shape |
|---|---|---|
| `M_i[p]` | how much of patch `p` adapter `i` may be in: 1 in its region, 0 outside, between at an edge | `[N,1,h,w]` |
| `s_i` | the fixed share of an adapter that has one | |
| `w_i[p]` | `exp(-S[i,p] / tau)` of an adapter that competes; 1 with methods that weigh nothing | `[N,B,h,w]` |
| `F_i[p]` | `s_i M_i / max(1, sum_j s_j M_j)`, over the adapters with a share; 0 for the others | |
| `C[p]` | `min(1, sum_j M_j)`, over the adapters that compete: how much of the patch they cover together | |
| `Omega_i[p]` | `F_i + (1 - sum_j F_j) C M_i w_i / sum_j M_j w_j` | `[N,B,h,w]` |
| `Omega_0[p]` | `1 - sum_i Omega_i`: what is left to the base | `[B,h,w]` |

Without regions and shares `M = 1`, `F = 0`, `C = 1`: `Omega` is the method's own, and nothing is left to the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from lib_loratorio.composition import patch_means
from lib_loratorio.loras.region import WHOLE, Box, Region

ROUNDING = 1e-9


def box_edges(low: float, high: float, places: torch.Tensor, feather: float) -> torch.Tensor:
    """Along one edge of the picture: the share of `[low, high]` in a window of the width `feather` around each place.

    In fractions of the edge. At the picture's own border the box goes on beyond it, so that only inner edges are
    feathered. Boxes that touch have shares that sum to 1.
    """

    def beyond(edge: float) -> torch.Tensor:
        return ((places - edge) / feather + 0.5).clamp(0, 1)

    after_low = torch.ones_like(places) if low <= 0 else beyond(low)
    after_high = torch.zeros_like(places) if high >= 1 else beyond(high)
    return after_low - after_high


@lru_cache(maxsize=64)  # each step of a sampling asks for the same ones
def region_mask(
    region: Region | None, size: tuple[int, int], window: Box = WHOLE, feather: float = 0.0
) -> torch.Tensor:
    """`M [H,W]` of a region at latent pixels.

    Args:
        region: None is the whole picture.
        size: `(H, W)` of the latent.
        window: the part of the picture that the latent is.
        feather: width of a soft edge, in fractions of the picture's shorter edge; it is at least a latent pixel wide.

    Several boxes are one region: where they overlap or touch, their shares are added up to 1.
    """
    height, width = size
    if region is None:
        return torch.ones(height, width, dtype=torch.float64)
    # Of the whole picture, in latent pixels.
    across, down = width / (window.right - window.left), height / (window.bottom - window.top)
    pixels = max(1.0, feather * min(across, down))
    x = window.left + (torch.arange(width, dtype=torch.float64) + 0.5) / across
    y = window.top + (torch.arange(height, dtype=torch.float64) + 0.5) / down
    mask = torch.zeros(height, width, dtype=torch.float64)
    for box in region.boxes:
        in_rows = box_edges(box.top, box.bottom, y, pixels / down)
        in_columns = box_edges(box.left, box.right, x, pixels / across)
        mask += in_rows[:, None] * in_columns
    # At low temperatures even a share that is only rounding would be enough to win a place.
    return mask.clamp(max=1).where(mask > ROUNDING, 0)


@dataclass(frozen=True)
class Places:
    """Where the adapters of one sampler call may be, at the resolution of its patch weights.

    masks: `M [N,1,h,w]`, in the adapters' order. shares: `s`, None for an adapter that competes.
    """

    masks: torch.Tensor
    shares: tuple[float | None, ...]

    @classmethod
    def of(cls, masks: Sequence[torch.Tensor], shares: Sequence[float | None], patch_size: int) -> Places:
        """From masks `[H,W]` of latent pixels: a patch has the mean of its pixels."""
        return cls(patch_means(torch.stack(list(masks))[:, None], patch_size), tuple(shares))

    def handicapped(self, similarity: torch.Tensor, temperature: float) -> torch.Tensor:
        """`S - tau ln M`, whose SoftMin has the factor `M`; infinite where an adapter does not compete."""
        return similarity - temperature * self._competing.to(similarity).log()

    def shared_out(self, weights: torch.Tensor) -> torch.Tensor:
        """`Omega [N,B,h,w]`, from the weights of those that compete, which sum to 1 where any of them may be."""
        fixed = self._fixed.to(weights)
        cover = self._competing.to(weights).sum(0).clamp(max=1)
        return fixed + (1 - fixed.sum(0)) * cover * weights.nan_to_num(0.0)

    @property
    def _competing(self) -> torch.Tensor:
        """`M` of the adapters without a share; 0 for the others."""
        return self.masks * self._by_adapter([float(share is None) for share in self.shares])

    @property
    def _fixed(self) -> torch.Tensor:
        fixed = self.masks * self._by_adapter([share or 0.0 for share in self.shares])
        return fixed / fixed.sum(0).clamp(min=1)

    def _by_adapter(self, values: Sequence[float]) -> torch.Tensor:
        return self.masks.new_tensor(values).view(-1, 1, 1, 1)
