"""Deltas of a layer's full shape, by the host's own rule for the changed weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lib_loratorio.deltas.layers import add_to, convolve, is_linear, weight_shape
from lib_loratorio.deltas.memory import MemoryBudget, is_out_of_memory


class DeltaError(RuntimeError):
    """A layer's delta that cannot be computed, for a reason that a user can do something about, which it says."""


class PartialDeltaError(RuntimeError):
    """A rule that fits only one of a layer's two parameters, for a host that goes on with that one.

    rest: the delta without the other, as `(weight delta, bias delta or None)`.
    """

    def __init__(self, message: str, rest: tuple[torch.Tensor, torch.Tensor | None]):
        super().__init__(message)
        self.rest = rest


@contextmanager
def misfit_left_out() -> Iterator[None]:
    """For the time of the block, what a host does with a rule that does not fit: it goes on without. Raises the
    RuntimeError that says that memory has run out.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise


@dataclass(frozen=True)
class Dense:
    """A delta of the layer's full shape. `compute()` gives `(weight delta, bias delta or None)`.

    `at(factor)` is the same at a strength multiplied by a factor, for kinds that are not in proportion to it; None for
    those that are.

    They read the layer's own weight, so they are called only while that is the base model's. They raise RuntimeError
    where the host's rule does not fit, and PartialDeltaError where a part of it fits.
    """

    compute: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
    at: Callable[[float], tuple[torch.Tensor, torch.Tensor | None]] | None = None


class DenseDelta:
    """One adapter's dense delta of one layer, cached where the budget allows it.

    is_finite, has_effect: whether its values are numbers, and not all zero; known once it was computed. left_out: why
    the delta lacks the change of one of the layer's parameters, or None.
    """

    def __init__(self, layer: nn.Module, delta: Dense, budget: MemoryBudget):
        self.layer, self.delta, self.budget = layer, delta, budget
        self.cached: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.is_finite = self.has_effect = True
        self.left_out: PartialDeltaError | None = None

    def compute(self, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The delta in the layer's shape. Raises RuntimeError where the host's rule does not fit the layer."""
        try:
            weight, bias = self.delta.compute() if factor == 1 else self.delta.at(factor)
        except PartialDeltaError as error:
            self.left_out = error
            weight, bias = error.rest
        except RuntimeError as error:
            if "not implemented for 'Half'" in str(error):
                raise DeltaError(
                    "a half-precision file of this kind cannot be computed on a CPU; use a float32 file"
                ) from error
            raise
        return weight.expand(weight_shape(self.layer)), bias

    def compute_once(self) -> None:
        """Computes the delta, and caches it within the budget: a rule that fails does so before the sampling."""
        weight, bias = self.compute()
        parts = [weight] if bias is None else [weight, bias]
        self.is_finite = all(torch.isfinite(part).all() for part in parts)
        self.has_effect = any(part.any() for part in parts)
        if self.budget.take(weight.numel() * weight.element_size()):
            self.cached = weight, bias

    def on(self, output: torch.Tensor, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The delta where and as an output is; at another strength for kinds that are not in proportion to it."""
        anew = factor != 1 and self.delta.at is not None
        weight, bias = self.compute(factor) if anew else self.cached or self.compute()
        norm = isinstance(self.layer, (nn.GroupNorm, nn.LayerNorm))
        dtype = torch.promote_types(output.dtype, torch.float32) if norm else output.dtype
        placed = weight.to(output.device, dtype), None if bias is None else bias.to(output.device, dtype)
        if self.cached and not anew:
            self.cached = placed
        return placed

    def add(self, x: torch.Tensor, output: torch.Tensor, factor: float = 1.0) -> None:
        weight, bias = self.on(output, factor)
        layer, x = self.layer, x.to(weight.dtype)
        if is_linear(layer):
            delta = F.linear(x, weight, bias)
        elif isinstance(layer, nn.Conv2d):
            delta = convolve(layer, x, weight, bias, layer.groups)
        elif isinstance(layer, nn.GroupNorm):
            delta = F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        else:
            delta = F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        add_to(output, delta if factor == 1 or self.delta.at else delta * factor)
