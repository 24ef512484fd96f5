"""One pass of sampling, composed: from the request to the single sampler call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from modules import prompt_parser

from lib_loratorio.engine.evaluation import Evaluation, Evaluator, take_rows
from lib_loratorio.engine.methods import BASE
from lib_loratorio.engine.sampler_call import SamplerCall
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.forge.deltas import bank_of
from lib_loratorio.hosts.forge.loader import Adapter, adapters_of, backend
from lib_loratorio.hosts.forge.rows import HostBatch, looks_across_rows
from lib_loratorio.hosts.forge.text import text_conditions
from lib_loratorio.hosts.webui import messages, session
from lib_loratorio.settings import Settings

TAG = "loratorio"
"""An entry of a condition's `model_conds` that tells in the wrapper's batch which condition a row belongs to."""

UNCONDITIONAL = -1

_current: Session | None = None


def stop(p, message: str) -> None:
    """Lets the sampling about to start fail with a message, and not with whatever fails when the host merges the
    networks for it.
    """
    p.sd_model.forge_objects.unet = p.sd_model.forge_objects_original.unet
    messages.stop(p, message)


def declined(p) -> str | None:
    """Why this pass cannot be composed, or None."""
    if p.disable_extra_networks:
        return "LoRAs are switched off for this generation"
    if getattr(p.sd_model, "cond_stage_key", None) == "edit" or getattr(p.sd_model, "is_sd_edit", False):
        return "InstructPix2Pix models are not supported"
    return backend.declined(p.sd_model)


def prepare(p, settings: Settings) -> None:
    """Arranges that the sampling about to start is composed. Raises LoratorioError."""
    session.prepare(p, settings, declined(p), adapters_of, Session)


class Session(session.Session):
    """One pass of sampling, composed.

    From here on until the end of the sampling the host's UNet patcher is a clone without the networks' patches, with
    our wrapper around whatever wrapper there was.
    """

    def __init__(self, p, settings: Settings, adapters: Sequence[Adapter]):
        super().__init__(p, settings, adapters)
        self.sd_model = p.sd_model
        self.former = p.sd_model.forge_objects.unet
        self.model = self.former.model
        self.texts = text_conditions(p, adapters, settings.trigger_words) if settings.text_encoder == "own" else {}
        self.base = backend.without_networks(
            self.former, p.sd_model.forge_objects_after_applying_lora.unet, p.sd_model.forge_objects_original.unet
        )
        backend.apply(self.base)
        self.weights = self.base
        self.bank = bank_of(p, self.model, adapters)
        self.evaluator = Evaluator(self._model_rows, self.bank, settings.adapters_per_pass, self._fits)
        self.wrapper = self.base.model_options.get("model_function_wrapper")
        self.base.set_model_unet_function_wrapper(_wrapper_around(self.wrapper))
        backend.install(self.base, _calc)
        p.sd_model.forge_objects.unet = self.base
        self.plan = self.call = self.patch_weights = None
        self.is_composed, self.base_text, self.tagged = False, ([], None), []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything in place for the time of the sampling; everything back afterwards."""
        global _current
        try:
            with self.bank.attached(), backend.bracket(_calc):
                _current = self
                yield
            self.report()
        finally:
            self._take_back()
            _current = self.plan = self.call = None
            if self.sd_model.forge_objects.unet is self.base:
                self.sd_model.forge_objects.unet = self.former

    # One sampler call

    def begin(self, params) -> None:
        """on_cfg_denoiser: what this call is to be, and the text for it."""
        self._take_back()
        self.plan = self.patch_weights = None
        self.is_composed = False
        if self.p.sd_model.forge_objects.unet.model is not self.model:
            return self.leave_to_refiner()
        self.step_method, plan, self.everywhere = self.step()
        self._set_weights(self.former if plan is None else self.base)
        if plan is None:
            return None
        self.own = {}
        for number, (cond, uncond) in self.texts.items():
            composition, cond = prompt_parser.reconstruct_multicond_batch(cond, self.denoiser.step)
            uncond = (
                None if params.text_uncond is None else prompt_parser.reconstruct_cond_batch(uncond, self.denoiser.step)
            )
            if number == BASE:
                params.text_cond, params.text_uncond = cond, uncond
            else:
                self.own[number] = (
                    backend.compile_weighted_conditions(cond, composition),
                    backend.compile_conditions(uncond),
                )
        self.own_shown, self.plan = self.own, plan
        return None

    def _set_weights(self, patcher: Any) -> None:
        """The model's weights from here on: outside the composed steps those with all networks, as the host merges
        them.
        """
        if self.weights is not patcher:
            backend.apply(patcher)
            self.weights = patcher

    def calc(
        self, original: Callable, model, cond, uncond, x: torch.Tensor, timestep: torch.Tensor, model_options: dict
    ) -> tuple:
        """In place of the host's evaluation of conditional and unconditional rows: the host's own, then composed."""
        self.raise_error()
        if self.plan is None or self.is_composed or model is not self.model or not cond:
            return original(model, cond, uncond, x, timestep, model_options)
        _check(cond, uncond, self.own)
        areas = [backend.area_and_mult(c, x, timestep) for c in cond]
        places = [place for place, area in enumerate(areas) if area is not None]
        self.shown = [(cond[place], areas[place]) for place in places]
        self.own_shown = {
            model: ([conditions[place] for place in places], unconditional)
            for model, (conditions, unconditional) in self.own.items()
        }
        pictures = x.shape[0]
        picture_of = torch.arange(pictures, device=x.device).repeat(len(self.shown))
        self.base_text = [c for c, _ in self.shown], uncond
        self.call = self._sampler_call(picture_of)
        tagged = [_tagged(c, number, x) for number, (c, _) in enumerate(self.shown)]
        unconditional = uncond and [_tagged(uncond[0], UNCONDITIONAL, x)]
        self._hand_out([*tagged, *(unconditional or ())], [*self.base_text[0], *(uncond or ())])
        try:
            _, unconditional = original(model, tagged, unconditional, x, timestep, model_options)
            if not self.call.evaluated:
                raise LoratorioError(
                    "another extension evaluates the model in its own way (its model_function_wrapper "
                    "calls no other). "
                    "Switch it off, or LoRAtorio."
                )
            composed = self.call.combine(x.repeat(len(self.shown), 1, 1, 1), noise_unit=-1 / timestep.view(-1, 1, 1, 1))
            self.count(self.call, composed)
        finally:
            self.call = None
        self.patch_weights, self.is_composed = composed.weights, True
        conditional = _blended(composed.conditional.split(pictures), [area.mult for _, area in self.shown])
        return conditional, unconditional if composed.unconditional is None else composed.unconditional

    def _hand_out(self, tagged: Sequence[dict], conditions: Sequence[dict]) -> None:
        """Tags the host's own conditions, too, with which other extensions ask for further evaluations."""
        for condition, copy in zip(conditions, tagged):
            condition["model_conds"] = copy["model_conds"]
        self.tagged = conditions

    def _take_back(self) -> None:
        for condition in self.tagged:
            condition["model_conds"].pop(TAG, None)
        self.tagged = []

    def evaluate(self, apply_model: Callable, args: dict) -> torch.Tensor:
        """In place of the model: the rows that the host asks for, of every model of the plan."""
        self.raise_error()
        c = dict(args["c"])
        tags = c.pop(TAG, None)
        self.apply_model = apply_model
        if self.plan is None:
            return self._through({**args, "c": c})
        self.batch = HostBatch.of(args, c)
        numbers = None if tags is None else tags[:: self.batch.pictures].tolist()
        if self.call and numbers:
            predictions, rows = self._chunks(
                self.call, numbers, places=sorted(number for number in numbers if number != UNCONDITIONAL)
            )
            return predictions[rows.argsort()]
        return self._of_another_extension(numbers or [None] * len(self.batch.flags))

    def _sampler_call(self, picture_of: torch.Tensor) -> SamplerCall:
        verify = self._verify if self.settings.verify else None
        return SamplerCall(
            self.step_method, self.plan, self.evaluator, picture_of, verify=verify, everywhere=self.everywhere
        )

    def _chunks(
        self, call: SamplerCall, numbers: list[int], places: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluates the batch for `call`, conditions first, and tells which rows of the batch the predictions are for.

        `numbers` are the chunks' conditions, or `UNCONDITIONAL`; `places` are the conditions' places in the whole call.
        """
        batch = self.batch
        order = sorted(range(len(numbers)), key=lambda chunk: (numbers[chunk] == UNCONDITIONAL, numbers[chunk]))
        rows, numbers = batch.rows_of(order), [numbers[chunk] for chunk in order]
        base = batch.taken(rows)
        own = {model: self._with_own_text(model, base, numbers) for model in self.own}
        predictions = call.evaluate(
            len(places) * batch.pictures,
            (len(numbers) - len(places)) * batch.pictures,
            lambda model, span: take_rows(own.get(model, base), span),
            [place * batch.pictures + row for place in places for row in range(batch.pictures)],
        )
        return predictions, rows

    def _of_another_extension(self, tags: Sequence[int | None]) -> torch.Tensor:
        """Rows that the host's own sampling step does not ask for, such as a perturbed prediction to move away from.

        They are composed with the step's weights, so that what they are compared with differs in nothing else.
        """
        batch = self.batch
        numbers = [self._condition_of(chunk, tag) for chunk, tag in enumerate(tags)]
        conditions = sorted(number for number in numbers if number != UNCONDITIONAL)
        if not conditions and not self.is_composed:
            raise LoratorioError(
                "another extension evaluates the negative prompt alone, before the step's own "
                "evaluation. Switch it off, or LoRAtorio."
            )
        picture_of = torch.arange(batch.pictures, device=batch.tree["x"].device).repeat(
            len(conditions or self.base_text[0])
        )
        call = self._sampler_call(picture_of)
        _, rows = self._chunks(call, numbers, places=range(len(conditions)))
        noise_unit = -1 / batch.tree["timestep"][: batch.pictures].view(-1, 1, 1, 1)
        composed = call.combine(
            batch.tree["x"][rows][: len(conditions) * batch.pictures],
            noise_unit=noise_unit,
            weights=self._weights_of(conditions),
        )
        return torch.cat([part for part in composed[:2] if part is not None])[rows.argsort()]

    def _weights_of(self, conditions: Sequence[int]) -> torch.Tensor | None:
        """The step's patch weights for these conditions, or for the negative prompt where there are none; None for
        others than the step's.
        """
        if self.patch_weights is None or not conditions:
            return self.patch_weights
        by_condition = self.patch_weights.split(self.batch.pictures, 1)
        return (
            torch.cat([by_condition[number] for number in conditions], 1)
            if conditions[-1] < len(by_condition)
            else None
        )

    def _condition_of(self, chunk: int, tag: int | None) -> int:
        """Which of the step's conditions the text of a chunk is, of several alike the tagged one; other texts by what
        the batch says they are.
        """
        text = self.batch.tree["c"].get("c_crossattn")
        conditions, unconditional = self.base_text
        if text is not None:
            text = text[self.batch.rows_of([chunk])]
            known = [*enumerate(conditions), *((UNCONDITIONAL, u) for u in unconditional or ())]
            alike = [number for number, condition in known if _same_text(text, condition["cross_attn"])]
            if alike:
                return tag if tag in alike else alike[0]
        return UNCONDITIONAL if self.batch.flags[chunk] else sum(flag == 0 for flag in self.batch.flags[:chunk])

    # The model

    def _through(self, args: dict) -> torch.Tensor:
        return _through(self.wrapper, self.apply_model, args)

    def _model_rows(self, tree: dict) -> torch.Tensor:
        predictions = self._through(self.batch.call(tree))
        return predictions.clone() if self.wrapper else predictions  # some wrappers return the same memory in each call

    def _with_own_text(self, model: int, base: dict, numbers: Sequence[int]) -> dict:
        """A batch's tree with a model's own text conditions, and what ControlNet makes of them."""
        conditions, unconditional = self.own_shown[model]
        x = base["x"][: self.batch.pictures]
        wanted = [unconditional[0] if number == UNCONDITIONAL else conditions[number] for number in numbers]
        own = backend.cond_cat(
            [
                backend.area_and_mult(condition, x, base["timestep"][: self.batch.pictures]).conditioning
                for condition in wanted
            ]
        )
        tree = {**base, "c": {**base["c"], **own}}
        control = self.batch.fixed.get("control_model")
        if control is not None:
            args = self.batch.call(tree)
            c = {key: value for key, value in args["c"].items() if key not in ("control", "control_model")}
            with _described_to(control, c["transformer_options"]):
                tree["c"]["control"] = control.get_control(
                    args["input"], args["timestep"], c, len(args["cond_or_uncond"])
                )
        return tree

    def _fits(self, rows: int) -> bool:
        """Whether several models' rows can be evaluated in one call.

        An earlier wrapper may make other batches of the rows, as tiles do: it gets one model's at a time.
        """
        if self.wrapper or looks_across_rows(self.batch.fixed.get("transformer_options", {})):
            return False
        x = self.batch.tree["x"]
        return backend.fits(self.model, (rows, *x.shape[1:]), x.device)

    # Verification

    def _verify(self, requests: Sequence[Evaluation], predictions: Sequence[torch.Tensor]) -> None:
        """Compares predictions with the host's own merge of each adapter alone, and with the bare model."""
        original = self.sd_model.forge_objects_original.unet
        try:
            for request, prediction in zip(requests, predictions):
                alone = self.base
                for number in request.adapters:
                    alone = backend.with_patches(alone, self.adapters[number].unet, original)
                backend.apply(alone)
                self.verified.add(prediction, self._model_rows(request.inputs))
        finally:
            backend.apply(self.base)


def _tagged(condition: dict, number: int, x: torch.Tensor) -> dict:
    tag = backend.Condition(torch.tensor([number], device=x.device))
    return {**condition, "model_conds": {**condition["model_conds"], TAG: tag}}


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


def _check(cond: list[dict], uncond: list[dict] | None, own: Mapping[int, tuple]) -> None:
    """Raises LoratorioError for conditions that cannot be composed."""
    every = [*cond, *(uncond or ())]
    if (
        any("area" in condition or "default" in condition or condition.get("hooks") is not None for condition in every)
        or len(uncond or [1]) != 1
    ):
        raise LoratorioError(
            "this prompt is divided by areas, or has several negative prompts, in a way that LoRAtorio "
            "cannot compose. "
            "Switch off the extension that does so, or LoRAtorio."
        )
    if any(len(conditions) != len(cond) for conditions, _ in own.values()):
        raise LoratorioError(
            "another extension adds prompts that LoRAs with a text encoder of their own know nothing of. "
            "Switch it off, or set LoRAtorio's text encoder to 'merged'."
        )


def _blended(predictions: Sequence[torch.Tensor], strengths: Sequence[torch.Tensor]) -> torch.Tensor:
    """The host's mean of several conditions' predictions, each by its strength and mask."""
    total, count = torch.zeros_like(predictions[0]), torch.full_like(predictions[0], 1e-37)
    for prediction, strength in zip(predictions, strengths):
        total += prediction * strength
        count += strength
    return total / count


def _same_text(text: torch.Tensor, condition: torch.Tensor) -> bool:
    """Whether a batch's text is this condition's, which the host may have repeated for the sake of equal lengths."""
    tokens = condition.shape[1]
    if text.shape[-1] != condition.shape[-1] or text.shape[1] < tokens:
        return False
    return torch.equal(text[:, :tokens].to(condition), condition.expand(text.shape[0], -1, -1))


# Plain functions, as the host copies a patcher's options deeply; and without a running session the host's own.


def _wrapper_around(former: Callable | None) -> Callable:
    def wrapper(apply_model: Callable, args: dict) -> torch.Tensor:
        return _current.evaluate(apply_model, args) if _current else _through(former, apply_model, args)

    return wrapper


def _through(wrapper: Callable | None, apply_model: Callable, args: dict) -> torch.Tensor:
    return wrapper(apply_model, args) if wrapper else apply_model(args["input"], args["timestep"], **args["c"])


def _calc(original: Callable, model, cond, uncond, x, timestep, model_options) -> tuple:
    return (
        _current.calc(original, model, cond, uncond, x, timestep, model_options)
        if _current
        else original(model, cond, uncond, x, timestep, model_options)
    )


def on_cfg_denoiser(params) -> None:
    if _current and params.denoiser is _current.denoiser:
        with _current.kept():
            _current.begin(params)


def on_cfg_denoised(params) -> None:
    """These hosts never call it."""
