"""One sampler call: its plan evaluated in the chunks the host makes of it, then combined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lib_loratorio.engine.evaluation import Evaluation, Evaluator
from lib_loratorio.engine.methods import BASE, Composed, Method, Plan, Predictions

Inputs = Callable[[int, slice], Any]
"""`inputs(model, rows)`: what the model is called with for these rows of a chunk."""

Verify = Callable[[Sequence[Evaluation], Sequence[torch.Tensor]], None]


class SamplerCall:
    """Collects the predictions of one sampler call.

    Args:
        method, plan: what is evaluated on which rows.
        evaluator: runs the model.
        picture_of: `[C]`, the picture of each conditional row.
        everywhere: adapters that belong to the base and to every other model.
        same_length: whether a model's conditional and unconditional rows can share a batch.
        verify: called with every evaluated request and its prediction.
    """

    def __init__(
        self,
        method: Method,
        plan: Plan,
        evaluator: Evaluator,
        picture_of: torch.Tensor,
        same_length: Callable[[int], bool] = lambda model: True,
        verify: Verify | None = None,
        everywhere: Sequence[int] = (),
    ):
        self.method, self.plan, self.evaluator, self.picture_of, self.everywhere = (
            method,
            plan,
            evaluator,
            picture_of,
            tuple(everywhere),
        )
        self.same_length, self.verify = same_length, verify
        self._conditional: dict[int, list[torch.Tensor]] = {model: [] for model in plan.conditional}
        self._unconditional: dict[int, list[torch.Tensor]] = {model: [] for model in plan.unconditional}
        self._places: list[int] = []

    def evaluate(
        self, conditional: int, unconditional: int, inputs: Inputs, places: Sequence[int] = ()
    ) -> torch.Tensor:
        """Evaluates a chunk of `conditional` rows followed by `unconditional` ones.

        `places` are the conditional rows' numbers in the whole call, where chunks may come in any order.

        Returns `[conditional + unconditional, ...]`, the base's predictions where the plan has them and
        another model's elsewhere: what the host sees until `combine` replaces it.
        """
        self._places += places or range(len(self._places), len(self._places) + conditional)
        requests = self._requests(conditional, unconditional, inputs)
        predictions = self.evaluator([request for _, request, _ in requests])
        if self.verify:
            self.verify([request for _, request, _ in requests], predictions)
        for (model, request, c), prediction in zip(requests, predictions):
            if c:
                self._conditional[model].append(prediction[:c])
            if c < request.rows:
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
        return tuple(model for model in sorted(self.plan.conditional) if model != BASE)

    @property
    def evaluated(self) -> bool:
        """Whether the host has asked for any conditional row yet."""
        return bool(self._places)

    def _requests(self, conditional: int, unconditional: int, inputs: Inputs) -> list[tuple[int, Evaluation, int]]:
        """The chunk's requests, each with its model and how many of its rows are conditional; the base's first."""
        requests = []
        for model in sorted({*self.plan.conditional, *self.plan.unconditional}):
            c = conditional if model in self.plan.conditional else 0
            u = unconditional if model in self.plan.unconditional else 0
            spans = [(conditional - c, conditional + u, c)]
            if c and u and not self.same_length(model):
                spans = [(0, c, c), (c, c + u, 0)]
            for start, end, of_condition in spans:
                if end > start:
                    adapters = (*self.everywhere, *(() if model == BASE else (model,)))
                    requests.append(
                        (model, Evaluation(adapters, end - start, inputs(model, slice(start, end))), of_condition)
                    )
        return requests

    def combine(
        self,
        noise_offset: torch.Tensor | None,
        noise_scale: float = -1.0,
        noise_unit: float | torch.Tensor = 1.0,
        weights: torch.Tensor | None = None,
    ) -> Composed:
        """The composed predictions; a part is None where the host asked for no such rows.

        `noise_offset`, `noise_scale` and `noise_unit` say how predictions become noise, see `Predictions`; `weights`
        are those of another call of the same step, to be used instead of this one's own.
        """
        order = torch.tensor(self._places).argsort().to(self.picture_of.device)
        conditional = {model: torch.cat(chunks)[order] for model, chunks in self._conditional.items() if chunks}
        unconditional = {model: torch.cat(chunks) for model, chunks in self._unconditional.items() if chunks}
        predictions = Predictions(
            conditional or None, unconditional or None, noise_offset, self.picture_of, noise_scale, noise_unit
        )
        return self.method.combine(predictions, weights)


def larger_error(worst: float, prediction: torch.Tensor, reference: torch.Tensor) -> float:
    """The larger one of `worst` and the prediction's largest error, relative to the reference's largest value."""
    error = ((prediction - reference).abs().max() / reference.abs().max()).item()
    return worst if error <= worst else error  # so that a prediction that is no number shows


def _stand_in(chunks: dict[int, list[torch.Tensor]]) -> torch.Tensor:
    return chunks[min(chunks)][-1]
