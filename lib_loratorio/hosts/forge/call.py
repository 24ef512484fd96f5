"""One sampler call: what the host, and other extensions, ask its model for between two `on_cfg_denoiser`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lib_loratorio.engine.composer import Composer
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Step
from lib_loratorio.engine.sampler_call import UNCONDITIONAL, SamplerCall
from lib_loratorio.engine.trees import take_rows
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.forge.conditions import Own, Shown, Tags, blended, check
from lib_loratorio.hosts.forge.loader import backend
from lib_loratorio.hosts.forge.rows import HostBatch


@dataclass(frozen=True)
class Asked:
    """What the model is asked for by one call of the wrapper."""

    apply_model: Callable
    batch: HostBatch


class HostCall:
    """One composed sampler call.

    Args:
        composer, step: what it is composed by, and of.
        own: gives the conditions of the models that read the prompt by themselves, once the host has its own.

    asked: what the wrapper is being asked for.
    """

    def __init__(self, composer: Composer, step: Step, own: Callable[[], Own]):
        self.composer, self.step = composer, step
        self.asked: Asked | None = None
        self.is_composed = False
        self._own_of_step = own
        self._own_shown: Own | None = None  # of conditions in their time, where these are known
        self._shown = Shown([], [], [], None)
        self._tags = Tags()
        self._sampler_call: SamplerCall | None = None  # for the time of the host's own evaluation
        self._patch_weights: torch.Tensor | None = None

    @cached_property
    def _own(self) -> Own:
        return self._own_of_step()

    def close(self) -> None:
        self._tags.take_back()

    def calc(
        self, original: Callable, model, cond, uncond, x: torch.Tensor, timestep: torch.Tensor, model_options: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of the host's evaluation of conditional and unconditional rows: the host's own, then composed."""
        check(cond, uncond, self._own)
        self._shown = shown = Shown.of(cond, uncond, x, timestep)
        self._own_shown = shown.own(self._own)
        images = x.shape[0]
        image_of = torch.arange(images, device=x.device).repeat(len(shown.conditions))
        self._sampler_call = call = self.composer.call(self.step, image_of)
        tagged, tagged_unconditional = self._tags.hand_out(shown, x)
        try:
            _, unconditional = original(model, tagged, tagged_unconditional, x, timestep, model_options)
            if not call.evaluated:
                raise LoratorioError(
                    "another extension evaluates the model in its own way (its model_function_wrapper "
                    "calls no other). Switch it off, or LoRAtorio."
                )
            space = NoiseSpace.denoised(x.repeat(len(shown.conditions), 1, 1, 1), timestep)
            composed = self.composer.finish(call, space)
        finally:
            self._sampler_call = None
        self._patch_weights, self.is_composed = composed.weights, True
        conditional = blended(composed.conditional.split(images), [area.mult for area in shown.areas])
        return conditional, unconditional if composed.unconditional is None else composed.unconditional

    def evaluate(self, asked: Asked, tags: torch.Tensor | None) -> torch.Tensor:
        """In place of the model: the rows that are asked for, of every model of the plan.

        `tags` are the batch's rows' numbers of conditions, None where another extension has made the batch.
        """
        former, self.asked = self.asked, asked
        numbers = None if tags is None else tags[:: asked.batch.images].tolist()
        try:
            if self._sampler_call and numbers:
                return self._evaluated(self._sampler_call, numbers, numbers)
            return self._aside(numbers or [None] * len(asked.batch.flags))
        finally:
            self.asked = former

    def _evaluated(self, call: SamplerCall, numbers: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Evaluates the batch for `call`.

        `numbers` are the chunks' conditions, or `UNCONDITIONAL`; `positions` are the conditions' ones in the call.
        """
        asked, images = self.asked, self.asked.batch.images
        base = {**asked.batch.tree, "asked": asked}
        own = {model: self._with_own_text(model, base, numbers) for model in self._own}
        return call.evaluate(
            [
                UNCONDITIONAL if position == UNCONDITIONAL else position * images + row
                for position in positions
                for row in range(images)
            ],
            lambda model, rows: take_rows(own.get(model, base), rows),
        )

    def _aside(self, tags: Sequence[int | None]) -> torch.Tensor:
        """Rows that the host's own sampling step does not ask for, such as a perturbed prediction to move away from.

        They are composed with the step's weights, so that what they are compared with differs in nothing else.
        """
        batch = self.asked.batch
        numbers = [self._condition_of(chunk, tag) for chunk, tag in enumerate(tags)]
        conditions = sorted(number for number in numbers if number != UNCONDITIONAL)
        if not conditions and not self.is_composed:
            raise LoratorioError(
                "another extension evaluates the negative prompt alone, before the step's own "
                "evaluation. Switch it off, or LoRAtorio."
            )
        image_of = torch.arange(batch.images, device=batch.tree["x"].device)
        call = self.composer.call(self.step, image_of.repeat(len(conditions or self._shown.conditions)), aside=True)
        order = sorted(range(len(numbers)), key=lambda chunk: (numbers[chunk] == UNCONDITIONAL, numbers[chunk]))
        positions = [UNCONDITIONAL if numbers[chunk] == UNCONDITIONAL else order.index(chunk) for chunk in order]
        self._evaluated(call, numbers, [positions[order.index(chunk)] for chunk in range(len(numbers))])
        rows = batch.rows_of(order)
        x = batch.tree["x"][rows][: len(conditions) * batch.images]
        space = NoiseSpace.denoised(x, batch.tree["timestep"][: batch.images])
        composed = self.composer.finish(call, space, self._weights_of(conditions))
        parts = [part for part in (composed.conditional, composed.unconditional) if part is not None]
        return torch.cat(parts)[rows.argsort()]

    def _weights_of(self, conditions: Sequence[int]) -> torch.Tensor | None:
        """The step's patch weights for these conditions, without any for the negative prompt; None for other ones."""
        if self._patch_weights is None or not conditions:
            return self._patch_weights
        by_condition = self._patch_weights.split(self.asked.batch.images, 1)
        if conditions[-1] >= len(by_condition):
            return None
        return torch.cat([by_condition[number] for number in conditions], 1)

    def _condition_of(self, chunk: int, tag: int | None) -> int:
        """Which of the call's conditions the text of a chunk is, of several alike the tagged one.

        Other texts are what the batch says they are.
        """
        batch = self.asked.batch
        text = batch.tree["c"].get("c_crossattn")
        if text is not None:
            alike = self._shown.alike(text[batch.rows_of([chunk])])
            if alike:
                return tag if tag in alike else alike[0]
        return UNCONDITIONAL if batch.flags[chunk] else sum(flag == 0 for flag in batch.flags[:chunk])

    def _with_own_text(self, model: int, base: dict, numbers: Sequence[int]) -> dict:
        """A batch's tree with a model's own text conditions, and what ControlNet makes of them."""
        batch = self.asked.batch
        conditions, unconditional = (self._own if self._own_shown is None else self._own_shown)[model]
        x, timestep = base["x"][: batch.images], base["timestep"][: batch.images]
        wanted = [unconditional[0] if number == UNCONDITIONAL else conditions[number] for number in numbers]
        own = backend.cond_cat([backend.area_and_mult(one, x, timestep).conditioning for one in wanted])
        tree = {**base, "c": {**base["c"], **own}}
        control = batch.fixed.get("control_model")
        if control is not None:
            args = batch.call(tree)
            c = {key: value for key, value in args["c"].items() if key not in ("control", "control_model")}
            with _described_to(control, c["transformer_options"]):
                tree["c"]["control"] = control.get_control(
                    args["input"], args["timestep"], c, len(args["cond_or_uncond"])
                )
        return tree


@contextmanager
def _described_to(control: Any, options: dict) -> Iterator[None]:
    """For the time of the block every ControlNet of a chain knows the batch by these `transformer_options`."""
    links = []
    while control is not None:
        links.append((control, control.transformer_options))
        control.transformer_options = options
        control = control.previous_controlnet
    try:
        yield
    finally:
        for link, former in links:
            link.transformer_options = former
