"""Text conditions of one sampler call, which follow what other extensions make of the host's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch

from lib_loratorio.loras.adapter import BASE

Pair = tuple[Any, Any]
"""A condition `[C, tokens, width]` and an unconditional one `[B, tokens, width]`, dicts of such, or None."""


class StepText:
    """The texts of the base and of each model that has its own.

    Args:
        own: by model its pair at this step.
        host: the pair that the host has encoded for this step.
        params: of `on_cfg_denoiser`, whose texts other extensions may have changed before, or may change after us. The
            base's are put into them.
        lost: told where a change cannot be carried over.

    What they make of the host's pair is carried over to each model's own: the same tokens appended or put in front, or,
    where the shape stays, the same difference.
    """

    def __init__(self, own: Mapping[int, Pair], host: Pair, params: Any, lost: Callable[[], None]):
        self.own, self.params, self._lost = dict(own), params, lost
        self._follow(host, self._now)
        if BASE in self.own:
            params.text_cond, params.text_uncond = self.own.pop(BASE)
        self._given = tuple(map(_cloned, self._now)) if self.own else self._now

    @property
    def _now(self) -> Pair:
        return self.params.text_cond, self.params.text_uncond

    def reached(self, padded: Callable[[Any, Any], Pair] = lambda cond, uncond: (cond, uncond)) -> Mapping[int, Pair]:
        """By model its own pair, once every extension has been called.

        `padded` makes a pair's texts equally long where the host does, which may have been done to the base's already.
        """
        if self.own:
            self.own = {model: padded(*map(copy, pair)) for model, pair in self.own.items()}
            self._follow(padded(*map(copy, self._given)), padded(*map(copy, self._now)))
            self._given = self._now
        return self.own

    def _follow(self, before: Pair, after: Pair) -> None:
        for place, (old, new) in enumerate(zip(before, after)):
            if old is None or new is None or same(old, new):
                continue
            for model, pair in self.own.items():
                text = carried(pair[place], old, new)
                if text is None:
                    self._lost()
                else:
                    self.own[model] = (text, pair[1]) if place == 0 else (pair[0], text)


def same(one: Any, other: Any) -> bool:
    """Whether two trees of conditions have the same values."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or _equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return False


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also where values are no numbers, as a damaged LoRA makes them of a text, which nobody has changed then."""
    return one.shape == other.shape and torch.allclose(one, other.to(one), rtol=0, atol=0, equal_nan=True)


def carried(own: Any, before: Any, after: Any) -> Any:
    """`own` with what has made `after` of `before`; None where that is not defined."""
    if isinstance(own, Mapping):
        if not (isinstance(after, Mapping) and own.keys() == before.keys() == after.keys()):
            return None
        parts = {key: carried(own[key], before[key], after[key]) for key in own}
        if any(part is None for part in parts.values()):
            return None
        return _of_its_class(own, parts)
    if not isinstance(after, torch.Tensor) or own.dim() != before.dim() or own.shape[0] != before.shape[0]:
        return None
    if before.shape == after.shape:
        if _equal(before, after):
            return own
        # Where it is the same text, it becomes the same one, without rounding.
        return torch.where(own == before, after, own + (after - before)) if own.shape == before.shape else None
    tokens = before.shape[1] if before.dim() == 3 else 0
    if not tokens or after.shape[0] != before.shape[0] or after.shape[1] <= tokens:
        return None
    if torch.equal(after[:, :tokens], before):
        return torch.cat([own, after[:, tokens:]], 1)
    if torch.equal(after[:, -tokens:], before):
        return torch.cat([after[:, :-tokens], own], 1)
    return None


def _cloned(text: Any) -> Any:
    if isinstance(text, Mapping):
        return _of_its_class(text, {key: value.clone() for key, value in text.items()})
    return None if text is None else text.clone()


def _of_its_class(text: Mapping, parts: Mapping) -> Mapping:
    """The host has a class of dicts for texts."""
    changed = copy(text)
    changed.update(parts)
    return changed


def alike(one: Any, other: Any) -> bool:
    """Whether two of the host's conditions for whole samplings, or pairs of such, have the same tensors."""
    if one is other:
        return True
    first, second = list(_tensors(one)), list(_tensors(other))
    return len(first) == len(second) and all(map(same, first, second))


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for part in tree:
            yield from _tensors(part)
    else:  # the host's conditions of prompts, and of a prompt's parts
        for name in ("batch", "schedules"):
            if hasattr(tree, name):
                yield from _tensors(getattr(tree, name))
