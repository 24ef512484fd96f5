"""Images of a diffusers pipeline, composed: from the text encoder to the single UNet call."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput

from lib_loratorio.engine.composer import Composer, Tally
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.sampler_call import UNCONDITIONAL, Rows
from lib_loratorio.engine.trees import take_rows
from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.diffusers.loader import Lora, activate, bank_of, loaded, text_encoders
from lib_loratorio.hosts.diffusers.noise import check_scheduler, noise_space
from lib_loratorio.loras.adapter import BASE, Adapter, numbered_names
from lib_loratorio.loras.helpers import place_advice, role_advice
from lib_loratorio.loras.mask_image import numbers_in, read_image
from lib_loratorio.loras.region import WHOLE, Box, seen_boxes
from lib_loratorio.loras.text import readings
from lib_loratorio.loras.trigger_words import appended, is_named, joined, trigger_words
from lib_loratorio.settings import Settings

MERGED = -2
"""The model with diffusers' own merge, next to `BASE` and the adapters' numbers."""

DENSE_BUDGET = 2**30
"""Bytes that cached dense deltas may take."""

UNET_SIGNATURE = inspect.signature(UNet2DConditionModel.forward)


@contextmanager
def composed(
    pipe, loras: Sequence[Lora], settings: Settings | None = None, dense_budget: int = DENSE_BUDGET
) -> Iterator[Composition]:
    """Within the block, ordinary calls of `pipe` make images composed of these LoRAs.

    Afterwards the pipeline is what it was, whatever ended the block.

    Args:
        pipe: a StableDiffusionPipeline or StableDiffusionXLPipeline.
        loras: `(path, strength)` pairs; what `Lora` says.
        settings: defaults without; `enabled` plays no part here.
        dense_budget: bytes that deltas without low-rank factors may take as a cache.

    Raises LoratorioError for pipelines, schedulers and LoRA files that cannot be composed.
    """
    settings = settings or Settings()
    check_pipeline(pipe)
    if settings.traits.apart:
        check_scheduler(pipe.scheduler)
    with loaded(pipe, loras) as adapters:
        if settings.traits.apart and (advice := role_advice(adapters)):
            logging.warning(told(advice))
        if advice := place_advice(settings, adapters):
            logging.warning(told(advice))
        composition = Composition(pipe, adapters, settings, dense_budget)
        with composition.running():
            yield composition


def check_pipeline(pipe) -> None:
    """Raises LoratorioError for pipelines that are not supported."""
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise LoratorioError(
            f"{type(pipe).__name__} is not supported; use a StableDiffusionPipeline or a "
            "StableDiffusionXLPipeline (SD 1.x, SD 2.x, SDXL)."
        )
    if not isinstance(pipe.unet, UNet2DConditionModel):
        raise LoratorioError(
            "a compiled UNet is not supported; load LoRAs first and compile without LoRAtorio, or leave it uncompiled."
        )


class Composition:
    """The images of one `composed` block; the engine's `ModelHost`.

    About the pipeline's latest call: calls: of the denoiser, as the pipeline counts them. tally: what was evaluated.
    maps: the weights, their mean None where nothing was weighed by patch. composer: None with the method merge.
    """

    def __init__(self, pipe, adapters: Sequence[Adapter], settings: Settings, dense_budget: int = DENSE_BUDGET):
        self.pipe, self.adapters, self.settings = pipe, adapters, settings
        # A pool is a choice to compose from: where nothing is composed it plays no part.
        self.merged_adapters = [adapter for adapter in adapters if not adapter.pooled]
        self.bank = bank_of(pipe.unet, adapters, dense_budget) if settings.traits.apart else None
        self.painted = None
        if settings.mask and settings.traits.apart:
            self.painted = Painted(torch.from_numpy(numbers_in(read_image(settings.mask), self.labels)))
        self.texts: dict[int, tuple] = {}
        self.encode_prompt, self.forward = pipe.encode_prompt, pipe.unet.forward
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

    @property
    def labels(self) -> list[str]:
        """The names of the adapters that compete, as the maps have them; a repeated one is numbered."""
        return numbered_names([adapter for adapter in self.adapters if adapter.competes])

    @property
    def regions(self) -> list[list[Box]]:
        """The boxes that these may be in; none for everywhere."""
        return [seen_boxes(adapter.tag.region, WHOLE) for adapter in self.adapters if adapter.competes]

    @property
    def chosen(self) -> str:
        """Which adapters were evaluated from which step on in the latest call; empty without a pool."""
        return self.composer.chosen if self.composer else ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wrappers and hooks in place; on leaving, the pipeline's own calls are back."""
        pipe, unet = self.pipe, self.pipe.unet
        self.encode_prompt, self.forward = pipe.encode_prompt, unet.forward
        before = [
            (owner, name, owner.__dict__.get(name)) for owner, name in ((pipe, "encode_prompt"), (unet, "forward"))
        ]
        try:
            pipe.encode_prompt = self._encode_prompt
            if self.bank is None:
                activate(unet, self.merged_adapters)
                unet.forward = self._counted
                yield
            else:
                activate(unet, ())
                unet.forward = self._forward
                with self.bank.attached():
                    yield
        finally:
            for owner, name, value in before:
                owner.__dict__.pop(name, None)
                if value is not None:
                    owner.__dict__[name] = value

    # Text

    def _encode_prompt(self, *args, **kwargs) -> tuple:
        """The pipeline asks for its text conditions: once in each of its calls, before the sampling."""
        self._begin()
        self.texts = {}
        if self.composer:
            check_scheduler(self.pipe.scheduler)
        asked = inspect.signature(self.encode_prompt).bind(*args, **kwargs).arguments
        if self.composer and self.settings.pool_mode == "named":
            self.composer.planner.absent = self._unnamed(asked.get("prompt"))
        triggers = [trigger_words(adapter.path) if self.settings.trigger_words else "" for adapter in self.adapters]
        words = [joined(words, adapter.tag.words) for words, adapter in zip(triggers, self.adapters)]
        own = readings(self.adapters, words) if self.composer and self.settings.text_encoder == "own" else {}
        if not own:
            return self._encoded_with(self.merged_adapters, asked)
        if asked.get("prompt") is None:
            raise LoratorioError(
                "prompt_embeds were read by one text encoder, but some of these LoRAs read the prompt "
                "with their own, or with trigger words; "
                "give a prompt instead, or text_encoder='merged' in the settings."
            )
        texts = {
            model: self._encoded_with(adapters, {**asked, "prompt": _with_words(asked["prompt"], word)})
            for model, (adapters, word) in own.items()
        }
        if self.settings.start > 0 or self.settings.end < 1:
            texts[MERGED] = self._encoded_with(self.merged_adapters, asked)
        of_base = texts.pop(BASE)
        self.texts = texts
        return of_base

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
            activate(encoder, adapters)
        return self.encode_prompt(**asked)

    def _with_own_text(self, model: int, inputs: dict, rows: Rows) -> dict:
        """A model's inputs with its own text for `rows` of a batch."""
        if model not in self.texts:
            return inputs
        guided = self.pipe.do_classifier_free_guidance

        def rows_of(cond: torch.Tensor, uncond: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return (torch.cat([uncond, cond]) if guided else cond)[rows].to(like)

        cond, uncond, *pooled = self.texts[model]
        inputs = {**inputs, "encoder_hidden_states": rows_of(cond, uncond, inputs["encoder_hidden_states"])}
        if pooled:
            added = inputs["added_cond_kwargs"]
            inputs["added_cond_kwargs"] = {**added, "text_embeds": rows_of(*pooled, added["text_embeds"])}
        return inputs

    # One UNet call

    def _counted(self, sample: torch.Tensor, *args, **kwargs) -> Any:
        self.calls += 1
        self.tally.rows += sample.shape[0]
        return self.forward(sample, *args, **kwargs)

    def _forward(self, *args, **kwargs) -> Any:
        """The UNet's forward, as the pipeline calls it: rows `[unconditional of each picture, conditional of each]`, or
        conditional ones only.
        """
        inputs = dict(UNET_SIGNATURE.bind(self.pipe.unet, *args, **kwargs).arguments)
        inputs.pop("self")
        return_dict = inputs.pop("return_dict", True)
        _refuse_attention_kwargs(inputs.pop("cross_attention_kwargs", None))
        prediction = self._prediction(inputs)
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _prediction(self, inputs: dict) -> torch.Tensor:
        sample, timestep = inputs["sample"], torch.as_tensor(inputs["timestep"], device=inputs["sample"].device)
        call, self.calls = self.calls, self.calls + 1
        # A scheduler of second order makes two calls a step, but for the last.
        step = self.composer.plan(call / self.pipe.num_timesteps, call // self.pipe.scheduler.order)
        rows = sample.shape[0]
        unconditional = rows // 2 if self.pipe.do_classifier_free_guidance else 0
        images = rows - unconditional
        # The timestep becomes rows too, so that it follows them.
        inputs = {**inputs, "timestep": timestep.expand(rows)}
        if step is None:
            return self._merged_rows(inputs, rows)
        sampler_call = self.composer.call(step, torch.arange(images, device=sample.device))
        sampler_call.evaluate(
            [UNCONDITIONAL] * unconditional + list(range(images)),
            lambda model, rows: self._with_own_text(model, take_rows(inputs, rows), rows),
        )
        latents = inputs["sample"][unconditional:, : self.pipe.unet.config.out_channels]
        space = noise_space(self.pipe.scheduler, latents, timestep.flatten()[0])
        composed = self.composer.finish(sampler_call, space)
        if composed.unconditional is None:
            return composed.conditional
        return torch.cat([composed.unconditional, composed.conditional])

    def _merged_rows(self, inputs: dict, rows: int) -> torch.Tensor:
        """diffusers' ordinary merge, for the steps outside of start and end."""
        self.tally.rows += rows
        with self.merged(self.merged_adapters):
            return self.run(self._with_own_text(MERGED, inputs, slice(rows)))

    # The engine's ModelHost

    def run(self, inputs: dict) -> torch.Tensor:
        return self.forward(**inputs, return_dict=False)[0]

    def fits(self, rows: int) -> bool:
        """diffusers makes no estimate: what does not fit shows when memory runs out."""
        return True

    @contextmanager
    def merged(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        activate(self.pipe.unet, adapters)
        try:
            yield
        finally:
            activate(self.pipe.unet, ())

    def same_length(self, model: int) -> bool:
        """diffusers makes the texts of prompt and negative prompt equally long."""
        return True

    def goes_apart(self) -> None:
        logging.warning(
            told(
                "something makes other batches of what the UNet is asked for, so that the base and each LoRA are "
                "evaluated in UNet calls of their own, which takes longer."
            )
        )


def _with_words(prompt: str | list[str], words: str) -> str | list[str]:
    return appended(prompt, words) if isinstance(prompt, str) else [appended(one, words) for one in prompt]


def _refuse_attention_kwargs(kwargs: dict | None) -> None:
    if kwargs and (set(kwargs) != {"scale"} or kwargs["scale"] != 1):
        raise LoratorioError("cross_attention_kwargs are not supported; give each LoRA its strength instead.")
