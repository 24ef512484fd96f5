"""One sampler call: what the host asks for between `on_cfg_denoiser` and `on_cfg_denoised`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from modules import prompt_parser, shared

from lib_loratorio.engine.composer import Composer
from lib_loratorio.engine.methods import Composed
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Step
from lib_loratorio.engine.trees import take_rows
from lib_loratorio.loras.adapter import BASE


class HostCall:
    """One composed sampler call.

    Args:
        composer, step: what it is composed by, and of.
        denoiser: the host's.
        params: of `on_cfg_denoiser`; the base's own text conditions are put into them.
        texts: conditions `(cond, uncond)` of the whole sampling, of the base and of each adapter that has its own.
    """

    def __init__(self, composer: Composer, step: Step, denoiser, params, texts: Mapping[int, tuple]):
        self.composer = composer
        if texts:
            params.text_cond, params.text_uncond = text_at_step(texts[BASE], denoiser.step)
        self.x, self.sigma = params.x, params.sigma
        self.images = params.text_uncond.shape[0]
        self.conditional = params.x.shape[0] - self.images
        conditions = denoiser.sampler.sampler_extra_args["cond"]
        subprompts = torch.tensor([len(prompts) for prompts in conditions.batch], device=params.x.device)
        image_of = torch.arange(self.images, device=params.x.device).repeat_interleave(subprompts)
        self.own_text = {
            model: _padded(denoiser, *text_at_step(text, denoiser.step))
            for model, text in texts.items()
            if model != BASE
        }
        self.sampler_call = composer.call(step, image_of)
        self.done = 0  # rows that the host has asked for so far

    def same_length(self, model: int) -> bool:
        if model not in self.own_text:
            return True
        cond, uncond = self.own_text[model]
        return cond.shape[1] == uncond.shape[1]

    def evaluate(self, x: torch.Tensor, sigma: torch.Tensor, args: tuple, kwargs: dict) -> torch.Tensor:
        """The next rows of the call: the host may ask for them at once or in several chunks, conditional ones first."""
        start, rows = self.done, x.shape[0]
        self.done += rows
        conditional = max(0, min(start + rows, self.conditional) - start)
        # On steps without guidance the host leaves image conditions with more rows than it evaluates.
        host_inputs = (x, sigma, args, take_rows(kwargs, slice(rows)))

        def inputs(model: int, span: slice) -> tuple:
            return self._with_own_text(model, take_rows(host_inputs, span), start + span.start, start + span.stop)

        return self.sampler_call.evaluate(conditional, rows - conditional, inputs)

    def finish(self, x: torch.Tensor, predicts_noise: bool) -> None:
        """Writes the composed predictions into `x [C+B,c,H,W]`, which is what the guidance goes on with."""
        if predicts_noise:
            space = NoiseSpace.noise()
        else:
            space = NoiseSpace.denoised(self.x[: self.conditional], self.sigma[self.conditional :])
        composed = self.composer.finish(self.sampler_call, space)
        x[: self.conditional] = composed.conditional
        x[self.conditional :] = self._unconditional(composed)

    def _unconditional(self, composed: Composed) -> torch.Tensor:
        if composed.unconditional is not None:
            return composed.unconditional
        # A step without guidance: the host has each image's first conditional row in their place.
        image_of = self.sampler_call.image_of
        return composed.conditional[torch.searchsorted(image_of, torch.arange(self.images, device=image_of.device))]

    def _with_own_text(self, model: int, inputs: tuple, start: int, stop: int) -> tuple:
        """A model's inputs with its own text conditions for rows `start:stop` of the whole call."""
        if model not in self.own_text:
            return inputs
        c = self.conditional
        cond, uncond = self.own_text[model]
        parts = []
        if start < c:
            parts.append(take_rows(cond, slice(start, min(stop, c))))
        if stop > c:
            parts.append(take_rows(uncond, slice(max(start, c) - c, stop - c)))
        x, sigma, args, kwargs = inputs
        return x, sigma, args, {**kwargs, "cond": _with_text(kwargs["cond"], parts)}


def text_at_step(text: tuple, step: int) -> tuple[Any, Any]:
    """The condition `[C, tokens, width]` and the unconditional one `[B, tokens, width]`, or dicts of such."""
    cond, uncond = text
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


def _with_text(condition: dict, parts: list) -> dict:
    if isinstance(parts[0], dict):
        return {**condition, **{key: torch.cat([part[key] for part in parts]) for key in parts[0]}}
    return {**condition, "c_crossattn": [torch.cat(parts)]}
