"""The host's conditions of one sampler call: which it evaluates, and which of them a row of its batch belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from lib_loratorio.engine.sampler_call import UNCONDITIONAL
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.forge.loader import backend

TAG = "loratorio"
"""An entry of a condition's `model_conds` that tells in the wrapper's batch which condition a row belongs to."""

Own = Mapping[int, tuple[list[dict], list[dict]]]
"""Per model that reads the prompt by itself, its conditions and its unconditional one, in the host's form."""


class Shown(NamedTuple):
    """The conditions that the host evaluates at this time of the sampling.

    positions: theirs among the call's conditions, of which others may be outside their time.
    conditions, areas: the host's, each with the strengths `.mult` of its pixels.
    unconditional: the host's, None where it evaluates none.
    """

    positions: list[int]
    conditions: list[dict]
    areas: list[Any]
    unconditional: list[dict] | None

    @classmethod
    def of(cls, cond: list[dict], uncond: list[dict] | None, x: torch.Tensor, timestep: torch.Tensor) -> Shown:
        areas = [backend.area_and_mult(condition, x, timestep) for condition in cond]
        positions = [position for position, area in enumerate(areas) if area is not None]
        return cls(positions, [cond[at] for at in positions], [areas[at] for at in positions], uncond)

    def own(self, own: Own) -> Own:
        """The same conditions of the models that read the prompt by themselves."""
        return {
            model: ([conditions[position] for position in self.positions], unconditional)
            for model, (conditions, unconditional) in own.items()
        }

    def alike(self, text: torch.Tensor) -> list[int]:
        """The numbers of the conditions whose text this is, `[rows, tokens, width]`."""
        known = [*enumerate(self.conditions), *((UNCONDITIONAL, u) for u in self.unconditional or ())]
        return [number for number, condition in known if _same_text(text, condition["cross_attn"])]


class Tags:
    """Tags in the host's conditions, for the time of one sampler call."""

    def __init__(self) -> None:
        self._tagged: list[dict] = []

    def hand_out(self, shown: Shown, x: torch.Tensor) -> tuple[list[dict], list[dict] | None]:
        """Tagged copies of the conditions and of the unconditional one, for the host's own evaluation.

        The host's own conditions are tagged, too: with them other extensions ask for further evaluations.
        """
        tagged = [_tagged(condition, number, x) for number, condition in enumerate(shown.conditions)]
        unconditional = shown.unconditional and [_tagged(shown.unconditional[0], UNCONDITIONAL, x)]
        self._tagged = [*shown.conditions, *(shown.unconditional or ())]
        for condition, copy in zip(self._tagged, [*tagged, *(unconditional or ())]):
            condition["model_conds"] = copy["model_conds"]
        return tagged, unconditional

    def take_back(self) -> None:
        for condition in self._tagged:
            condition["model_conds"].pop(TAG, None)
        self._tagged = []


def check(cond: list[dict], uncond: list[dict] | None, own: Own) -> None:
    """Raises LoratorioError for conditions that cannot be composed."""
    every = [*cond, *(uncond or ())]
    divided = any(
        "area" in condition or "default" in condition or condition.get("hooks") is not None for condition in every
    )
    if divided or len(uncond or [1]) != 1:
        raise LoratorioError(
            "this prompt is divided by areas, or has several negative prompts, in a way that LoRAtorio "
            "cannot compose. Switch off the extension that does so, or LoRAtorio."
        )
    if any(len(conditions) != len(cond) for conditions, _ in own.values()):
        raise LoratorioError(
            "another extension adds prompts that LoRAs with a text encoder of their own know nothing of. "
            "Switch it off, or set LoRAtorio's text encoder to 'merged'."
        )


def blended(predictions: Sequence[torch.Tensor], strengths: Sequence[torch.Tensor]) -> torch.Tensor:
    """The host's mean of several conditions' predictions, each by its strength and mask."""
    total, count = torch.zeros_like(predictions[0]), torch.full_like(predictions[0], 1e-37)
    for prediction, strength in zip(predictions, strengths):
        total += prediction * strength
        count += strength
    return total / count


def _tagged(condition: dict, number: int, x: torch.Tensor) -> dict:
    tag = backend.Condition(torch.tensor([number], device=x.device))
    return {**condition, "model_conds": {**condition["model_conds"], TAG: tag}}


def _same_text(text: torch.Tensor, condition: torch.Tensor) -> bool:
    """Whether a batch's text is this condition's, which the host may have repeated for the sake of equal lengths."""
    tokens = condition.shape[1]
    if text.shape[-1] != condition.shape[-1] or text.shape[1] < tokens:
        return False
    return torch.equal(text[:, :tokens].to(condition), condition.expand(text.shape[0], -1, -1))
