"""Attention couple, to compare with: each box of a picture attends to a prompt of its own, and LoRAs are merged.

The rows of the model are those of an ordinary picture. In every cross-attention, the conditional rows are read with
each box's prompt, and each place takes what its box's gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from lab.evaluation.boxes import edges


@contextmanager
def coupled(pipe: StableDiffusionPipeline, prompts: Sequence[Sequence[str]]) -> Iterator[None]:
    """For the time of the block, box n of picture b reads `prompts[n][b]`; the negative prompt is everywhere's."""
    texts = [pipe.encode_prompt(list(of_box), pipe.device, 1, False)[0] for of_box in prompts]
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor({name: Coupled(processor, texts) for name, processor in before.items()})
    try:
        yield
    finally:
        pipe.unet.set_attn_processor(before)


class Coupled:
    """An attention layer's processor around another one; `texts` has each box's, `[B, tokens, width]`."""

    def __init__(self, processor: Any, texts: Sequence[torch.Tensor]):
        self.processor, self.texts = processor, texts

    def __call__(
        self, attn: Any, hidden: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *rest: Any, **kw: Any
    ) -> torch.Tensor:
        if encoder_hidden_states is None:
            return self.processor(attn, hidden, None, *rest, **kw)
        count = len(self.texts[0])  # the conditional rows come last
        negative = self.processor(attn, hidden[:-count], encoder_hidden_states[:-count], *rest, **kw)
        parts = [self.processor(attn, hidden[-count:], text, *rest, **kw) for text in self.texts]
        shares = columns(isqrt(hidden.shape[1]), len(self.texts))
        return torch.cat([negative, sum(part * share for part, share in zip(parts, shares))])


def columns(side: int, boxes: int) -> torch.Tensor:
    """Each box's share of each place of `side` x `side`, `[boxes, side * side, 1]`."""
    left = torch.arange(side) / side
    shares = [((left + 1 / side).clamp(max=b) - left.clamp(min=a)).clamp(min=0) * side for a, b in edges(boxes)]
    return torch.stack(shares)[:, None].expand(-1, side, -1).reshape(boxes, side * side, 1)
