"""Text conditions from a text encoder with one adapter alone, or with none."""

from __future__ import annotations

from collections.abc import Sequence

from modules import prompt_parser, sd_samplers, shared

from lib_loratorio.conditioning import ConditionCache
from lib_loratorio.hosts.a1111.loader import Adapter, loaded
from lib_loratorio.methods import BASE

_conditions = ConditionCache()


def text_conditions(p, adapters: Sequence[Adapter]) -> dict[int, tuple]:
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
            with loaded(alone):
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


def forget_conditions() -> None:
    """Drops the cached conditions where the host does not keep its own beyond a request either."""
    if not shared.opts.persistent_cond_cache:
        _conditions.clear()
