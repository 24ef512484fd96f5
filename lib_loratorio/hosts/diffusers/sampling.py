"""Images of a diffusers pipeline, composed: from the text encoder to the single call of the denoiser."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer

from lib_loratorio.engine.composer import Composer, Tally
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.planner import Step
from lib_loratorio.engine.sampler_call import UNCONDITIONAL, Rows
from lib_loratorio.engine.trees import take_rows
from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.diffusers.arguments import read_loras, read_settings
from lib_loratorio.hosts.diffusers.compiled import plain_denoiser, uncompiled
from lib_loratorio.hosts.diffusers.controlnets import ControlNets
from lib_loratorio.hosts.diffusers.deltas import bank_of
from lib_loratorio.hosts.diffusers.denoisers import denoiser_name, denoiser_of
from lib_loratorio.hosts.diffusers.loader import activate, loaded, text_encoders
from lib_loratorio.hosts.diffusers.noise import check_scheduler, noise_space
from lib_loratorio.hosts.diffusers.offloading import SequentialOffloading, is_sequential
from lib_loratorio.hosts.diffusers.results import Results
from lib_loratorio.hosts.diffusers.texts import Division, Prompt, Row, own_rows
from lib_loratorio.loras.adapter import BASE, MERGED, Adapter
from lib_loratorio.loras.helpers import place_advice, ramp_advice, role_advice
from lib_loratorio.loras.mask_image import numbers_in, read_image
from lib_loratorio.loras.text import readings
from lib_loratorio.loras.trigger_words import appended, is_named, joined, trigger_words
from lib_loratorio.settings import Settings

DENSE_BUDGET = 2**30
"""Bytes that cached dense deltas may take."""


@contextmanager
def composed(
    pipe: Any,
    loras: Any = (),
    settings: Settings | Mapping[str, Any] | None = None,
    dense_budget: int = DENSE_BUDGET,
    *,
    pool: Any = (),
    **changes: Any,
) -> Iterator[Composition]:
    """Within the block, ordinary calls of `pipe` make images composed of these LoRAs.

    Afterwards the pipeline is what it was, whatever ended the block.

    Args:
        pipe: a pipeline of SD 1.x, SD 2.x, SDXL, SD 3 or FLUX.1, whichever its class: what counts is its denoiser, and
            whose rows that is asked for.
        loras: a file or folder, `(file, strength)`, `Lora(...)`, a dict of files and strengths, or a list of these.
        settings: `Settings` or a dict of them; defaults without.
        dense_budget: bytes that deltas without low-rank factors may take as a cache.
        pool: more LoRAs, in the same forms, which may be left out of steps in which they would matter little.
        changes: settings by name, such as `temperature=0.05`, on top of `settings`.

    Raises LoratorioError for pipelines, schedulers and LoRA files that cannot be composed, and for other forms.
    """
    check_pipeline(pipe)
    settings = read_settings(settings, changes)
    wanted = [*read_loras(loras), *read_loras(pool, pooled=True)]
    offloading = SequentialOffloading(pipe)
    with uncompiled(pipe), offloading.paused(), loaded(pipe, wanted, not offloading.is_on) as adapters:
        roles = role_advice(adapters) if settings.traits.apart else ""
        for advice in (roles, place_advice(settings, adapters), ramp_advice(settings, adapters)):
            if advice:
                logging.warning(told(advice))
        composition = Composition(pipe, adapters, settings, dense_budget)
        with offloading.resumed(adapters), composition.running():
            yield composition


def check_pipeline(pipe: Any) -> None:
    """Raises LoratorioError for pipelines that are not supported."""
    denoiser = denoiser_of(plain_denoiser(pipe))
    for needed, reason in (
        ("load_lora_weights", "it cannot load LoRAs"),
        ("encode_prompt", "where its prompt is read cannot be told"),
        ("scheduler", "it has no scheduler"),
    ):
        if not hasattr(pipe, needed):
            raise LoratorioError(f"a {type(pipe).__name__} is not supported: it has no {needed}, so {reason}.")
    if getattr(pipe, "do_perturbed_attention_guidance", False) or hasattr(pipe, "pag_applied_layers"):
        raise LoratorioError(
            f"a {type(pipe).__name__} is not supported: its perturbed rows have the text of conditional ones; use the "
            "pipeline without PAG."
        )
    if getattr(denoiser.model, "is_cache_enabled", False):
        raise LoratorioError("the denoiser keeps parts of earlier calls; call its disable_cache() first.")
    if any(parameter.is_meta for parameter in denoiser.model.parameters()) and not is_sequential(denoiser.model):
        raise LoratorioError(
            "the denoiser's weights are neither on its device nor in host memory, so that they cannot be read; use "
            "enable_model_cpu_offload, enable_sequential_cpu_offload or group offloading."
        )
    check_scheduler(pipe.scheduler, denoiser.has_alphas)


class Composition(Results):
    """The images of one `composed` block; the engine's `ModelHost`."""

    def __init__(self, pipe: Any, adapters: Sequence[Adapter], settings: Settings, dense_budget: int = DENSE_BUDGET):
        self.pipe, self.adapters, self.settings = pipe, adapters, settings
        self.component, self.model = denoiser_name(pipe), plain_denoiser(pipe)
        self.denoiser = denoiser_of(self.model)
        # A pool is a choice to compose from: where nothing is composed it plays no part.
        self.merged_adapters = [adapter for adapter in adapters if not adapter.pooled]
        activate(pipe, self.component, ())  # deltas are of the base's weights
        self.bank = bank_of(self.model, self.component, adapters, dense_budget) if settings.traits.apart else None
        self.texts: dict[int, Prompt] = {}
        self.encode_prompt, self.forward = pipe.encode_prompt, self.model.forward
        self.controlnets = ControlNets(pipe, self.denoiser.controls)
        self._beneath: Any = None  # what the denoiser had in place of its class's forward
        self.painted = None
        if settings.mask and settings.traits.apart:
            self.painted = Painted(torch.from_numpy(numbers_in(read_image(settings.mask), self.labels)))
        self._begin()

    def _begin(self) -> None:
        """A call of the pipeline begins."""
        self.tally, self.maps = Tally(), WeightMaps()
        self.composer: Composer | None = None
        if self.bank is not None:
            self.composer = Composer(
                self.settings, self.adapters, self.bank, self, self.maps, self.tally, painted=self.painted
            )
        self.calls = 0
        self.texts = {}
        self.controlnets.forget()
        self._division: Division | None = None
        self._was_called = False
        self._step: tuple[Step | None, torch.Tensor | None] | None = None  # the latest step, and its patch weights

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wrappers and hooks in place; on leaving, the pipeline's own calls are back."""
        pipe = self.pipe
        before, self.encode_prompt = pipe.__dict__.get("encode_prompt"), pipe.encode_prompt
        try:
            pipe.__dict__["encode_prompt"] = self._encode_prompt
            activate(pipe, self.component, self.merged_adapters if self.bank is None else ())
            self._replace_forward()
            with self.bank.attached() if self.bank else nullcontext(), self.controlnets.watched():
                yield
        finally:
            pipe.__dict__.pop("encode_prompt", None)
            if before is not None:
                pipe.__dict__["encode_prompt"] = before
            self._put_forward_back()

    def _replace_forward(self) -> None:
        """Also where offloading has put the denoiser's hooks on anew, as diffusers does after each picture."""
        own = self._counted if self.bank is None else self._forward
        if self.model.__dict__.get("forward") != own:
            self._beneath, self.forward = self.model.__dict__.get("forward"), self.model.forward
            self.model.__dict__["forward"] = own

    def _put_forward_back(self) -> None:
        if self.model.__dict__.get("forward") in (self._counted, self._forward):
            self.model.__dict__.pop("forward")
            if self._beneath is not None:
                self.model.__dict__["forward"] = self._beneath

    # Text

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> tuple:
        """The pipeline asks for its text conditions: in each of its calls before the sampling, once or, where its
        classes encode the negative prompt apart, twice.
        """
        arguments = dict(inspect.signature(self.encode_prompt).bind(*args, **kwargs).arguments)
        asked = {**arguments.pop("kwargs", {}), **arguments}
        is_negative = self._awaits_negative and "negative_prompt" not in asked
        if not is_negative:
            self._begin()
        self._replace_forward()
        if self.composer:
            check_scheduler(self.pipe.scheduler, self.denoiser.has_alphas)
            self._require_no_other_loras()
            if self.settings.pool_mode == "named" and not is_negative:
                self.composer.planner.absent = self._unnamed(asked.get("prompt"))
        triggers = [trigger_words(adapter.path) if self.settings.trigger_words else "" for adapter in self.adapters]
        words = [joined(words, adapter.tag.words) for words, adapter in zip(triggers, self.adapters)]
        own = readings(self.adapters, words) if self.composer and self.settings.text_encoder == "own" else {}
        if own and asked.get("prompt") is None:
            raise LoratorioError(
                "prompt_embeds were read by one text encoder, but some of these LoRAs read the prompt "
                "with their own, or with trigger words; "
                "give a prompt instead, or text_encoder='merged' in the settings."
            )
        encoded = {
            model: self._encoded_with(adapters, asked if is_negative else _with_words(asked, word))
            for model, (adapters, word) in own.items()
        }
        if own and (self.settings.start > 0 or self.settings.end < 1 or self.settings.merges_between):
            encoded[MERGED] = self._encoded_with(self.merged_adapters, asked)
        of_base = encoded.pop(BASE) if own else self._encoded_with(self.merged_adapters, asked)
        if self.composer:
            self._keep(of_base, encoded, is_negative)
        return of_base

    @property
    def _awaits_negative(self) -> bool:
        """Whether the pipeline has encoded one prompt, without a negative one, and not called the denoiser yet."""
        return self._division is not None and not self._was_called and self._division.prompt.unconditional is None

    def _keep(self, of_base: tuple, encoded: Mapping[int, tuple], is_negative: bool) -> None:
        texts = {model: Prompt.read(of_model) for model, of_model in encoded.items()}
        base = Prompt.read(of_base)
        if is_negative:
            texts = {model: self.texts[model].with_negative(text) for model, text in texts.items()}
            base = self._division.prompt.with_negative(base)
        self.texts, self._division = texts, Division(base)

    def _unnamed(self, prompt: str | list[str] | None) -> frozenset[int]:
        """The pool's LoRAs of whose trigger words the prompt has none."""
        if prompt is None:
            raise LoratorioError("prompt_embeds name no LoRA of a pool; give a prompt, or another pool_mode.")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return frozenset(
            number
            for number, adapter in enumerate(self.adapters)
            if adapter.pooled and not is_named(adapter.path, prompts)
        )

    def _encoded_with(self, adapters: Sequence[Adapter], asked: dict) -> tuple:
        for encoder in text_encoders(self.pipe):
            activate(self.pipe, encoder, adapters)
        return self.encode_prompt(**asked)

    # One call of the denoiser

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.tally.rows += self.denoiser.count(args, kwargs)
        return self.forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's forward, as the pipeline calls it."""
        caller = _calling_pipeline()
        if self._division is None or (caller is not None and caller is not self.pipe):
            name = "something" if caller is None else f"a {type(caller).__name__}"
            raise LoratorioError(
                f"the denoiser is called by {name} other than the pipeline that is composed; make such pipelines "
                "before the block (from_pipe), and give them to composed()."
            )
        self._was_called = True
        tree, return_dict = self.denoiser.read(args, kwargs)
        return self.denoiser.answer(self._prediction(tree), tree, return_dict)

    def _prediction(self, tree: dict) -> torch.Tensor:
        hidden = self.denoiser.hidden_text(tree)
        division = self._division.rows(hidden, getattr(self.pipe, "do_classifier_free_guidance", None))
        conditional = [number for number, row in enumerate(division) if not row.unconditional]
        unconditional = [number for number, row in enumerate(division) if row.unconditional]
        if conditional and unconditional and len(conditional) != len(unconditional):
            raise LoratorioError(
                f"the pipeline asks for {len(conditional)} conditional and {len(unconditional)} unconditional rows at "
                "once, which cannot be paired (as those of PAG and InstructPix2Pix); use a pipeline without it."
            )
        if conditional:
            call, self.calls = self.calls, self.calls + 1
            # A scheduler of second order makes two calls a step, but for the last.
            step = self.composer.plan(call / self._timesteps, call // self.pipe.scheduler.order)
            self._step = step, None
        elif self._step is None:
            raise LoratorioError(
                "the pipeline asks for the negative prompt's rows before the prompt's, which are needed to weigh them; "
                "it is not supported."
            )
        step, weights = self._step
        if step is None:
            return self._merged_rows(tree, division)
        images = len(conditional) or len(unconditional)
        sampler_call = self.composer.call(step, torch.arange(images, device=hidden.device))
        numbers = iter(range(images))
        sampler_call.evaluate(
            [UNCONDITIONAL if row.unconditional else next(numbers) for row in division],
            lambda model, rows: self._inputs(model, tree, division, rows),
        )
        space = self._space(tree, conditional or unconditional)
        composed = self.composer.finish(sampler_call, space, weights, continues=not conditional)
        self._step = step, composed.weights
        parts = [part for part in (composed.conditional, composed.unconditional) if part is not None]
        prediction = parts[0].new_empty(len(division), *parts[0].shape[1:])
        for rows, part in ((conditional, composed.conditional), (unconditional, composed.unconditional)):
            if rows:
                prediction[rows] = part
        return prediction

    def _space(self, tree: dict, rows: list[int]) -> NoiseSpace:
        """Of these rows of a call."""
        latents = tree[self.denoiser.latents][rows]
        if self.denoiser.has_alphas:
            latents = latents[:, : self.model.config.out_channels]
        return noise_space(self.pipe.scheduler, latents, tree["timestep"][rows[0]])

    def _inputs(self, model: int, tree: dict, division: Sequence[Row], rows: Rows) -> dict:
        """A model's inputs, with its own text, for `rows` of a call."""
        own = own_rows(self.texts, model, division)
        if own is None:
            return take_rows(tree, rows)
        tree = self.denoiser.with_text(self.controlnets.own(model, own, division, tree), *own)
        return take_rows(tree, rows)

    def _merged_rows(self, tree: dict, division: Sequence[Row]) -> torch.Tensor:
        """diffusers' ordinary merge, for the steps outside of start and end."""
        self.tally.rows += len(division)
        with self.merged(self.merged_adapters):
            return self.run(self._inputs(MERGED, tree, division, slice(len(division))))

    @property
    def _timesteps(self) -> int:
        """The calls of the denoiser in a sampling, one a timestep."""
        return getattr(self.pipe, "num_timesteps", None) or len(self.pipe.scheduler.timesteps)

    def _require_no_other_loras(self) -> None:
        """Raises LoratorioError where the pipeline's LoRAs were switched on within the block."""
        if any(isinstance(layer, LoraLayer) and not layer.disable_adapters for layer in self.model.modules()):
            raise LoratorioError(
                "the pipeline's LoRAs were changed within the block, so that they act on all that is composed; load "
                "them and set them before it."
            )

    # The engine's ModelHost

    def run(self, inputs: dict) -> torch.Tensor:
        return self.denoiser.run(self.forward, inputs)

    def fits(self, rows: int) -> bool:
        """diffusers makes no estimate: what does not fit shows when memory runs out."""
        return True

    @contextmanager
    def merged(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        activate(self.pipe, self.component, adapters)
        try:
            yield
        finally:
            activate(self.pipe, self.component, ())

    def same_length(self, model: int) -> bool:
        """diffusers makes the texts of prompt and negative prompt equally long."""
        return True

    def goes_apart(self) -> None:
        logging.warning(
            told(
                "something makes other batches of what the denoiser is asked for, so that the base and each LoRA are "
                "evaluated in calls of their own, which takes longer."
            )
        )


def _with_words(asked: dict, words: str) -> dict:
    """The arguments of `encode_prompt` with words appended to the prompts that each text encoder reads."""

    def longer(prompt: str | list[str]) -> str | list[str]:
        return appended(prompt, words) if isinstance(prompt, str) else [appended(one, words) for one in prompt]

    prompts = {name: asked[name] for name in ("prompt", "prompt_2", "prompt_3") if asked.get(name) is not None}
    return {**asked, **{name: longer(prompt) for name, prompt in prompts.items()}} if words else asked


def _calling_pipeline() -> DiffusionPipeline | None:
    """The pipeline whose call this is a part of: pipelines can share a denoiser, which does not tell them apart."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and isinstance(owner := frame.f_locals.get("self"), DiffusionPipeline):
            return owner
        frame = frame.f_back
    return None
