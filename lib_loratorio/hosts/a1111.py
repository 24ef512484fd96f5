"""AUTOMATIC1111's WebUI 1.10.

The bracket of a composition is the sampler's `launch_sampling`, which every sampler goes through once a
pass: what is changed is put back in its `finally`, also after an interruption. Within it, each sampler
call is: `on_cfg_denoiser` takes the networks out and puts the base's text conditions in; the model's
`forward` evaluates the rows the host asks for, of the base and of every adapter; `on_cfg_denoised` writes
the composed predictions where the guidance reads them, and puts the networks back.

The host merges networks lazily, in each layer's forward: with its list of loaded networks empty, a
forward restores the base's weights first. That is why the list is emptied, and only during the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import networks
import torch
import torch.nn.functional as F
from modules import prompt_parser, sd_samplers, sd_samplers_timesteps, sd_unet, shared

from lib_loratorio.adapters import AdapterBank, Dense, LowRank, fits_low_rank
from lib_loratorio.conditioning import ConditionCache
from lib_loratorio.evaluation import Evaluator, Request, take_rows
from lib_loratorio.hosts.base import LoratorioError
from lib_loratorio.methods import BASE, METHODS
from lib_loratorio.settings import Settings
from lib_loratorio.step import SamplerCall

UNET = "diffusion_model"
"""How the names begin that the host gives the UNet's layers; all others are the text encoders'."""

NOTE = "LoRAtorio note"
VERIFY = "LoRAtorio verify"

_conditions = ConditionCache()
_current: Session | None = None


# What the user is told


def note(p, message: str) -> None:
    """Puts a message on the page and into the API's answer; the generation goes on."""
    p.comment(message)
    notes = p.extra_generation_params.get(NOTE)
    if message not in (notes or ""):
        p.extra_generation_params[NOTE] = f"{notes} {message}" if notes else message
    _popup(message)


def stop(p, message: str) -> None:
    """Lets the sampling about to start fail with a message: the host ignores what callbacks raise."""

    def fail(launch_sampling, steps, func):
        raise LoratorioError(message)

    _popup(message)
    _instead_of_sampling(p.sampler, fail)


def _instead_of_sampling(sampler, replacement) -> None:
    """Has the sampler's next sampling done by `replacement(launch_sampling, steps, func)`, that one only."""
    sampler.__dict__.pop("launch_sampling", None)
    launch_sampling = sampler.launch_sampling

    def launch(steps, func):
        del sampler.launch_sampling
        return replacement(launch_sampling, steps, func)

    sampler.launch_sampling = launch


def _popup(message: str) -> None:
    import gradio

    gradio.Warning(message)


# Networks


@dataclass(frozen=True)
class Adapter:
    """A network as the prompt asks for it. The host's Network object holds the strengths."""

    network: Any
    name: str
    te: float
    unet: float
    dyn: int | None

    @classmethod
    def of(cls, network) -> Adapter:
        return cls(network, network.name, network.te_multiplier, network.unet_multiplier, network.dyn_dim)

    @property
    def key(self) -> tuple:
        return self.name, self.network.network_on_disk.filename, self.network.mtime, self.te, self.unet, self.dyn

    @property
    def changes_text(self) -> bool:
        layers = any(not name.startswith(UNET) for name in self.network.modules)
        return bool(self.network.bundle_embeddings) or (layers and self.te != 0)

    @property
    def changes_unet(self) -> bool:
        return self.unet != 0 and any(name.startswith(UNET) for name in self.network.modules)


def requested_adapters(p) -> list[Adapter]:
    """The adapters of this pass, without those of strength 0. Raises LoratorioError for a missing one."""
    data = (p.hr_extra_network_data if p.is_hr_pass else p.extra_network_data) or {}
    loaded = {network.name for network in networks.loaded_networks}
    _require(_names(data), lambda name: name in loaded)
    if not p.is_hr_pass:
        _require(_names(getattr(p, "hr_extra_network_data", None) or {}), _is_available)
    adapters = [Adapter.of(network) for network in networks.loaded_networks]
    for adapter in adapters:
        if not adapter.network.modules and not adapter.network.bundle_embeddings:
            raise LoratorioError(
                f"LoRAtorio: the LoRA '{adapter.name}' matches nothing in this model; "
                "it was made for another kind of model. Take it out of the prompt or change the checkpoint."
            )
    return [adapter for adapter in adapters if adapter.changes_unet or adapter.changes_text]


def _names(extra_network_data) -> list[str]:
    return [params.positional[0] for kind in ("lora", "lyco") for params in extra_network_data.get(kind, []) if params.positional]


def _is_available(name: str) -> bool:
    return name in networks.available_network_aliases or name in networks.available_networks


def _require(names: Sequence[str], present) -> None:
    missing = [name for name in names if not present(name)]
    if missing:
        raise LoratorioError(
            f"LoRAtorio: LoRA not found or not readable: {', '.join(missing)}. "
            "Check the names in the prompt, or refresh the list of LoRAs if a file is new."
        )


@contextmanager
def _loaded(adapters: Sequence[Adapter]) -> Iterator[None]:
    """The given networks loaded by the host's own loader for the time of the block, then the former ones."""
    former = [Adapter.of(network) for network in networks.loaded_networks]
    try:
        _load(adapters)
        yield
    finally:
        _load(former)


def _load(adapters: Sequence[Adapter]) -> None:
    # The loader reads a file anew unless the network is in its memory, whose default size is 0.
    memory = dict(networks.networks_in_memory)
    networks.networks_in_memory.update({adapter.name: adapter.network for adapter in adapters})
    try:
        networks.load_networks(
            [adapter.name for adapter in adapters],
            [adapter.te for adapter in adapters],
            [adapter.unet for adapter in adapters],
            [adapter.dyn for adapter in adapters],
        )
    finally:
        networks.networks_in_memory.clear()
        networks.networks_in_memory.update(memory)


def _restore_base() -> None:
    """Takes a former request's merge out of the weights, by the host's own rule, for every layer."""
    loaded = list(networks.loaded_networks)
    networks.loaded_networks.clear()
    try:
        for layer in shared.sd_model.network_layer_mapping.values():
            networks.network_apply_weights(layer)
    finally:
        networks.loaded_networks[:] = loaded


# Deltas


def _deltas(adapter: Adapter) -> dict[str, LowRank | Dense]:
    layers = shared.sd_model.network_layer_mapping
    if not adapter.changes_unet:
        return {}
    return {name: _delta(module, layers[name]) for name, module in adapter.network.modules.items() if name.startswith(UNET) and name in layers}


def _delta(module, layer: torch.nn.Module) -> LowRank | Dense:
    if hasattr(module, "up_model") and module.bias is None and module.dora_scale is None:
        low_rank = _low_rank(module, layer)
        if fits_low_rank(layer, low_rank):
            return low_rank
    return Dense(lambda: _updown(module, layer))


def _low_rank(module, layer: torch.nn.Module) -> LowRank:
    down, up = module.down_model.weight.detach(), module.up_model.weight.detach().flatten(1)
    dtype = torch.promote_types(down.dtype, torch.float32)
    down, up = down.to(dtype), up.to(dtype)
    if module.mid_model is not None:
        down = torch.einsum("nm...,mj->nj...", module.mid_model.weight.detach().to(dtype), down.flatten(1))
    elif module.network.dyn_dim is not None:
        down, up = down[: module.network.dyn_dim], up[:, : module.network.dyn_dim]
    return LowRank(_for_inpainting(down, layer), up * (module.calc_scale() * module.multiplier()))


def _updown(module, layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the host's merge would change, its rounding to the file's and the model's precision included."""
    weight = getattr(layer, "fp16_weight", None)  # fp8 models keep a copy of better precision for this
    weight = layer.weight if weight is None else weight.to(layer.weight.device)
    delta, bias = module.calc_updown(weight)
    merged = (weight.to(delta.dtype) + _for_inpainting(delta, layer)).to(layer.weight.dtype)
    dtype = torch.float64 if merged.dtype == torch.float64 else torch.float32
    return merged.to(dtype) - layer.weight.to(dtype), bias


def _for_inpainting(delta: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """Zeros for the mask and image channels that an inpainting model's first layer has more."""
    if layer.weight.dim() == 4 and layer.weight.shape[1] == 9 and delta.dim() == 4 and delta.shape[1] == 4:
        return F.pad(delta, (0, 0, 0, 0, 0, 5))
    return delta


def _bank(p, adapters: Sequence[Adapter]) -> AdapterBank:
    """The adapters' deltas for the model at hand, kept on `p` for its further batches."""
    budget = getattr(shared.opts, "loratorio_dense_budget_mb", 1024)
    layers = shared.sd_model.network_layer_mapping
    key = (shared.sd_model.sd_checkpoint_info, tuple(adapter.key for adapter in adapters), budget)
    kept = p.loratorio
    if kept.bank and kept.bank_key == key and kept.bank.layers is layers:
        return kept.bank
    _restore_base()
    bank = AdapterBank(layers, [_deltas(adapter) for adapter in adapters], budget * 2**20)
    for number, adapter in enumerate(adapters):
        _report_failures(p, adapter, bank.failures[number], bank.counts[number])
    kept.bank_key, kept.bank = key, bank
    return bank


def _report_failures(p, adapter: Adapter, failures: dict[str, str], applied: int) -> None:
    if not failures:
        return
    reason = next(iter(failures.values()))
    if not applied and not adapter.changes_text:
        raise LoratorioError(
            f"LoRAtorio: none of the {len(failures)} layers of the LoRA '{adapter.name}' could be applied to this model "
            f"({reason}). It is for another model, or of a kind or precision this WebUI cannot compute here."
        )
    note(p, f"LoRAtorio: {len(failures)} of {len(failures) + applied} layers of the LoRA '{adapter.name}' could not be applied and are left out ({reason}).")


# Text conditions


def _text_conditions(p, adapters: Sequence[Adapter]) -> dict[int, tuple]:
    """The conditions `(cond, uncond)` of the base and of each adapter that changes the text; else none.

    They go through the host's own routine for conditions, with slots of our own in place of its caches.
    """
    if not any(adapter.changes_text for adapter in adapters):
        return {}
    wanted = {BASE: ()}
    wanted.update({number: (adapter,) for number, adapter in enumerate(adapters) if adapter.changes_text})
    return {number: _encoded(p, alone) for number, alone in wanted.items()}


def _encoded(p, alone: tuple[Adapter, ...]) -> tuple:
    hires = p.is_hr_pass
    width, height = (p.hr_upscale_to_x, p.hr_upscale_to_y) if hires else (p.width, p.height)
    key = (hires, width, height, tuple(adapter.key for adapter in alone), _prompts(p))
    slots = _conditions.get(key, lambda: ([None, None], [None, None]))
    steps = None
    if hires:
        config = sd_samplers.find_sampler_config(p.hr_sampler_name or p.sampler_name)
        second_pass = p.hr_second_pass_steps or p.steps
        steps = config.total_steps(second_pass) if config else second_pass
    positive, negative = _prompts(p)
    texts = [
        (prompt_parser.get_multicond_learned_conditioning, prompt_parser.SdConditioning(positive, width=width, height=height)),
        (prompt_parser.get_learned_conditioning, prompt_parser.SdConditioning(negative, True, width=width, height=height)),
    ]

    def with_its_networks(function):
        def encode(*args):
            with _loaded(alone):
                return function(*args)

        return encode

    return tuple(
        p.get_conds_with_caching(with_its_networks(function), prompts, p.firstpass_steps, [slot], None, steps)
        for (function, prompts), slot in zip(texts, slots)
    )


def _prompts(p) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if p.is_hr_pass:
        return tuple(p.hr_prompts), tuple(p.hr_negative_prompts)
    return tuple(p.prompts), tuple(p.negative_prompts)


# Sampling


def declined(p) -> str | None:
    """Why this model cannot be composed, or None."""
    if shared.sd_model.cond_stage_key == "edit":
        return "LoRAtorio does not support InstructPix2Pix models; this is the WebUI's ordinary picture."
    if getattr(shared.sd_model, "is_sd3", False):
        return "LoRAtorio does not support SD3 models in this WebUI; this is the WebUI's ordinary picture."
    if sd_unet.current_unet is not None:
        return "LoRAtorio needs the built-in UNet; set 'SD Unet' to None. This is the WebUI's ordinary picture."
    return None


def prepare(p, settings: Settings) -> None:
    """Arranges that the sampling about to start is composed. Raises LoratorioError."""
    reason = declined(p)
    if reason:
        return note(p, reason)
    adapters = requested_adapters(p)
    if not adapters:
        return note(p, "LoRAtorio: the prompt has no LoRA of a strength other than 0; this is the WebUI's ordinary picture.")
    if settings.method == "merge":
        return None
    session = Session(p, settings, adapters)
    _instead_of_sampling(p.sampler, session.sample)


@dataclass
class Verified:
    """What verification has found so far, over all passes and batches of a request."""

    calls: int = 0
    worst: float = 0.0

    def report(self, p) -> None:
        text = f"max relative error {self.worst:.1e} over {self.calls} calls"
        p.extra_generation_params[VERIFY] = text
        for comment in [comment for comment in p.comments if comment.startswith(VERIFY)]:
            del p.comments[comment]
        p.comment(f"{VERIFY}: {text}")


@dataclass
class Kept:
    """What one request keeps on its `p` from one pass and batch to the next."""

    verified: Verified = field(default_factory=Verified)
    bank: AdapterBank | None = None
    bank_key: tuple = ()


def start(p) -> None:
    """A request begins: nothing is left of an earlier one that a script may have made with the same `p`."""
    p.loratorio = Kept()
    for key in (NOTE, VERIFY):
        p.extra_generation_params.pop(key, None)


def finish(p) -> None:
    """A request is over: its memory is given back, as are text conditions where the host keeps none either."""
    p.loratorio = None
    if not shared.opts.persistent_cond_cache:
        _conditions.clear()


class Session:
    """One pass of sampling, composed."""

    def __init__(self, p, settings: Settings, adapters: Sequence[Adapter]):
        self.p, self.settings, self.adapters = p, settings, adapters
        self.verified = p.loratorio.verified
        self.bank = _bank(p, adapters)
        self.texts = _text_conditions(p, adapters) if settings.text_encoder == "own" else {}
        self.method = METHODS[settings.method](settings)
        self.denoiser = p.sampler.model_wrap_cfg
        self.model = self.denoiser.inner_model
        self.evaluator = Evaluator(self._model_rows, self.bank, settings.adapters_per_pass)
        self.call: SamplerCall | None = None
        self.error: Exception | None = None

    def sample(self, launch_sampling, steps, func):
        with self.running():
            return launch_sampling(steps, func)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hooks and callbacks in place for the time of the sampling; everything back afterwards."""
        global _current
        self.loaded = list(networks.loaded_networks)
        forward_was_set = "forward" in self.model.__dict__
        self.forward = self.model.forward
        try:
            with self.bank.attached():
                self.model.forward = self._evaluate
                _current = self
                yield
            self._raise_error()
            self._report()
        finally:
            _current = None
            self.call = None
            networks.loaded_networks[:] = self.loaded
            if forward_was_set:
                self.model.forward = self.forward
            else:
                del self.model.forward

    def _raise_error(self) -> None:
        if self.error:
            raise LoratorioError(f"LoRAtorio: {type(self.error).__name__}: {self.error}") from self.error

    def _report(self) -> None:
        if self.settings.verify:
            self.verified.report(self.p)

    # One sampler call, in the order the host calls these three

    def begin(self, params) -> None:
        """on_cfg_denoiser: from here to `finish` the model is the base."""
        self.call = None
        if self.denoiser.inner_model is not self.model:
            return self._leave_to_refiner()
        fraction = self.denoiser.step / max(self.denoiser.total_steps, 1)
        if not self.settings.active(fraction):
            return None
        plan = self.method.plan(len(self.adapters), int(fraction * self.denoiser.steps))
        if plan is None:
            return None
        if self.texts:
            params.text_cond, params.text_uncond = self._text_at_this_step(BASE)
        self.params, self.offset = params, 0
        self.pictures = params.text_uncond.shape[0]
        self.conditionals = params.x.shape[0] - self.pictures
        subprompts = torch.tensor([len(prompts) for prompts in self._conditions_in_use().batch], device=params.x.device)
        picture_of = torch.arange(self.pictures, device=params.x.device).repeat_interleave(subprompts)
        self.own_text = {number: self._padded(*self._text_at_this_step(number)) for number in self.texts if number != BASE}
        networks.loaded_networks.clear()
        verify = self._verify if self.settings.verify else None
        self.call = SamplerCall(self.method, plan, self.evaluator, picture_of, self._same_length, verify)

    def _evaluate(self, x: torch.Tensor, sigma: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The model's forward: the host may ask for a call's rows at once or in several chunks."""
        self._raise_error()
        if self.call is None:
            return self.forward(x, sigma, *args, **kwargs)
        start, rows = self.offset, x.shape[0]
        self.offset += rows
        conditional = max(0, min(start + rows, self.conditionals) - start)
        host_inputs = (x, sigma, args, _of_these_rows(kwargs, rows))

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
        composed = call.combine(None if timesteps else self.params.x[: self.conditionals])
        params.x[: self.conditionals] = composed.conditional
        if composed.unconditional is not None:
            params.x[self.conditionals :] = composed.unconditional
        else:  # a step without guidance: the host has put each picture's first conditional row here
            first = torch.searchsorted(call.picture_of, torch.arange(self.pictures, device=call.picture_of.device))
            params.x[self.conditionals :] = composed.conditional[first]
        self.verified.calls += 1

    def _leave_to_refiner(self) -> None:
        note(self.p, "LoRAtorio stops where the refiner takes over; from there on the WebUI's ordinary merged LoRAs apply.")
        self.denoiser = None

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
        cond, uncond = (dict(text) if isinstance(text, dict) else text for text in self.own_text[model])
        parts = []
        if start < c:
            parts.append(take_rows(cond, slice(start, min(stop, c))))
        if stop > c:
            parts.append(take_rows(uncond, slice(max(start, c) - c, stop - c)))
        x, sigma, args, kwargs = inputs
        return x, sigma, args, {**kwargs, "cond": _with_text(kwargs["cond"], parts)}

    # Verification

    def _verify(self, requests: Sequence[Request], predictions: Sequence[torch.Tensor]) -> None:
        """Compares predictions with the host's own merge of each adapter alone."""
        try:
            for request, prediction in zip(requests, predictions):
                if request.adapter != BASE:
                    networks.loaded_networks[:] = [self.adapters[request.adapter].network]
                    reference = self._model_rows(request.inputs)
                    error = (prediction - reference).abs().max() / reference.abs().max()
                    self.verified.worst = max(self.verified.worst, error.item())
        finally:
            networks.loaded_networks.clear()


def _of_these_rows(tree, rows: int):
    """On steps without guidance the host leaves image conditions with more rows than it evaluates."""
    return take_rows(tree, slice(rows))


def _with_text(condition: dict, parts: list) -> dict:
    if isinstance(parts[0], dict):
        return {**condition, **{key: torch.cat([part[key] for part in parts]) for key in parts[0]}}
    return {**condition, "c_crossattn": [torch.cat(parts)]}


# The host's callbacks. It prints and ignores what they raise, so the next model call raises it again.


def on_cfg_denoiser(params) -> None:
    if _current and params.denoiser is _current.denoiser:
        with _kept(_current):
            _current.begin(params)


def on_cfg_denoised(params) -> None:
    if _current and _current.denoiser is not None:
        with _kept(_current):
            _current.finish(params)


@contextmanager
def _kept(session: Session) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        session.error = error
        raise
