"""Runs a step's plan: puts the rows of several models into as few model calls as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lib_loratorio.deltas.bank import RESIDENT, AdapterBank
from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.deltas.row_layout import Block, Layout

AT_A_TIME = RESIDENT // 2
"""Requests a call while adapters wait in host memory: with the next call's on their way, as many are on the device as
may stay there.
"""


class Evaluation(NamedTuple):
    """One model's rows of a call: the base with these adapters, and the call's inputs for these rows.

    `inputs` is a tree of tuples, lists and dicts; every tensor in it has the rows in dim 0.
    """

    adapters: tuple[int, ...]
    rows: int
    inputs: Any


def map_tensors(function: Callable[..., torch.Tensor], tree: Any, *others: Any) -> Any:
    """Applies `function` to the tensors of trees of equal structure; other leaves are taken from the first."""
    if isinstance(tree, torch.Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(function, *values) for values in zip(tree, *others))
    return tree


def take_rows(tree: Any, rows: slice) -> Any:
    return map_tensors(lambda tensor: tensor[rows], tree)


def _concatenate(trees: Sequence[Any]) -> Any:
    return trees[0] if len(trees) == 1 else map_tensors(lambda *tensors: torch.cat(tensors), *trees)


def _shapes(tree: Any) -> tuple:
    """What must agree for two inputs to share a batch: every tensor's shape but for the rows."""
    shapes: list = []
    map_tensors(lambda tensor: shapes.append(tuple(tensor.shape[1:])) or tensor, tree)
    return tuple(shapes)


def _adapters_of(requests: Sequence[Evaluation]) -> frozenset[int]:
    return frozenset(adapter for request in requests for adapter in request.adapters)


class Evaluator:
    """Calls the model with the requests' rows batched, split on need.

    Args:
        model: takes the inputs of a request (a tree with more rows) and returns predictions `[rows, ...]`.
        bank: adds the adapters' deltas to their rows.
        limit: requests that may share one call; 0 is all, or `AT_A_TIME` of requests with more adapters than may stay
            on the device.
        fits: whether a call with this many rows fits into memory, by the host's estimate.

    In a call the base's rows come first; of several calls its call is the last, so that whatever else
    watches the model finds the base's there. When memory runs out, the number of requests a call is halved down to one,
    and stays so for later steps; if one alone does not fit, the model's own error is raised.
    """

    def __init__(
        self,
        model: Callable[[Any], torch.Tensor],
        bank: AdapterBank,
        limit: int = 0,
        fits: Callable[[int], bool] = lambda rows: True,
    ):
        self.model, self.bank, self.limit, self.fits = model, bank, limit, fits
        self._adapters: frozenset[int] = frozenset()  # of the requests at hand

    def __call__(self, requests: Sequence[Evaluation]) -> list[torch.Tensor]:
        """The predictions of each request, in their order."""
        self._adapters = _adapters_of(requests)
        results: list[torch.Tensor | None] = [None] * len(requests)
        by_shape: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            by_shape.setdefault(_shapes(request.inputs), []).append(place)
        for places in by_shape.values():
            for place, prediction in zip(places, self._batched([requests[place] for place in places])):
                results[place] = prediction
        return results

    @property
    def _streams(self) -> bool:
        """Whether there are more adapters than may stay on the device for all calls."""
        return len(self._adapters) > RESIDENT

    def _batched(self, requests: Sequence[Evaluation]) -> list[torch.Tensor]:
        done: list[torch.Tensor] = []  # the last requests' predictions
        while len(done) < len(requests):
            waiting = requests[: len(requests) - len(done)]
            group = self._next(waiting)
            try:
                done[:0] = self._call(group)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(group) == 1:
                    raise
            else:
                if self._streams:
                    self.bank.prefetch(_adapters_of(self._next(waiting[: -len(group)])))
                continue
            # Outside the except block, so that the failed call's tensors are free before the next try.
            self.limit = len(group) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done

    def _next(self, waiting: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """Those that share the next call."""
        limit = self.limit or (AT_A_TIME if self._streams else 0)
        group = waiting[-limit:] if limit else waiting
        while len(group) > 1 and not self.fits(sum(request.rows for request in group)):
            group = group[len(group) // 2 :]
        return group

    def _call(self, group: Sequence[Evaluation]) -> Sequence[torch.Tensor]:
        layout = Layout(tuple(Block(request.adapters, request.rows) for request in group))
        with self.bank.rows(layout, () if self._streams else self._adapters):
            predictions = self.model(_concatenate([request.inputs for request in group]))
        return predictions.split([request.rows for request in group])
