"""One pass of sampling, composed: from the request to the single sampler call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import networks
import torch
from modules import prompt_parser, sd_samplers_timesteps, sd_unet, shared

from lib_loratorio.engine.evaluation import Evaluation, Evaluator, take_rows
from lib_loratorio.engine.methods import BASE
from lib_loratorio.engine.sampler_call import SamplerCall
from lib_loratorio.hosts.a1111.deltas import bank_of
from lib_loratorio.hosts.a1111.loader import Adapter, adapters_of
from lib_loratorio.hosts.a1111.text import text_conditions
from lib_loratorio.hosts.webui import session
from lib_loratorio.settings import Settings

_current: Session | None = None


def declined(p) -> str | None:
    """Why this pass cannot be composed, or None."""
    if p.disable_extra_networks:
        return "LoRAs are switched off for this generation"
    if shared.sd_model.cond_stage_key == "edit":
        return "InstructPix2Pix models are not supported"
    if getattr(shared.sd_model, "is_sd3", False):
        return "SD3 models are not supported"
    if sd_unet.current_unet is not None:
        return "it needs the built-in UNet; set 'SD Unet' to None"
    return None


def prepare(p, settings: Settings) -> None:
    """Arranges that the sampling about to start is composed. Raises LoratorioError."""
    session.prepare(p, settings, declined(p), adapters_of, Session)


class Session(session.Session):
    """One pass of sampling, composed."""

    def __init__(self, p, settings: Settings, adapters: Sequence[Adapter]):
        super().__init__(p, settings, adapters)
        self.bank = bank_of(p, adapters)
        self.texts = text_conditions(p, adapters, settings.trigger_words) if settings.text_encoder == "own" else {}
        self.model = self.denoiser.inner_model
        self.evaluator = Evaluator(self._model_rows, self.bank, settings.adapters_per_pass)
        self.call: SamplerCall | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hooks and callbacks in place for the time of the sampling; everything back afterwards."""
        global _current
        self.loaded = list(networks.loaded_networks)
        forward_before = self.model.__dict__.get("forward")
        self.forward = self.model.forward
        try:
            with self.bank.attached():
                self.model.forward = self._evaluate
                _current = self
                yield
            self.report()
        finally:
            _current = None
            self.call = None
            networks.loaded_networks[:] = self.loaded
            self.model.__dict__.pop("forward", None)
            if forward_before is not None:
                self.model.forward = forward_before

    # One sampler call, in the order the host calls these three

    def begin(self, params) -> None:
        """on_cfg_denoiser: from here to `finish` the model is the base."""
        self.call = None
        if self.denoiser.inner_model is not self.model:
            return self.leave_to_refiner()
        method, plan, everywhere = self.step()
        if plan is None:
            return None
        if self.texts:
            params.text_cond, params.text_uncond = self._text_at_this_step(BASE)
        self.params, self.offset = params, 0
        self.pictures = params.text_uncond.shape[0]
        self.conditionals = params.x.shape[0] - self.pictures
        subprompts = torch.tensor([len(prompts) for prompts in self._conditions_in_use().batch], device=params.x.device)
        picture_of = torch.arange(self.pictures, device=params.x.device).repeat_interleave(subprompts)
        self.own_text = {
            number: self._padded(*self._text_at_this_step(number)) for number in self.texts if number != BASE
        }
        networks.loaded_networks.clear()
        verify = self._verify if self.settings.verify else None
        self.call = SamplerCall(method, plan, self.evaluator, picture_of, self._same_length, verify, everywhere)

    def _evaluate(self, x: torch.Tensor, sigma: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The model's forward: the host may ask for a call's rows at once or in several chunks."""
        self.raise_error()
        if self.call is None:
            return self.forward(x, sigma, *args, **kwargs)
        start, rows = self.offset, x.shape[0]
        self.offset += rows
        conditional = max(0, min(start + rows, self.conditionals) - start)
        # On steps without guidance the host leaves image conditions with more rows than it evaluates.
        host_inputs = (x, sigma, args, take_rows(kwargs, slice(rows)))

        def inputs(model: int, span: slice):
            taken = take_rows(host_inputs, span)
            return self._with_own_text(model, taken, start + span.start, start + span.stop)

        return self.call.evaluate(conditional, rows - conditional, inputs)

    def finish(self, params) -> None:
        """on_cfg_denoised: the guidance goes on with what is written into `params.x`."""
        call, self.call = self.call, None
        networks.loaded_networks[:] = self.loaded
        if call is None:
            return
        timesteps = isinstance(self.denoiser, sd_samplers_timesteps.CFGDenoiserTimesteps)
        if timesteps:
            composed = call.combine(None)
        else:
            sigma = self.params.sigma[self.conditionals :].view(-1, 1, 1, 1)
            composed = call.combine(self.params.x[: self.conditionals], noise_unit=-1 / sigma)
        params.x[: self.conditionals] = composed.conditional
        if composed.unconditional is not None:
            params.x[self.conditionals :] = composed.unconditional
        else:  # a step without guidance: the host has put each picture's first conditional row here
            first = torch.searchsorted(call.picture_of, torch.arange(self.pictures, device=call.picture_of.device))
            params.x[self.conditionals :] = composed.conditional[first]
        self.count(call, composed)

    def _model_rows(self, inputs) -> torch.Tensor:
        x, sigma, args, kwargs = inputs
        return self.forward(x, sigma, *args, **kwargs)

    # Text

    def _conditions_in_use(self):
        return self.denoiser.sampler.sampler_extra_args["cond"]

    def _text_at_this_step(self, model: int) -> tuple:
        """The condition `[C, tokens, width]` and the unconditional one `[B, tokens, width]`, or dicts of such."""
        cond, uncond = self.texts[model]
        _, tensor = prompt_parser.reconstruct_multicond_batch(cond, self.denoiser.step)
        return tensor, prompt_parser.reconstruct_cond_batch(uncond, self.denoiser.step)

    def _padded(self, cond, uncond) -> tuple:
        """As the host pads its own, where its options say so."""
        if cond.shape[1] != uncond.shape[1]:
            if shared.opts.pad_cond_uncond_v0:
                return self.denoiser.pad_cond_uncond_v0(cond, uncond)
            if shared.opts.pad_cond_uncond:
                return self.denoiser.pad_cond_uncond(cond, uncond)
        return cond, uncond

    def _same_length(self, model: int) -> bool:
        if model not in self.own_text:
            return True
        cond, uncond = self.own_text[model]
        return cond.shape[1] == uncond.shape[1]

    def _with_own_text(self, model: int, inputs: tuple, start: int, stop: int) -> tuple:
        """A model's inputs with its own text conditions for rows `start:stop` of the whole call."""
        if model not in self.own_text:
            return inputs
        c = self.conditionals
        cond, uncond = self.own_text[model]
        parts = []
        if start < c:
            parts.append(take_rows(cond, slice(start, min(stop, c))))
        if stop > c:
            parts.append(take_rows(uncond, slice(max(start, c) - c, stop - c)))
        x, sigma, args, kwargs = inputs
        return x, sigma, args, {**kwargs, "cond": _with_text(kwargs["cond"], parts)}

    # Verification

    def _verify(self, requests: Sequence[Evaluation], predictions: Sequence[torch.Tensor]) -> None:
        """Compares predictions with the host's own merge of each adapter alone, and with the bare model."""
        try:
            for request, prediction in zip(requests, predictions):
                networks.loaded_networks[:] = [self.adapters[number].network for number in request.adapters]
                self.verified.add(prediction, self._model_rows(request.inputs))
        finally:
            networks.loaded_networks.clear()


def _with_text(condition: dict, parts: list) -> dict:
    if isinstance(parts[0], dict):
        return {**condition, **{key: torch.cat([part[key] for part in parts]) for key in parts[0]}}
    return {**condition, "c_crossattn": [torch.cat(parts)]}


# The host's callbacks


def on_cfg_denoiser(params) -> None:
    if _current and params.denoiser is _current.denoiser:
        with _current.kept():
            _current.begin(params)


def on_cfg_denoised(params) -> None:
    if _current and _current.denoiser is not None:
        with _current.kept():
            _current.finish(params)
