"""The engine's front door: one sampling, composed.

For each sampler call a host asks `plan` what is to be evaluated, collects the rows in a `call`, and hands the
predictions that `finish` gives to its guidance. Of the host the engine needs no more than `ModelHost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.engine.evaluation import Evaluation, Evaluator
from lib_loratorio.engine.methods import Composed
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.planner import Planner, Step
from lib_loratorio.engine.sampler_call import SamplerCall
from lib_loratorio.engine.weight_maps import WeightMaps, weights_of_images
from lib_loratorio.errors import LoratorioError
from lib_loratorio.loras.adapter import Adapter, numbered_names
from lib_loratorio.loras.region import WHOLE, Box
from lib_loratorio.settings import Settings


class ModelHost(Protocol):
    """What a host does for the engine. `inputs` are the host's own: a tree of tensors with the rows in dim 0."""

    def run(self, inputs: Any) -> torch.Tensor:
        """The model's predictions `[rows, ...]` for these inputs."""

    def fits(self, rows: int) -> bool:
        """Whether a model call of so many rows fits into memory, by the host's estimate."""

    def merged(self, adapters: Sequence[Adapter]) -> AbstractContextManager[None]:
        """Within it the model has these adapters by the host's own merge; without any it is the base."""

    def same_length(self, model: int) -> bool:
        """Whether a model's conditional and unconditional rows can share a batch."""

    def goes_apart(self) -> None:
        """Told that from here on each model is evaluated in calls of its own."""


@dataclass
class Tally:
    """What samplings have done so far; several that belong to one request share one.

    calls: composed sampler calls. rows: evaluated, a row being one model on one image, conditional or not.
    worst: verification's largest error, relative to the reference's largest value.
    """

    calls: int = 0
    rows: int = 0
    worst: float = 0.0

    def compare(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        error = ((prediction - reference).abs().max() / reference.abs().max()).item()
        self.worst = self.worst if error <= self.worst else error  # so that a prediction that is no number shows

    @property
    def verified(self) -> str:
        """What verification has found, for people."""
        if not self.calls:
            return "nothing was composed, so nothing was verified"
        return f"max relative error {self.worst:.1e} over {self.calls} calls"


class Composer:
    """One sampling: plans each call, evaluates, verifies, learns, counts, keeps the maps.

    Args:
        settings: how it is composed.
        adapters: the LoRAs that take part.
        bank: their deltas, in the same order.
        host: runs the model.
        maps: takes in the weights of each call, where they are wanted.
        tally: goes on from an earlier sampling of the same request.
        window: the part of the picture that is sampled, which adapters' regions are counted from.
        painted: places that are painted for adapters.

    apart: whether each model is evaluated in calls of its own, of the host's rows as they are, because something else
    acts on the rows by their number, or makes batches of its own of them. Once set it stays.
    """

    def __init__(
        self,
        settings: Settings,
        adapters: Sequence[Adapter],
        bank: AdapterBank,
        host: ModelHost,
        maps: WeightMaps | None = None,
        tally: Tally | None = None,
        window: Box = WHOLE,
        painted: Painted | None = None,
    ):
        self.settings, self.adapters, self.bank, self.host, self.maps = settings, adapters, bank, host, maps
        self.tally = tally or Tally()
        self.apart = False
        self.planner = Planner(settings, adapters, window, painted)
        self._names = numbered_names(adapters)
        self._step = 0
        self._evaluator = Evaluator(host.run, bank, settings.adapters_per_pass, host.fits)

    @property
    def chosen(self) -> str:
        """Which adapters were evaluated from which step on, for people; empty without a pool."""
        scout = self.planner.scout
        return scout.told(self._names) if scout.pool else ""

    @property
    def painted(self) -> Painted | None:
        """The places that are painted, as the part of the picture that is sampled shows them."""
        ground = self.planner.ground
        return ground.painted and ground.painted.seen_in(ground.window)

    def plan(self, fraction: float, step: int) -> Step | None:
        """The sampler call at this fraction of the sampling, of this step; None where the host's own merge applies."""
        self._step = step
        return self.planner.step(fraction, step)

    def call(self, step: Step, image_of: torch.Tensor, aside: bool = False) -> SamplerCall:
        """A planned sampler call, for the host to collect its rows in.

        Args:
            step: what `plan` gave.
            image_of: `[C]`, the image of each conditional row.
            aside: whether another extension asks for it: the sampling then learns nothing of it.
        """
        return SamplerCall(step, image_of, self, self.host.same_length, aside)

    def finish(
        self, call: SamplerCall, space: NoiseSpace, weights: torch.Tensor | None = None, continues: bool = False
    ) -> Composed:
        """The composed predictions of a call.

        Args:
            space: how the predictions become noise.
            weights: patch weights `[N,C,h,w]` of another call of the same step, to be used in place of the call's own.
            continues: whether these are a finished call's unconditional rows, for which the host asks afterwards.
        """
        composed = call.step.method.combine(call.predictions(space), weights)
        adapters = [number for number in call.adapters if number in self.planner.competing]
        if continues:
            self.planner.learn(adapters, composed._replace(weights=None))
        elif not call.aside:
            self.tally.calls += 1
            self.planner.learn(adapters, composed)
            if self.maps is not None and composed.weights is not None:
                of_images = weights_of_images(composed.weights, adapters, self.planner.competing, call.image_of)
                self.maps.add(of_images, composed.conditional.shape[-1])
        return composed

    # The calls' Runner

    def predict(self, evaluations: Sequence[Evaluation]) -> list[torch.Tensor]:
        """Raises LoratorioError for predictions that are no numbers."""
        predictions = self._evaluator(evaluations)
        self.tally.rows += sum(evaluation.rows for evaluation in evaluations)
        self._require_numbers(evaluations, predictions)
        return predictions

    def go_apart(self) -> None:
        self.apart = True
        self.host.goes_apart()

    def _require_numbers(self, evaluations: Sequence[Evaluation], predictions: Sequence[torch.Tensor]) -> None:
        """Raises LoratorioError for predictions that are not finite: what the host makes of them is a black image."""
        finite = torch.stack([prediction.isfinite().all() for prediction in predictions]).tolist()
        wrong = [evaluation for evaluation, is_finite in zip(evaluations, finite) if not is_finite]
        if not wrong:
            return
        alone = [evaluation.adapters for evaluation in wrong if not self._is_merged(evaluation)]
        since = f"since step {self._step + 1}, "
        values = "holds values that are no numbers (NaN or infinity)"
        if () in alone:
            raise LoratorioError(
                f"{since}the model's prediction without any LoRA {values}. Try another sampler, or let the model "
                "compute in float32."
            )
        if not alone:
            raise LoratorioError(
                f"{since}the prediction with all LoRAs together {values}. Lower their strengths, or set "
                "'Each LoRA alone every' to 1."
            )
        names = dict.fromkeys(self._names[number] for adapters in alone for number in adapters)
        raise LoratorioError(
            f"{since}the prediction with {' and with '.join(f'the LoRA {name!r}' for name in names)} {values}. Lower "
            "its strength, or take it out."
        )

    def _is_merged(self, evaluation: Evaluation) -> bool:
        return sum(not self.adapters[number].is_global for number in evaluation.adapters) > 1

    def verify(self, evaluations: Sequence[Evaluation], predictions: Sequence[torch.Tensor]) -> None:
        """Compares predictions with the host's own merge of each model's adapters, and with the bare model.

        Where several act on a layer by a rule of the layer's own weight, the host's merge depends on their order, which
        the merged model does not follow: it is then left out.
        """
        if not self.settings.verify:
            return
        for evaluation, prediction in zip(evaluations, predictions):
            if self._is_merged(evaluation) and not self.bank.adds_up(evaluation.adapters):
                continue
            adapters = [self.adapters[number].times(evaluation.factors[number]) for number in evaluation.adapters]
            merged = self.host.merged(adapters)
            with evaluation.repeating(), merged:
                self.tally.compare(prediction, self.host.run(evaluation.inputs))
