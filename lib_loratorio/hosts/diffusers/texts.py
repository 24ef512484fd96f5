"""Whose rows a denoiser is asked for, which their text tells, and each model's own text for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lib_loratorio.errors import LoratorioError


class Text(NamedTuple):
    """Text conditions of some pictures: `hidden [B, tokens, width]` and, of some models, `pooled [B, width]`."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None


class Prompt(NamedTuple):
    """A prompt as one model reads it; `unconditional` is None without a negative prompt."""

    conditional: Text
    unconditional: Text | None = None

    @classmethod
    def read(cls, encoded: tuple) -> Prompt:
        """From what a pipeline's `encode_prompt` returns. Raises LoratorioError for forms that are not known."""
        tensors = isinstance(encoded, tuple) and [value is None or torch.is_tensor(value) for value in encoded]
        if tensors and all(tensors) and encoded[0] is not None:
            if len(encoded) == 2:
                return cls(Text(encoded[0]), None if encoded[1] is None else Text(encoded[1]))
            if len(encoded) == 3:  # FLUX: with the places of the tokens, and the negative prompt in a call of its own
                return cls(Text(*encoded[:2]))
            if len(encoded) == 4:
                cond, uncond, pooled, negative_pooled = encoded
                return cls(Text(cond, pooled), None if uncond is None else Text(uncond, negative_pooled))
        raise LoratorioError("the pipeline's encode_prompt returns something that is not known; it is not supported.")

    def with_negative(self, negative: Prompt) -> Prompt:
        """With a negative prompt that was encoded as another is."""
        return self._replace(unconditional=negative.conditional)

    def rows(self, division: Sequence[Row]) -> Text:
        """The text of each row."""
        parts = [part for part in (self.unconditional, self.conditional) if part is not None]
        first = 0 if self.unconditional is None else len(self.unconditional.hidden)
        numbers = [row.place + (0 if row.unconditional else first) for row in division]
        hidden = torch.cat([part.hidden for part in parts])[numbers]
        pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts])[numbers]
        return Text(hidden, pooled)


class Row(NamedTuple):
    """A row of a call. place: its text among the prompt's, None where that is a text that `encode_prompt` has not
    made.
    """

    unconditional: bool
    place: int | None


UNTOLD = (
    "which of the denoiser's rows are conditional cannot be told, as {reason}; let the pipeline encode prompt and "
    "negative prompt itself, and leave them as they are within the block."
)


class Division:
    """Which rows of a pipeline's calls are conditional.

    `prompt` is as the base reads it.
    """

    def __init__(self, prompt: Prompt):
        self.prompt = prompt
        self._known: list[tuple[torch.Tensor, int | None, Text, list[list[bool]]]] = []

    def rows(self, hidden: torch.Tensor, guided: bool | None) -> list[Row]:
        """The rows with these texts `[rows, tokens, width]`.

        `guided` tells what the text does not: whether the rows come as unconditional and conditional ones, in this
        order, as diffusers has them; None where the pipeline does not say. Raises LoratorioError where they cannot be
        told apart.
        """
        conditional, unconditional = self.prompt
        of_conditional = self._same(hidden, conditional)
        of_unconditional = self._same(hidden, unconditional)
        found: list[Row | None] = []
        for cond, uncond in zip(of_conditional, of_unconditional):
            if any(cond) == any(uncond):
                found.append(None)
            else:
                found.append(Row(any(uncond), (uncond if any(uncond) else cond).index(True)))
        if None not in found:
            return found
        ambiguous = any(any(cond) and any(uncond) for cond, uncond in zip(of_conditional, of_unconditional))
        return self._completed(found, of_conditional, of_unconditional, guided, ambiguous)

    def _completed(
        self,
        found: list[Row | None],
        of_conditional: list[list[bool]],
        of_unconditional: list[list[bool]],
        guided: bool | None,
        ambiguous: bool,
    ) -> list[Row]:
        rows = len(found)
        if guided is None and self.prompt.unconditional is None:
            guided = False
        if guided is None or (guided and rows % 2):
            same = "prompt and negative prompt are the same text"
            raise LoratorioError(
                UNTOLD.format(reason=same if ambiguous else "they have a text that encode_prompt has not made")
            )
        completed = []
        for number, row in enumerate(found):
            is_unconditional = guided and number < rows // 2
            if row is not None and row.unconditional != is_unconditional:
                raise LoratorioError(UNTOLD.format(reason="they come in an order that is not diffusers'"))
            known = (of_unconditional if is_unconditional else of_conditional)[number]
            completed.append(Row(is_unconditional, known.index(True) if any(known) else None))
        return completed

    def _same(self, hidden: torch.Tensor, text: Text | None) -> list[list[bool]]:
        """Of each row, which of the texts it has; what was compared before is remembered, as pipelines hand the same
        tensor over in all steps.
        """
        if text is None or text.hidden.shape[1:] != hidden.shape[1:]:
            return [[] for _ in hidden]
        version = None if hidden.is_inference() else hidden._version
        for tensor, of_version, of, answer in self._known:
            if tensor is hidden and version is not None and of_version == version and of is text:
                return answer
        texts = text.hidden.to(hidden)
        answer = [(row == texts).flatten(1).all(1).tolist() for row in hidden]
        self._known = [*self._known[-3:], (hidden, version, text, answer)]
        return answer


def own_rows(texts: Mapping[int, Prompt], model: int, division: Sequence[Row]) -> Text | None:
    """A model's own text for rows; None where it reads as the base does. Raises LoratorioError for rows of unknown
    text.
    """
    if model not in texts:
        return None
    if any(row.place is None for row in division):
        raise LoratorioError(
            "the text was changed on its way to the denoiser, as by a callback, but some of these LoRAs read the "
            "prompt with their own text encoder, or with trigger words; leave the text as it is, or set "
            "text_encoder='merged'."
        )
    return texts[model].rows(division)
