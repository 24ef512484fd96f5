"""The weights over a sampling. Patch weights are `[N, B, h, w]`, of N adapters and B images, and sum to 1 over N."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lib_loratorio.composition import resized


class WeightMaps:
    """The running mean of the weights over a sampling's calls; its size does not depend on their number.

    mean: `[N, B, h, w]`, None before the first call. latent_width: of the images, in latent pixels, which patches of
    several pixels do not tell.
    """

    def __init__(self) -> None:
        self.mean: torch.Tensor | None = None
        self.latent_width = 1
        self._by_call: list[torch.Tensor] = []

    @property
    def shares_by_call(self) -> list[list[float]]:
        """Per call, each adapter's mean weight over all patches and images; sums to 1."""
        return [shares.tolist() for shares in self._by_call]

    def add(self, weights: torch.Tensor, latent_width: int = 1) -> None:
        """Takes in one call's patch weights, brought to the size of the first call's where a sampler evaluates a
        smaller latent too. Raises ValueError for other numbers of adapters or images than before.
        """
        weights = weights.detach().float()
        if self.mean is None:
            self.mean, self.latent_width = torch.zeros_like(weights), latent_width
        if weights.shape[:2] != self.mean.shape[:2]:
            raise ValueError(f"weights are {tuple(weights.shape)}, those before were {tuple(self.mean.shape)}")
        weights = resized(weights, self.mean.shape[-2:])
        self._by_call.append(weights.mean((1, 2, 3)))  # not read out here, where a GPU would have to be waited for
        self.mean += (weights - self.mean) / len(self._by_call)

    def shares(self) -> torch.Tensor:
        """Each adapter's mean weight in each image, `[N, B]`; sums to 1. Raises ValueError before the first call."""
        if self.mean is None:
            raise ValueError("no weights have been added yet")
        return self.mean.mean((-2, -1))


def weights_of_images(
    weights: torch.Tensor, adapters: Sequence[int], competing: Sequence[int], image_of: torch.Tensor
) -> torch.Tensor:
    """A call's patch weights as those of its images, `[N, B, h, w]`, of all N adapters that compete in the sampling.

    `weights [n, C, h, w]` are of those `adapters` that took part, and of C conditional rows. Adapters that took no part
    have 0; an image has the mean over its rows.
    """
    images = int(image_of.max()) + 1
    every = weights.new_zeros(len(competing), images, *weights.shape[2:])
    rows = torch.bincount(image_of, minlength=images).to(weights).view(1, -1, 1, 1)
    every[[competing.index(adapter) for adapter in adapters]] = (
        weights.new_zeros(len(adapters), *every.shape[1:]).index_add_(1, image_of, weights) / rows
    )
    return every
