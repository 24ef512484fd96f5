"""ControlNets read the prompt too: what one gives a UNet is computed anew for each model that has a text of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lib_loratorio.engine.trees import map_tensors
from lib_loratorio.hosts.diffusers.texts import Row, Text

DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"
"""The UNet's arguments that hold what a ControlNet gives."""


class ControlNets:
    """The pipeline's ControlNet, one or several as one, and its latest call."""

    def __init__(self, pipe: Any):
        model = getattr(pipe, "controlnet", None)
        self.model = model if isinstance(model, nn.Module) and hasattr(pipe, "unet") else None
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
        """The denoiser's call is over, which what was noted is for."""
        self._call, self._of_models = None, {}

    def own(self, model: int, text: Text, division: Sequence[Row], tree: dict) -> dict:
        """The tree of a whole call of the UNet, with what the ControlNet gives for a model's own text of its rows."""
        if self._call is None or DOWN not in tree:
            return tree
        if model not in self._of_models:
            self._of_models[model] = self._computed(text, division)
        return {**tree, **self._of_models[model]}

    def _computed(self, text: Text, division: Sequence[Row]) -> dict[str, Any]:
        hidden = self._call["encoder_hidden_states"]
        # In its guess mode it is asked for the conditional rows alone, and the others have nothing of it.
        asked = [number for number, row in enumerate(division) if not row.unconditional]
        asked = asked if len(hidden) == len(asked) else list(range(len(division)))
        call = {**self._call, "encoder_hidden_states": text.hidden[asked].to(hidden), "return_dict": False}
        if text.pooled is not None and self._call.get("added_cond_kwargs"):
            added = self._call["added_cond_kwargs"]
            call["added_cond_kwargs"] = {**added, "text_embeds": text.pooled[asked].to(added["text_embeds"])}
        self._at_work = True
        try:
            down, middle = self.model(**call)
        finally:
            self._at_work = False

        def in_rows(given: torch.Tensor) -> torch.Tensor:
            if len(given) == len(division):
                return given
            whole = given.new_zeros(len(division), *given.shape[1:])
            whole[asked] = given
            return whole

        return {DOWN: map_tensors(in_rows, tuple(down)), MIDDLE: in_rows(middle)}
