"""Random numbers within the model, such as the tokens that token merging chooses: the same for all models of a chunk.

Else models would differ by their draws, not by their LoRAs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Draws:
    """What torch's generators were when the first evaluation of a chunk began, for the other ones to begin with.

    device: where the model computes, whose generator counts beside the CPU's.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._before = self._states()
        self._after: list[torch.Tensor] | None = None

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """In the block the numbers are drawn that the first such block draws; after it the generators are where they
        were after that one, as if the host had evaluated one model.
        """
        self._restore(self._before)
        try:
            yield
        finally:
            self._after = self._after or self._states()
            self._restore(self._after)

    def _states(self) -> list[torch.Tensor]:
        of_device = [] if self._on_device is None else [self._on_device.get_rng_state(*self._which)]
        return [torch.get_rng_state(), *of_device]

    def _restore(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            self._on_device.set_rng_state(state, *self._which)

    @property
    def _on_device(self):
        """The device's part of torch, where that has a generator."""
        part = None if self.device.type == "cpu" else getattr(torch, self.device.type, None)
        return part if hasattr(part, "get_rng_state") else None

    @property
    def _which(self) -> tuple:
        return () if self.device.type == "mps" else (self.device,)  # Apple's has one device, and does not ask which
