"""Text conditions of the base and of each adapter that needs its own, by the host's own routine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from modules import prompt_parser, sd_samplers, shared

from lib_loratorio.hosts.webui.followed import Pair, StepText, alike
from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.hosts.webui.neighbours import changing_text, named
from lib_loratorio.hosts.webui.own_words import own_words
from lib_loratorio.hosts.webui.tags import requested
from lib_loratorio.loras.adapter import MERGED, Adapter
from lib_loratorio.loras.text import ConditionCache, Reading, readings
from lib_loratorio.loras.trigger_words import appended, joined, trigger_words
from lib_loratorio.settings import Settings

Readers = Callable[[Sequence[Adapter]], AbstractContextManager[None]]

_conditions = ConditionCache()


def text_conditions(
    p,
    settings: Settings,
    adapters: Sequence[Adapter],
    readers: Readers,
    unconditional: Callable[[], bool] = lambda: True,
) -> dict[int, tuple]:
    """The conditions `(cond, uncond)` of the base and of each adapter that needs its own; none where none needs it.

    Args:
        settings: whether adapters read the prompt by themselves, and whether with their trigger words; those that the
            prompt has for one of them alone are always read.
        readers: within `readers(adapters)` the host encodes prompts with these adapters in the text encoder.
        unconditional: whether the host reads the negative prompt too; else `uncond` is None.
    """
    if settings.text_encoder != "own":
        return {}
    words = [
        joined(trigger_words(adapter.path) if settings.trigger_words else "", own)
        for adapter, own in zip(adapters, own_words(p, adapters))
    ]
    # Of a LoRA whose block weights switch its text encoder off, the host's own conditions still have it.
    found = readings(adapters, words, any(request.tag.blocks for request in requested(p)))
    _conditions.make_room(2 * len(found))  # a first pass and a hires pass
    return {model: _encoded(p, reading, readers, unconditional()) for model, reading in found.items()}


def _encoded(p, reading: Reading, readers: Readers, unconditional: bool) -> tuple:
    """The pass's conditions `(cond, uncond)`, each with slots of our own in place of the host's caches."""
    hires = p.is_hr_pass
    width, height = (p.hr_upscale_to_x, p.hr_upscale_to_y) if hires else (p.width, p.height)
    positive, negative = _prompts(p)
    guidance = _distilled_guidance(p)
    key = hires, width, height, guidance, reading.key, positive, negative
    # What other extensions do to the text encoder shows in the host's own conditions, which they have computed anew.
    host = p.get_conds()
    *slots, _ = _conditions.get(key, lambda: ([None, None], [None, None], host), lambda kept: alike(kept[2], host))
    steps = _hires_steps(p) if hires else None
    size = {"width": width, "height": height} | ({} if guidance is None else {"distilled_cfg_scale": guidance})

    def encode(function, prompts, slot):
        def with_readers(*args):
            with readers(reading.adapters):
                return function(*args)

        return p.get_conds_with_caching(with_readers, prompts, p.firstpass_steps, [slot], None, steps)

    own = tuple(_with_words(prompt, reading.words) for prompt in positive)
    cond = encode(prompt_parser.get_multicond_learned_conditioning, prompt_parser.SdConditioning(own, **size), slots[0])
    if not unconditional:
        return cond, None
    uncond = prompt_parser.SdConditioning(negative, True, **size)
    return cond, encode(prompt_parser.get_learned_conditioning, uncond, slots[1])


def _distilled_guidance(p) -> float | None:
    """The guidance that a distilled model reads with its text, where the host knows such models."""
    guidance = getattr(p, "distilled_cfg_scale", None)
    return getattr(p, "hr_distilled_cfg", guidance) if p.is_hr_pass else guidance


def _hires_steps(p) -> int:
    """The steps of the hires pass as its sampler counts them, which prompt editing goes by."""
    config = sd_samplers.find_sampler_config(p.hr_sampler_name or p.sampler_name)
    steps = p.hr_second_pass_steps or p.steps
    return config.total_steps(steps) if config else steps


def _with_words(prompt: str, words: str) -> str:
    """The prompt with the words in each of its sub-prompts, before its weight."""
    if not words:
        return prompt
    parts = []
    for part in prompt_parser.re_AND.split(prompt):
        text, weight = prompt_parser.re_weight.search(part).groups()
        text = appended(text.strip(), words)
        if weight is None and prompt_parser.re_weight.search(text)[2]:
            weight = 1  # else the host took the end of the words, such as 12:30, for one
        parts.append(text if weight is None else f"{text} :{weight}")
    return " AND ".join(parts)


def _prompts(p) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if p.is_hr_pass:
        return tuple(p.hr_prompts), tuple(p.hr_negative_prompts)
    return tuple(p.prompts), tuple(p.negative_prompts)


def text_of_step(
    p,
    denoiser,
    params,
    texts: Mapping[int, tuple],
    at_step: Callable[[Any, Any, int], Pair],
    merged: bool = False,
) -> StepText:
    """The texts of a sampler call about to begin, `texts` being those of the whole sampling.

    `at_step(cond, uncond, step)` gives the pair of a step. The merged model's, where there is one, is the host's own.
    """

    def lost() -> None:
        note(
            p,
            f"{named(changing_text())} changes the text conditions in a way that cannot be carried over to what LoRAs "
            "read with their own text encoder: that is without the change. With 'Text encoder' set to 'merged' all "
            "have it.",
        )

    step = denoiser.step
    own = {model: at_step(*pair, step) for model, pair in texts.items()}
    host = at_step(*_encoded_by_host(p, denoiser), step) if texts else (None, None)
    if texts and merged:
        own[MERGED] = host
    return StepText(own, host, params, lost)


def _encoded_by_host(p, denoiser) -> tuple:
    """The sampler's conditions, or where these are none of the host's, the host's own for the same prompts."""
    caches = (p.cached_c,), (p.cached_uc,)
    if p.is_hr_pass:
        caches = (p.cached_hr_c, p.cached_c), (p.cached_hr_uc, p.cached_uc)
    found = []
    for name, slots, prompts in zip(("cond", "uncond"), caches, _prompts(p)):
        given = denoiser.sampler.sampler_extra_args[name]
        kept = [value for key, value, *_ in slots if key is not None and tuple(key[0]) == prompts]
        found.append(given if not kept or any(given is value for value in kept) else kept[0])
    return tuple(found)


def forget_conditions() -> None:
    """Drops the cached conditions where the host does not keep its own beyond a request either."""
    if not shared.opts.persistent_cond_cache:
        _conditions.clear()
