"""One sampler call: what the host asks for between `on_cfg_denoiser` and `on_cfg_denoised`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from modules import prompt_parser, sd_samplers_timesteps, shared

from lib_loratorio.engine.composer import Composer
from lib_loratorio.engine.methods import Composed
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Step
from lib_loratorio.engine.sampler_call import UNCONDITIONAL, Rows
from lib_loratorio.engine.trees import map_tensors, take_rows
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.webui.followed import Pair, StepText
from lib_loratorio.hosts.webui.neighbours import calling, named


class HostCall:
    """One composed sampler call, and what other extensions ask the model for until the next one.

    Args:
        composer, step: what it is composed by, and of.
        denoiser: the host's.
        params: of `on_cfg_denoiser`.
        text: the texts of the base, which are in `params`, and of each adapter that has its own.
    """

    def __init__(self, composer: Composer, step: Step, denoiser, params, text: StepText):
        self.composer, self.step, self.denoiser, self.params, self.text = composer, step, denoiser, params, text
        self.images = params.text_uncond.shape[0]
        self.conditional = params.x.shape[0] - self.images
        conditions = denoiser.sampler.sampler_extra_args["cond"]
        subprompts = torch.tensor([len(prompts) for prompts in conditions.batch], device=params.x.device)
        image_of = torch.arange(self.images, device=params.x.device).repeat_interleave(subprompts)
        self.sampler_call = composer.call(step, image_of)
        self.done = 0  # rows that the host has asked for so far
        self._composed: Composed | None = None

    @cached_property
    def own_text(self) -> dict[int, tuple]:
        """By model its pair as the host would pad it, from the first model call on."""
        return dict(self.text.reached(partial(_padded, self.denoiser)))

    @property
    def rows(self) -> int:
        return self.conditional + self.images

    @property
    def is_complete(self) -> bool:
        """Whether the host has asked for all rows, so that what is asked for now is another extension's."""
        return self._composed is not None or self.done == self.rows

    def same_length(self, model: int) -> bool:
        if model not in self.own_text:
            return True
        cond, uncond = self.own_text[model]
        return cond.shape[1] == uncond.shape[1]

    def evaluate(self, x: torch.Tensor, sigma: torch.Tensor, args: tuple, kwargs: dict) -> torch.Tensor:
        """The next rows of the call: the host may ask for them at once or in several chunks, conditional ones first.

        What comes when it has them all is another extension's.
        """
        start, stop = self.done, self.done + x.shape[0]
        # On steps without guidance the host leaves image conditions with more rows than it evaluates.
        host_inputs = (x, sigma, args, take_rows(kwargs, slice(x.shape[0])))
        if self.is_complete:
            return self._aside(*host_inputs)
        if stop > self.rows:
            raise _refused("evaluates the model amid the WebUI's own evaluation")
        self.done = stop
        numbers = [row if row < self.conditional else UNCONDITIONAL for row in range(start, stop)]

        def inputs(model: int, rows: Rows) -> tuple:
            return self._with_own_text(model, take_rows(host_inputs, rows), _taken(range(start, stop), rows))

        stand_in = self.sampler_call.evaluate(numbers, inputs)
        if stop == self.rows:
            self.sampler_call.complete()
        return stand_in

    def finish(self, x: torch.Tensor) -> None:
        """Writes the composed predictions into `x [C+B,c,H,W]`, which is what the guidance goes on with."""
        composed = self.composed
        x[: self.conditional] = composed.conditional
        x[self.conditional :] = self._unconditional(composed)

    @property
    def composed(self) -> Composed:
        """The step's predictions, of the rows that the host has asked for."""
        if self._composed is None:
            x, sigma = self.params.x[: self.conditional], self.params.sigma[self.conditional :]
            self._composed = self.composer.finish(self.sampler_call, self._space(x, sigma))
        return self._composed

    def _space(self, x: torch.Tensor, sigma: torch.Tensor) -> NoiseSpace:
        if isinstance(self.denoiser, sd_samplers_timesteps.CFGDenoiserTimesteps):
            return NoiseSpace.noise()
        return NoiseSpace.denoised(x, sigma)

    def _unconditional(self, composed: Composed) -> torch.Tensor:
        if composed.unconditional is not None:
            return composed.unconditional
        # A step without guidance: the host has each image's first conditional row in their place.
        image_of = self.sampler_call.image_of
        return composed.conditional[torch.searchsorted(image_of, torch.arange(self.images, device=image_of.device))]

    def _with_own_text(self, model: int, inputs: tuple, rows: list[int]) -> tuple:
        """A model's inputs with its own text conditions, for these rows of the whole call."""
        if model not in self.own_text:
            return inputs
        x, sigma, args, kwargs = inputs
        return x, sigma, args, {**kwargs, "cond": _with_text(kwargs["cond"], self._own_rows(model, rows))}

    def _own_rows(self, model: int, rows: list[int]) -> Any:
        cond, uncond = self.own_text[model]
        c = self.conditional
        if all(row < c for row in rows):
            return take_rows(cond, rows)
        if all(row >= c for row in rows):
            return take_rows(uncond, [row - c for row in rows])
        return map_tensors(lambda of_cond, of_uncond: torch.cat([of_cond, of_uncond])[rows], cond, uncond)

    # Other extensions' calls

    def _aside(self, x: torch.Tensor, sigma: torch.Tensor, args: tuple, kwargs: dict) -> torch.Tensor:
        """Rows that the host itself does not ask for, such as a perturbed prediction to move away from.

        They are composed with the step's weights, so that what they are compared with differs in nothing else.
        """
        weights, image_of = self.composed.weights, self.sampler_call.image_of
        if weights is not None and x.shape[-2:] != self.params.x.shape[-2:]:
            raise _refused("evaluates the model on latents of another size")
        rows = self._meant(kwargs["cond"], x.shape[0])
        conditions = [row for row in rows if row < self.conditional]
        unconditional = [row - self.conditional for row in rows if row >= self.conditional]
        if unconditional and unconditional != list(range(self.images)):
            raise _refused("evaluates the negative prompt of some pictures only")
        numbers = iter(range(len(conditions)))
        call = self.composer.call(self.step, image_of[conditions], aside=True)
        call.evaluate(
            [next(numbers) if row < self.conditional else UNCONDITIONAL for row in rows],
            lambda model, of: self._with_own_text(model, take_rows((x, sigma, args, kwargs), of), _taken(rows, of)),
        )
        is_conditional = torch.tensor([row < self.conditional for row in rows], device=x.device)
        predictions = call.predictions(self._space(x[is_conditional], sigma[: self.images]))
        result = torch.empty_like(x)
        if conditions:
            of_rows = None if weights is None else weights[:, conditions]
            composed = self.step.method.combine(predictions._replace(unconditional=None), of_rows)
            result[is_conditional] = composed.conditional
        if unconditional:
            composed = self.step.method.combine(predictions._replace(conditional=None, image_of=image_of), weights)
            result[~is_conditional] = composed.unconditional
        return result

    def _meant(self, condition: dict, rows: int) -> list[int]:
        """For each row of another extension's call the row of the step's own whose text it has, of several the one in
        its place, or its image's.
        """
        text = _text_of(condition)
        known = _rows_of(self.params.text_cond) + _rows_of(self.params.text_uncond)
        image_of = [*self.sampler_call.image_of.tolist(), *range(self.images)]
        found = []
        for row in range(rows):
            place = row if row < self.rows else row % self.images
            image = image_of[place]
            alike = [number for number, of_step in enumerate(known) if _same_text(text[row], of_step)]
            if not alike:
                if self.own_text:
                    raise _refused(
                        "evaluates the model with a text of its own, which LoRAs that read the prompt by themselves "
                        "cannot read; set 'Text encoder' to 'merged'"
                    )
                alike = [place]
            found.append(place if place in alike else next((n for n in alike if image_of[n] == image), alike[0]))
        return found


def _refused(does: str) -> LoratorioError:
    return LoratorioError(f"{named(calling())} {does}, which cannot be composed. Switch it off, or LoRAtorio.")


def text_at_step(cond: Any, uncond: Any, step: int) -> Pair:
    """The condition `[C, tokens, width]` and the unconditional one `[B, tokens, width]`, or dicts of such."""
    _, tensor = prompt_parser.reconstruct_multicond_batch(cond, step)
    return tensor, prompt_parser.reconstruct_cond_batch(uncond, step)


def _padded(denoiser, cond, uncond) -> tuple:
    """As the host pads its own, where its options say so."""
    if cond.shape[1] != uncond.shape[1]:
        if shared.opts.pad_cond_uncond_v0:
            return denoiser.pad_cond_uncond_v0(cond, uncond)
        if shared.opts.pad_cond_uncond:
            return denoiser.pad_cond_uncond(cond, uncond)
    return cond, uncond


def _taken(numbers: Sequence[int], rows: Rows) -> list[int]:
    return list(numbers[rows]) if isinstance(rows, slice) else [numbers[row] for row in rows]


def _with_text(condition: dict, text: Any) -> dict:
    return {**condition, **text} if isinstance(text, dict) else {**condition, "c_crossattn": [text]}


def _text_of(condition: dict) -> torch.Tensor:
    """The text of a model call `[rows, tokens, width]`."""
    return condition["crossattn"] if "crossattn" in condition else torch.cat(condition["c_crossattn"], 1)


def _rows_of(text: Any) -> list[torch.Tensor]:
    return list(text["crossattn"] if isinstance(text, dict) else text)


def _same_text(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two rows have the same tokens, of which the host may have added some for the sake of equal lengths."""
    tokens = min(len(one), len(other))
    return torch.equal(one[:tokens], other[:tokens].to(one))
