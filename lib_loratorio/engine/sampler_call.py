"""One sampler call's predictions, collected in the chunks that the host makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from lib_loratorio.deltas.bank import RowsError
from lib_loratorio.engine.draws import Draws
from lib_loratorio.engine.evaluation import Evaluation
from lib_loratorio.engine.methods import Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Step
from lib_loratorio.loras.adapter import BASE, MERGED

UNCONDITIONAL = -1
"""In place of its number, for a row of the negative prompt."""

Rows = slice | list[int]

Inputs = Callable[[int, Rows], Any]
"""`inputs(model, rows)`: what the model is called with for these rows of a chunk."""


class Runner(Protocol):
    """Runs evaluations.

    apart: whether each model has calls of its own, of all rows of a chunk, as the host's own calls have them.
    """

    apart: bool

    def predict(self, evaluations: Sequence[Evaluation]) -> Sequence[torch.Tensor]:
        """The predictions, in their order."""

    def verify(self, evaluations: Sequence[Evaluation], predictions: Sequence[torch.Tensor]) -> None:
        """Compares predictions with the host's own, where that is wanted."""

    def go_apart(self) -> None:
        """Something else makes batches of its own of what several models share: from here on each has its own."""


class Chunk(NamedTuple):
    """Rows that the host asks for at a time, in its order.

    numbers: of each row its number among the conditional ones of the whole call, or `UNCONDITIONAL`.
    draws: the random numbers that every model has for it.
    """

    numbers: tuple[int, ...]
    inputs: Inputs
    draws: Draws

    def places(self, unconditional: bool) -> list[int]:
        return [place for place, number in enumerate(self.numbers) if (number == UNCONDITIONAL) == unconditional]


class _Part(NamedTuple):
    """One model's evaluation of some rows of a chunk."""

    model: int
    places: list[int]
    evaluation: Evaluation


class SamplerCall:
    """The predictions of one sampler call.

    Args:
        step: what is evaluated on which rows, and how it is combined.
        image_of: `[C]`, the image of each conditional row.
        runner: runs evaluations.
        same_length: whether a model's conditional and unconditional rows can share a batch.
        aside: whether another extension asks for it, beside the sampling's own calls.

    Where models are evaluated apart, the host's own call is one model's evaluation. The others' follow when the host
    has asked for all rows, each model's in the host's sequence of chunks: what counts a model's calls to know the
    conditional one from the unconditional one counts right. The base's are the last.
    """

    def __init__(
        self,
        step: Step,
        image_of: torch.Tensor,
        runner: Runner,
        same_length: Callable[[int], bool] = lambda model: True,
        aside: bool = False,
    ):
        self.step, self.image_of, self.aside = step, image_of, aside
        self._runner, self._same_length = runner, same_length
        self._conditional: dict[int, list[torch.Tensor]] = {model: [] for model in step.plan.conditional}
        self._unconditional: dict[int, list[torch.Tensor]] = {model: [] for model in step.plan.unconditional}
        models = {*step.plan.conditional, *step.plan.unconditional}
        self._models = sorted(models, key=lambda model: (model != BASE, model))
        self._numbers: list[int] = []
        self._waiting: list[Chunk] = []  # for the models that do not have them yet
        self._unverified: list[tuple[_Part, torch.Tensor]] = []

    def evaluate(self, numbers: Sequence[int], inputs: Inputs) -> torch.Tensor:
        """Evaluates a chunk; `numbers` are its rows', as in `Chunk`, where chunks may come in any order.

        Returns `[rows, ...]`, one model's predictions or another's: what the host sees until the composed predictions
        replace it.
        """
        chunk = Chunk(tuple(numbers), inputs, Draws(self.image_of.device))
        stand_in = self._evaluated(chunk)
        self._numbers += [number for number in numbers if number != UNCONDITIONAL]
        return stand_in

    def complete(self) -> None:
        """The host has asked for all rows: evaluates what the models do not have yet."""
        chunks, self._waiting = self._waiting, []
        if not chunks:
            return
        self._verify_sequence()
        for model in self._models[-2::-1]:
            for chunk in chunks:
                self._apart(model, chunk)
            self._verify_sequence()

    @property
    def adapters(self) -> tuple[int, ...]:
        """The adapters of the plan, those included that are evaluated together only."""
        return tuple(model for model in sorted({*self.step.plan.conditional, *self.step.together}) if model >= 0)

    @property
    def evaluated(self) -> bool:
        """Whether the host has asked for any conditional row yet."""
        return bool(self._numbers)

    def predictions(self, space: NoiseSpace) -> Predictions:
        """What has been evaluated; a part is None where the host asked for no such rows."""
        self.complete()
        order = torch.tensor(self._numbers, dtype=torch.long).argsort().to(self.image_of.device)
        conditional = {model: torch.cat(chunks)[order] for model, chunks in self._conditional.items() if chunks}
        unconditional = {model: torch.cat(chunks) for model, chunks in self._unconditional.items() if chunks}
        return Predictions(conditional or None, unconditional or None, space, self.image_of)

    # One chunk

    def _evaluated(self, chunk: Chunk) -> torch.Tensor:
        if not self._runner.apart:
            try:
                return self._together(chunk)
            except RowsError:
                self._runner.go_apart()
        self._waiting.append(chunk)
        return self._apart(self._models[-1], chunk)

    def _together(self, chunk: Chunk) -> torch.Tensor:
        plan = self.step.plan
        conditional, unconditional = chunk.places(False), chunk.places(True)
        parts = []
        for model in self._models:
            c = conditional if model in plan.conditional else []
            u = unconditional if model in plan.unconditional else []
            parts += self._parts(model, c, u, chunk)
        evaluations = [part.evaluation for part in parts]
        predictions = self._runner.predict(evaluations)
        self._runner.verify(evaluations, predictions)
        first_of = {False: min(plan.conditional), True: min(plan.unconditional, default=None)}
        stand_in = None
        for part, prediction in zip(parts, predictions):
            self._keep(part, prediction, chunk)
            shown = [place for place in part.places if part.model == first_of[chunk.numbers[place] == UNCONDITIONAL]]
            stand_in = prediction.new_empty(len(chunk.numbers), *prediction.shape[1:]) if stand_in is None else stand_in
            if shown:
                stand_in[shown] = prediction[[part.places.index(place) for place in shown]]
        return stand_in

    def _apart(self, model: int, chunk: Chunk) -> torch.Tensor:
        """All rows of a chunk by one model, also those that the plan has no use for."""
        stand_in = None
        for part in self._parts(model, chunk.places(False), chunk.places(True), chunk):
            (prediction,) = self._runner.predict([part.evaluation])
            self._unverified.append((part, prediction))
            self._keep(part, prediction, chunk)
            if len(part.places) == len(chunk.numbers):
                return prediction
            stand_in = prediction.new_empty(len(chunk.numbers), *prediction.shape[1:]) if stand_in is None else stand_in
            stand_in[part.places] = prediction
        return stand_in

    def _verify_sequence(self) -> None:
        """What a model was asked for is asked for again in the same sequence, for the sake of what counts calls."""
        parts, self._unverified = self._unverified, []
        if parts:
            evaluated, predictions = zip(*parts)
            self._runner.verify([part.evaluation for part in evaluated], predictions)

    def _parts(self, model: int, conditional: list[int], unconditional: list[int], chunk: Chunk) -> list[_Part]:
        """A model's evaluations of these rows of a chunk."""
        spans = [sorted([*conditional, *unconditional])]
        if conditional and unconditional and not self._same_length(model):
            spans = [conditional, unconditional]
        factors = self.step.factors
        own = {BASE: (), MERGED: self.step.together}.get(model, (model,))
        adapters = (*self.step.global_adapters, *own)
        return [
            _Part(
                model,
                places,
                Evaluation(adapters, len(places), chunk.inputs(model, _rows(places)), chunk.draws, factors),
            )
            for places in spans
            if places
        ]

    def _keep(self, part: _Part, prediction: torch.Tensor, chunk: Chunk) -> None:
        for kept, unconditional in ((self._conditional, False), (self._unconditional, True)):
            rows = [
                row for row, place in enumerate(part.places) if (chunk.numbers[place] == UNCONDITIONAL) == unconditional
            ]
            if rows and part.model in kept:
                kept[part.model].append(prediction[_rows(rows)])


def _rows(places: list[int]) -> Rows:
    """Of rows that follow each other a slice, which shares their memory."""
    first = places[0]
    return slice(first, first + len(places)) if places == list(range(first, first + len(places))) else places
