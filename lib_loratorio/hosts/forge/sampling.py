"""One pass of sampling, composed, and the host's callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from modules import prompt_parser

from lib_loratorio.hosts.forge import neighbours
from lib_loratorio.hosts.forge.call import Asked, HostCall
from lib_loratorio.hosts.forge.conditions import TAG, Own
from lib_loratorio.hosts.forge.deltas import bank_of
from lib_loratorio.hosts.forge.loader import adapters_of, backend, text_encoder_of
from lib_loratorio.hosts.forge.rows import HostBatch, looks_across_rows
from lib_loratorio.hosts.webui import messages, passes
from lib_loratorio.hosts.webui.followed import Pair, StepText
from lib_loratorio.hosts.webui.neighbours import sets_loras_by_region
from lib_loratorio.hosts.webui.text import text_conditions, text_of_step
from lib_loratorio.loras.adapter import BASE, Adapter
from lib_loratorio.loras.block_weights import Evenly
from lib_loratorio.settings import Settings

_current: Pass | None = None
"""The pass that runs: the host copies a patcher's options deeply, so that what is in them are plain functions."""


def stop(p, message: str) -> None:
    """Lets the sampling about to start fail with a message, and not where the host merges the networks for it."""
    p.sd_model.forge_objects.unet = p.sd_model.forge_objects_original.unet
    messages.stop(p, message)


def declined(p) -> str | None:
    """Why this pass cannot be composed, or None."""
    if p.disable_extra_networks:
        return "LoRAs are switched off for this generation"
    if getattr(p.sd_model, "cond_stage_key", None) == "edit" or getattr(p.sd_model, "is_sd_edit", False):
        return "InstructPix2Pix models are not supported"
    return backend.declined(p.sd_model) or sets_loras_by_region()


def prepare(p, settings: Settings) -> None:
    """Arranges that the sampling about to start is composed. Raises LoratorioError."""
    passes.prepare(p, settings, declined(p), adapters_of, Pass)


class Pass(passes.Pass):
    """One pass of sampling, composed; the engine's `ModelHost`.

    From here on until the end of the sampling the host's UNet patcher is a clone without the networks' patches, with
    our wrapper around whatever wrapper there was.
    """

    def __init__(self, p, settings: Settings, adapters: Sequence[Adapter]):
        super().__init__(p, settings, adapters)
        self.sd_model = p.sd_model
        self.former = p.sd_model.forge_objects.unet
        self.model = self.former.model
        self.original = p.sd_model.forge_objects_original.unet
        self.texts = text_conditions(p, settings, adapters, self._readers, lambda: p.get_conds()[1] is not None)
        merged = p.sd_model.forge_objects_after_applying_lora.unet
        self.base = backend.without_networks(self.former, merged, self.original)
        backend.apply(self.base)
        self.weights = self.base  # whose weights the model has
        self.composer = self.composer_of(bank_of(p, self.model, adapters))
        self.wrapper = self.base.model_options.get("model_function_wrapper")
        self.base.set_model_unet_function_wrapper(_wrapper_around(self.wrapper))
        backend.install(self.base, _calc)
        p.sd_model.forge_objects.unet = self.base
        self.call: HostCall | None = None

    def _readers(self, adapters: Sequence[Adapter]):
        return text_encoder_of(self.p.sd_model, adapters)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything in place for the time of the sampling; everything back afterwards."""
        global _current
        self.beside(neighbours.acting(self.model, self.wrapper))
        if self.wrapper and not self.composer.apart:
            self.composer.go_apart()
        try:
            with self.composer.bank.attached(), backend.bracket(_calc):
                _current = self
                yield
            self.report()
        finally:
            self._end_call()
            _current = None
            if self.sd_model.forge_objects.unet is self.base:
                self.sd_model.forge_objects.unet = self.former

    def begin(self, params) -> None:
        """on_cfg_denoiser: what this sampler call is to be, and the text for it."""
        self._end_call()
        if self.p.sd_model.forge_objects.unet.model is not self.model:
            self.leave_to_refiner()
            return
        step = self.plan()
        self._set_weights(self.former if step is None else self.base)
        if step is not None:
            text = text_of_step(self.p, self.denoiser, params, self.texts, _text_at_step, self.settings.merges_between)
            self.call = HostCall(self.composer, step, lambda: self._own_conditions(text))

    def _end_call(self) -> None:
        if self.call:
            self.call.close()
        self.call = None

    def _own_conditions(self, text: StepText) -> Own:
        """Those of the models that read the prompt by themselves, in the host's form."""
        if not text.own:
            return {}
        composition, _ = prompt_parser.reconstruct_multicond_batch(self.texts[BASE][0], self.denoiser.step)
        return {
            model: (backend.compile_weighted_conditions(cond, composition), backend.compile_conditions(uncond))
            for model, (cond, uncond) in text.reached().items()
        }

    def _set_weights(self, patcher: Any) -> None:
        """The model's weights from here on: outside composed steps those with all networks, as the host merges them."""
        if self.weights is not patcher:
            backend.apply(patcher)
            self.weights = patcher

    def calc(self, original: Callable, model, *args) -> tuple:
        """In place of the host's evaluation of conditional and unconditional rows."""
        self.raise_error()
        cond, *_ = args
        if self.call is None or self.call.is_composed or model is not self.model or not cond:
            return original(model, *args)
        return self.call.calc(original, model, *args)

    def evaluate(self, apply_model: Callable, args: dict) -> torch.Tensor:
        """In place of the model."""
        self.raise_error()
        c = dict(args["c"])
        tags = c.pop(TAG, None)
        if self.call is None:
            return _through(self.wrapper, apply_model, {**args, "c": c})
        options = c.get("transformer_options", {})
        self.composer.bank.rows_repeat_in_place = neighbours.repeat_in_place(options)
        if not self.composer.apart and looks_across_rows(options):
            self.composer.go_apart()
        return self.call.evaluate(Asked(apply_model, HostBatch.of(args, c)), tags)

    # The engine's ModelHost

    def run(self, inputs: dict) -> torch.Tensor:
        asked = inputs["asked"]
        predictions = _through(self.wrapper, asked.apply_model, asked.batch.call(inputs))
        return predictions.clone() if self.composer.apart else predictions  # some return the same memory in each call

    def fits(self, rows: int) -> bool:
        x = self.call.asked.batch.tree["x"]
        return backend.fits(self.model, (rows, *x.shape[1:]), x.device)

    @contextmanager
    def merged(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        alone = self.base
        for adapter in adapters:
            unet = adapter.source.unet
            if adapter.factor != 1:
                unet = backend.weighted(unet, self.original, Evenly(adapter.factor))
            alone = backend.with_patches(alone, unet, self.original)
        try:
            backend.apply(alone)
            yield
        finally:
            backend.apply(self.base)

    def same_length(self, model: int) -> bool:
        """The host makes texts of unequal length equal, or asks for them apart."""
        return True


def _text_at_step(cond: Any, uncond: Any, step: int) -> Pair:
    """The condition `[C, tokens, width]` and the unconditional one `[B, tokens, width]` or None, or dicts of such."""
    _, text = prompt_parser.reconstruct_multicond_batch(cond, step)
    return text, None if uncond is None else prompt_parser.reconstruct_cond_batch(uncond, step)


# Without a running pass these are the host's own.


def _wrapper_around(former: Callable | None) -> Callable:
    def wrapper(apply_model: Callable, args: dict) -> torch.Tensor:
        return _current.evaluate(apply_model, args) if _current else _through(former, apply_model, args)

    return wrapper


def _through(wrapper: Callable | None, apply_model: Callable, args: dict) -> torch.Tensor:
    return wrapper(apply_model, args) if wrapper else apply_model(args["input"], args["timestep"], **args["c"])


def _calc(original: Callable, *args) -> tuple:
    return _current.calc(original, *args) if _current else original(*args)


def on_cfg_denoiser(params) -> None:
    if _current and params.denoiser is _current.denoiser:
        with _current.keeping_errors():
            _current.begin(params)


def on_cfg_denoised(params) -> None:
    """These hosts never call it."""
