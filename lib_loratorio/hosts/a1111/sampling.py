"""One pass of sampling, composed, and the host's callbacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import networks
import torch
from modules import sd_unet, shared

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.a1111 import neighbours
from lib_loratorio.hosts.a1111.call import HostCall, text_at_step
from lib_loratorio.hosts.a1111.deltas import bank_of
from lib_loratorio.hosts.a1111.loader import adapters_of, loaded, source_of
from lib_loratorio.hosts.webui import block_weights, passes
from lib_loratorio.hosts.webui.text import text_conditions, text_of_step
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.settings import Settings

_current: Pass | None = None
"""The pass that runs: the host's callbacks are plain functions, and it samples one request at a time."""


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
    return neighbours.declined(p.sampler.model_wrap_cfg)


def prepare(p, settings: Settings) -> None:
    """Arranges that the sampling about to start is composed. Raises LoratorioError."""
    passes.prepare(p, settings, declined(p), adapters_of, Pass)


class Pass(passes.Pass):
    """One pass of sampling, composed; the engine's `ModelHost`."""

    def __init__(self, p, settings: Settings, adapters: Sequence[Adapter]):
        super().__init__(p, settings, adapters)
        self.composer = self.composer_of(bank_of(p, adapters))
        self.texts = text_conditions(p, settings, adapters, loaded)
        self.model = self.denoiser.inner_model
        self.forward = self.model.forward
        self.loaded = list(networks.loaded_networks)
        self.call: HostCall | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hooks and callbacks in place for the time of the sampling; everything back afterwards."""
        global _current
        self.loaded = list(networks.loaded_networks)
        forward_before = self.model.__dict__.get("forward")
        self.forward = self.model.forward
        extensions = neighbours.acting(self.denoiser)
        self.composer.bank.rows_repeat_in_place = bool(extensions & neighbours.IN_PLACE)
        self.beside(extensions - neighbours.IN_PLACE)
        try:
            with self.composer.bank.attached():
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
            block_weights.forget_steps(self.p)

    # One sampler call, in the order the host calls these three

    def begin(self, params) -> None:
        """on_cfg_denoiser: from here to `finish` the model is the base."""
        self.call = None
        if self.denoiser.inner_model is not self.model:
            self.loaded = list(networks.loaded_networks)  # none where the host had to load the refiner from its file
            self.leave_to_refiner()
            return
        step = self.plan()
        if step is not None:
            text = text_of_step(self.p, self.denoiser, params, self.texts, text_at_step, self.settings.merges_between)
            call = HostCall(self.composer, step, self.denoiser, params, text)
            networks.loaded_networks.clear()
            self.call = call

    def _evaluate(self, x: torch.Tensor, sigma: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """In place of the model's forward; for another extension's call the networks are taken out, too."""
        self.raise_error()
        if self.call is None:
            return self.forward(x, sigma, *args, **kwargs)
        loaded = list(networks.loaded_networks)
        networks.loaded_networks.clear()
        try:
            return self.call.evaluate(x, sigma, args, kwargs)
        except LoratorioError as error:
            self.error = error  # the host ignores what is raised in another extension's callback, as it does in ours
            raise
        finally:
            networks.loaded_networks[:] = loaded

    def finish(self, params) -> None:
        """on_cfg_denoised: the guidance goes on with what is written into `params.x`."""
        try:
            if self.call is not None:
                self.call.finish(params.x)
        finally:
            networks.loaded_networks[:] = self.loaded

    # The engine's ModelHost

    def run(self, inputs: tuple) -> torch.Tensor:
        x, sigma, args, kwargs = inputs
        predictions = self.forward(x, sigma, *args, **kwargs)
        return predictions.clone() if self.composer.apart else predictions  # some return the same memory in each call

    def fits(self, rows: int) -> bool:
        """The host makes no estimate: what does not fit shows when memory runs out."""
        return True

    @contextmanager
    def merged(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        networks.loaded_networks[:] = [source_of(adapter) for adapter in adapters]
        try:
            yield
        finally:
            networks.loaded_networks.clear()

    def same_length(self, model: int) -> bool:
        return self.call is None or self.call.same_length(model)


# The host's callbacks


def on_cfg_denoiser(params) -> None:
    if _current and params.denoiser is _current.denoiser:
        with _current.keeping_errors():
            _current.begin(params)


def on_cfg_denoised(params) -> None:
    if _current and _current.denoiser is not None:
        with _current.keeping_errors():
            _current.finish(params)
