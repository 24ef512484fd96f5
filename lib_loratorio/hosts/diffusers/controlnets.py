"""ControlNets read the prompt too: what one gives a denoiser is computed anew for each model that has a text of its
own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lib_loratorio.engine.trees import map_tensors
from lib_loratorio.hosts.diffusers.texts import Row, Text


class ControlNets:
    """The pipeline's ControlNet, one or several as one, and its latest call.

    `arguments` are the denoiser's that take what it gives, in its order.
    """

    def __init__(self, pipe: Any, arguments: Sequence[str]):
        model = getattr(pipe, "controlnet", None)
        self.model = model if isinstance(model, nn.Module) else None
        self.arguments = arguments
        self._call: dict[str, Any] | None = None
        self._of_models: dict[int, dict[str, Any]] = {}
        self._at_work = False  # on a call of our own

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the time of the block its calls are noted."""
        if self.model is None:
            yield
            return
        signature = inspect.signature(type(self.model).forward)

        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if not self._at_work:
                self._call = dict(signature.bind(module, *args, **kwargs).arguments)
                self._call.pop("self")
                self._of_models = {}

        handle = self.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self.forget()

    def forget(self) -> None:
        """The pipeline's call is over, which what was noted is for."""
        self._call, self._of_models = None, {}

    def own(self, model: int, text: Text, division: Sequence[Row], tree: dict) -> dict:
        """The tree of a whole call of the denoiser, with what the ControlNet gives for a model's own text of its rows.

        Later calls of the denoiser with the same, as with a negative prompt in a call of its own, have what the first
        had: the ControlNet has read the text of that one.
        """
        if self._call is None or not any(name in tree for name in self.arguments):
            return tree
        if model not in self._of_models:
            self._of_models[model] = self._computed(text, division, tree)
        return {**tree, **self._of_models[model]}

    def _computed(self, text: Text, division: Sequence[Row], tree: dict) -> dict[str, Any]:
        conditional = [number for number, row in enumerate(division) if not row.unconditional]
        # In its guess mode it is asked for the conditional rows alone, and the others have nothing of it.
        asked = conditional if self._rows == len(conditional) else list(range(len(division)))
        of_text = self._text(text, asked, tree)
        if not of_text:
            return {}
        self._at_work = True
        try:
            given = self.model(**{**self._call, **of_text, "return_dict": False})
        finally:
            self._at_work = False

        def in_rows(given: torch.Tensor) -> torch.Tensor:
            if len(given) == len(division):
                return given
            whole = given.new_zeros(len(division), *given.shape[1:])
            whole[asked] = given
            return whole

        return {name: map_tensors(in_rows, part) for name, part in zip(self.arguments, given) if part is not None}

    @property
    def _rows(self) -> int:
        """Of the noted call."""
        latents = self._call.get("sample", self._call.get("hidden_states"))
        return len(latents)

    def _text(self, text: Text, asked: list[int], tree: dict) -> dict[str, Any]:
        """The text that it reads of the given, as arguments; not every one reads all of it."""
        call, found = self._call, {}
        if (hidden := call.get("encoder_hidden_states")) is not None:
            found["encoder_hidden_states"] = text.hidden[asked].to(hidden)
        if text.pooled is None:
            return found
        own = text.pooled[asked]
        if added := call.get("added_cond_kwargs"):
            found["added_cond_kwargs"] = {**added, "text_embeds": own.to(added["text_embeds"])}
        pooled = call.get("pooled_projections")
        if pooled is not None and torch.equal(pooled, tree["pooled_projections"][asked].to(pooled)):  # else it has none
            found["pooled_projections"] = own.to(pooled)
        return found
