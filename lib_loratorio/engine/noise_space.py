"""A host's predictions in terms of the noise, which is where divergence is measured."""

from __future__ import annotations

from typing import NamedTuple

import torch


class NoiseSpace(NamedTuple):
    """How predictions become noise: up to a factor that no cosine sees, the noise is `offset + scale * prediction`.

    offset: `[C,c,H,W]`, one for each conditional row; None where the model predicts the noise itself.
    scale: of the prediction.
    unit: what makes a difference of two unconditional predictions one of noise; a number, or `[B,1,1,1]`.
    """

    offset: torch.Tensor | None = None
    scale: float = 1.0
    unit: float | torch.Tensor = 1.0

    @classmethod
    def noise(cls) -> NoiseSpace:
        """For a model that predicts the noise."""
        return cls()

    @classmethod
    def denoised(cls, x: torch.Tensor, sigma: torch.Tensor) -> NoiseSpace:
        """For denoised latents: `noise = (x - denoised) / sigma`, with `x [C,c,H,W]` and `sigma [B]`."""
        return cls(x, -1.0, -1 / sigma.view(-1, 1, 1, 1))

    @classmethod
    def velocity(cls, x: torch.Tensor, alpha: float, sigma: float) -> NoiseSpace:
        """For `v = alpha * noise - sigma * x_0` at `x = alpha * x_0 + sigma * noise`: `noise = alpha * v + sigma * x`.

        Both with `alpha^2 + sigma^2 = 1`, `x [C,c,H,W]`.
        """
        return cls(sigma * x, alpha, alpha)

    @classmethod
    def sample(cls, x: torch.Tensor, alpha: float, sigma: float) -> NoiseSpace:
        """For `x_0` itself at `x = alpha * x_0 + sigma * noise`: `noise = (x - alpha * x_0) / sigma`."""
        return cls(x, -alpha, -alpha / sigma)

    def of(self, prediction: torch.Tensor) -> torch.Tensor:
        """The noise of predictions `[..., C,c,H,W]`, up to a factor."""
        return prediction if self.offset is None else self.offset + self.scale * prediction
