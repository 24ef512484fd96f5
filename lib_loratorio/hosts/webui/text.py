"""Text conditions from a text encoder with one adapter alone, or with none, by the host's own routine."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager

from modules import prompt_parser, sd_samplers, shared

from lib_loratorio.loras.text import ConditionCache, readings
from lib_loratorio.loras.trigger_words import appended, trigger_words

_conditions = ConditionCache()


def own_texts(adapters: Sequence, words: bool, encoded_with: Callable[[tuple, str], tuple]) -> dict[int, tuple]:
    """The text conditions of the base and of each adapter that needs its own; none where none needs it.

    Args:
        words: whether an adapter's trigger words, where its file tells them, belong to its own prompt.
        encoded_with: gives the conditions of the text encoder with these adapters, for the prompt with these words.
    """
    triggers = [trigger_words(adapter.filename) if words else "" for adapter in adapters]
    found = readings(adapters, triggers)
    _conditions.make_room(2 * len(found))  # a first pass and a hires pass
    return {model: encoded_with(*reading) for model, reading in found.items()}


def encoded(
    p,
    key: Hashable,
    with_its_networks: Callable[[], AbstractContextManager],
    words: str = "",
    unconditional: bool = True,
) -> tuple:
    """The pass's conditions `(cond, uncond)`, each with slots of our own in place of the host's caches.

    Args:
        key: whatever the conditions depend on besides prompts and size.
        with_its_networks: the text encoder is the wanted one within this context.
        words: appended to the prompt, to each of those that `AND` divides.
        unconditional: whether the negative prompt is wanted too; else `uncond` is None.
    """
    hires = p.is_hr_pass
    width, height = (p.hr_upscale_to_x, p.hr_upscale_to_y) if hires else (p.width, p.height)
    positive, negative = _prompts(p)
    positive = tuple(_with_words(prompt, words) for prompt in positive)
    guidance = getattr(p, "distilled_cfg_scale", None)
    if hires:
        guidance = getattr(p, "hr_distilled_cfg", guidance)
    slots = _conditions.get(
        (hires, width, height, guidance, key, positive, negative), lambda: ([None, None], [None, None])
    )
    steps = None
    if hires:
        config = sd_samplers.find_sampler_config(p.hr_sampler_name or p.sampler_name)
        second_pass = p.hr_second_pass_steps or p.steps
        steps = config.total_steps(second_pass) if config else second_pass
    size = {"width": width, "height": height} | ({} if guidance is None else {"distilled_cfg_scale": guidance})

    def encode(function, prompts, slot):
        def with_them(*args):
            with with_its_networks():
                return function(*args)

        return p.get_conds_with_caching(with_them, prompts, p.firstpass_steps, [slot], None, steps)

    return (
        encode(
            prompt_parser.get_multicond_learned_conditioning, prompt_parser.SdConditioning(positive, **size), slots[0]
        ),
        encode(prompt_parser.get_learned_conditioning, prompt_parser.SdConditioning(negative, True, **size), slots[1])
        if unconditional
        else None,
    )


def _with_words(prompt: str, words: str) -> str:
    """The prompt with the words in each of its sub-prompts, before its weight."""
    if not words:
        return prompt
    parts = []
    for part in prompt_parser.re_AND.split(prompt):
        text, weight = prompt_parser.re_weight.search(part).groups()
        parts.append(appended(text.strip(), words) + (f" :{weight}" if weight else ""))
    return " AND ".join(parts)


def _prompts(p) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if p.is_hr_pass:
        return tuple(p.hr_prompts), tuple(p.hr_negative_prompts)
    return tuple(p.prompts), tuple(p.negative_prompts)


def forget_conditions() -> None:
    """Drops the cached conditions where the host does not keep its own beyond a request either."""
    if not shared.opts.persistent_cond_cache:
        _conditions.clear()
