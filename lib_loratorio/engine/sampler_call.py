"""One sampler call's predictions, collected in the chunks that the host makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lib_loratorio.engine.evaluation import Evaluation
from lib_loratorio.engine.methods import Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Step
from lib_loratorio.loras.adapter import BASE

Inputs = Callable[[int, slice], Any]
"""`inputs(model, rows)`: what the model is called with for these rows of a chunk."""


class SamplerCall:
    """The predictions of one sampler call.

    Args:
        step: what is evaluated on which rows, and how it is combined.
        image_of: `[C]`, the image of each conditional row.
        run: gives the predictions of evaluations, in their order.
        same_length: whether a model's conditional and unconditional rows can share a batch.
        aside: whether another extension asks for it, beside the sampling's own calls.
    """

    def __init__(
        self,
        step: Step,
        image_of: torch.Tensor,
        run: Callable[[Sequence[Evaluation]], Sequence[torch.Tensor]],
        same_length: Callable[[int], bool] = lambda model: True,
        aside: bool = False,
    ):
        self.step, self.image_of, self.aside = step, image_of, aside
        self._run, self._same_length = run, same_length
        self._conditional: dict[int, list[torch.Tensor]] = {model: [] for model in step.plan.conditional}
        self._unconditional: dict[int, list[torch.Tensor]] = {model: [] for model in step.plan.unconditional}
        self._numbers: list[int] = []

    def evaluate(
        self, conditional: int, unconditional: int, inputs: Inputs, numbers: Sequence[int] = ()
    ) -> torch.Tensor:
        """Evaluates a chunk of `conditional` rows followed by `unconditional` ones.

        `numbers` are the conditional rows' numbers in the whole call, where chunks may come in any order.

        Returns `[conditional + unconditional, ...]`, the base's predictions where the plan has them and another
        model's elsewhere: what the host sees until the composed predictions replace it.
        """
        self._numbers += numbers or range(len(self._numbers), len(self._numbers) + conditional)
        evaluations = self._evaluations(conditional, unconditional, inputs)
        predictions = self._run([evaluation for _, evaluation, _ in evaluations])
        for (model, evaluation, c), prediction in zip(evaluations, predictions):
            if c:
                self._conditional[model].append(prediction[:c])
            if c < evaluation.rows:
                self._unconditional[model].append(prediction[c:])
        parts = []
        if conditional:
            parts.append(_stand_in(self._conditional))
        if unconditional:
            parts.append(_stand_in(self._unconditional))
        return torch.cat(parts)

    @property
    def adapters(self) -> tuple[int, ...]:
        """The adapters of the plan."""
        return tuple(model for model in sorted(self.step.plan.conditional) if model != BASE)

    @property
    def evaluated(self) -> bool:
        """Whether the host has asked for any conditional row yet."""
        return bool(self._numbers)

    def predictions(self, space: NoiseSpace) -> Predictions:
        """What has been evaluated; a part is None where the host asked for no such rows."""
        order = torch.tensor(self._numbers).argsort().to(self.image_of.device)
        conditional = {model: torch.cat(chunks)[order] for model, chunks in self._conditional.items() if chunks}
        unconditional = {model: torch.cat(chunks) for model, chunks in self._unconditional.items() if chunks}
        return Predictions(conditional or None, unconditional or None, space, self.image_of)

    def _evaluations(self, conditional: int, unconditional: int, inputs: Inputs) -> list[tuple[int, Evaluation, int]]:
        """Each model's evaluation of the chunk, and how many of its rows are conditional; the base's first."""
        plan, found = self.step.plan, []
        for model in sorted({*plan.conditional, *plan.unconditional}):
            c = conditional if model in plan.conditional else 0
            u = unconditional if model in plan.unconditional else 0
            spans = [(conditional - c, conditional + u, c)]
            if c and u and not self._same_length(model):
                spans = [(0, c, c), (c, c + u, 0)]
            adapters = (*self.step.global_adapters, *(() if model == BASE else (model,)))
            for start, end, of_condition in spans:
                if end > start:
                    evaluation = Evaluation(adapters, end - start, inputs(model, slice(start, end)))
                    found.append((model, evaluation, of_condition))
        return found


def _stand_in(chunks: Mapping[int, list[torch.Tensor]]) -> torch.Tensor:
    return chunks[min(chunks)][-1]
