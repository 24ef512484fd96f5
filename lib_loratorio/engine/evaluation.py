"""Runs a step's plan: puts the rows of several models into as few model calls as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from lib_loratorio.deltas.bank import RESIDENT, AdapterBank
from lib_loratorio.deltas.factors import NONE, Factors
from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.deltas.row_layout import Block, Layout
from lib_loratorio.engine.draws import Draws
from lib_loratorio.engine.trees import concatenate, shapes

AT_A_TIME = RESIDENT // 2
"""Evaluations a call while factors wait in host memory: with the next call's on their way, as many adapters are on the
device as may stay there.
"""


class Evaluation(NamedTuple):
    """One model's rows of a call: the base with these adapters, and the call's inputs for these rows.

    `inputs` is a tree of tuples, lists and dicts; every tensor in it has the rows in dim 0. `draws` are the random
    numbers that it has in common with those that share a call with it. `factors` multiply the adapters' strengths, and
    are the same for all evaluations of a step.
    """

    adapters: tuple[int, ...]
    rows: int
    inputs: Any
    draws: Draws | None = None
    factors: Factors = NONE

    def repeating(self) -> AbstractContextManager[None]:
        """For the time of its call."""
        return nullcontext() if self.draws is None else self.draws.repeated()


def _adapters_of(evaluations: Sequence[Evaluation]) -> frozenset[int]:
    return frozenset(adapter for evaluation in evaluations for adapter in evaluation.adapters)


class Evaluator:
    """Calls the model with the rows of several evaluations in one batch, split on need.

    Args:
        model: takes the inputs of an evaluation (a tree with more rows) and returns predictions `[rows, ...]`.
        bank: adds the adapters' deltas to their rows.
        limit: evaluations that may share one call; 0 is all, or `AT_A_TIME` where they have more adapters than may stay
            on the device.
        fits: whether a call with this many rows fits into memory, by the host's estimate.

    In a call the base's rows come first; of several calls its call is the last, so that whatever else watches the model
    finds the base's there. When memory runs out, the number of evaluations a call is halved down to one, and stays so
    for later steps; if one alone does not fit, the model's own error is raised.
    """

    def __init__(
        self,
        model: Callable[[Any], torch.Tensor],
        bank: AdapterBank,
        limit: int = 0,
        fits: Callable[[int], bool] = lambda rows: True,
    ):
        self.model, self.bank, self.limit, self.fits = model, bank, limit, fits
        self._adapters: frozenset[int] = frozenset()  # of the evaluations at hand

    def __call__(self, evaluations: Sequence[Evaluation]) -> list[torch.Tensor]:
        """The predictions of each evaluation, in their order."""
        self._adapters = _adapters_of(evaluations)
        results: list[torch.Tensor | None] = [None] * len(evaluations)
        by_shape: dict[tuple, list[int]] = {}
        for number, evaluation in enumerate(evaluations):
            by_shape.setdefault(shapes(evaluation.inputs), []).append(number)
        for numbers in by_shape.values():
            for number, prediction in zip(numbers, self._batched([evaluations[number] for number in numbers])):
                results[number] = prediction
        return results

    @property
    def _factors_wait(self) -> bool:
        """Whether there are more adapters than may stay on the device for all calls."""
        return len(self._adapters) > RESIDENT

    def _batched(self, evaluations: Sequence[Evaluation]) -> list[torch.Tensor]:
        done: list[torch.Tensor] = []  # the last evaluations' predictions
        while len(done) < len(evaluations):
            waiting = evaluations[: len(evaluations) - len(done)]
            group = self._next(waiting)
            try:
                done[:0] = self._call(group)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(group) == 1:
                    raise
            else:
                if self._factors_wait:
                    coming = self._next(waiting[: -len(group)])
                    # A model of many adapters has them brought layer by layer, in its own call.
                    if all(len(evaluation.adapters) <= RESIDENT for evaluation in coming):
                        self.bank.prefetch(_adapters_of(coming))
                continue
            # Outside the except block, so that the failed call's tensors are free before the next try.
            self.limit = len(group) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done

    def _next(self, waiting: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """Those that share the next call."""
        limit = self.limit or (AT_A_TIME if self._factors_wait else 0)
        group = waiting[-limit:] if limit else waiting
        while len(group) > 1 and not self.fits(sum(evaluation.rows for evaluation in group)):
            group = group[len(group) // 2 :]
        return group

    def _call(self, group: Sequence[Evaluation]) -> Sequence[torch.Tensor]:
        layout = Layout(tuple(Block(evaluation.adapters, evaluation.rows) for evaluation in group))
        staying = () if self._factors_wait else self._adapters
        with group[0].repeating(), self.bank.rows(layout, staying, group[0].factors):
            predictions = self.model(concatenate([evaluation.inputs for evaluation in group]))
        return predictions.split([evaluation.rows for evaluation in group])
