"""The accordion's live help: which LoRAs a prompt has, and what a step costs with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.mask_image import colours_in
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts
from lib_loratorio.settings import Settings

TAG = re.compile(r"<(?:lora|lyco):([^:>]+)(?::([^>]*))?>")

ANY_TAG = re.compile(r"<\w+:[^>]+>")
"""A LoRA's, or another extra network's."""

OF_PRICE = {"lt", "ltbox", "ltat", "ltshare"}
"""What of a tag the price depends on."""


class Mentioned(NamedTuple):
    """A LoRA as a prompt has it.

    strength: as written, the text encoder's and the UNet's where they differ. tag: as far as the price depends on it.
    pooled: whether it is of the pool, and the prompt has its trigger words.
    """

    name: str
    strength: str
    tag: LoraTag = LOCAL
    pooled: bool = False

    @property
    def role(self) -> str:
        return self.tag.role

    @property
    def told(self) -> dict[str, Any]:
        of_pool = {"pooled": True} if self.pooled else {}
        return {"name": self.name, "strength": self.strength, "role": self.role} | of_pool


def loras_of(prompt: str) -> list[Mentioned]:
    """The LoRAs of a prompt that is being written, without those of strength 0."""
    return [lora for lora in map(_mentioned, TAG.finditer(prompt)) if lora]


def tags_of(prompt: str) -> list[tuple[str, dict[str, str]]]:
    """Name and named arguments of each LoRA of a prompt that is being written, without those of strength 0."""
    return [(tag[1], _known(_parts(tag)[1])) for tag in TAG.finditer(prompt) if _mentioned(tag)]


def _parts(tag: re.Match) -> tuple[list[str], dict[str, str]]:
    parts = (tag[2] or "").split(":")
    return parts, dict(part.split("=")[:2] for part in parts if "=" in part)


def _known(named: Mapping[str, str]) -> dict[str, str]:
    return {name.strip().lower(): value for name, value in named.items()}


def _mentioned(tag: re.Match) -> Mentioned | None:
    parts, named = _parts(tag)
    first, second, *_ = [*(part for part in parts if part and "=" not in part), None, None]
    text = named.get("te", first if first is not None else "1")
    denoiser = named.get("unet", second if second is not None else text)
    if not acts(_number(text), _number(denoiser)):
        return None
    return Mentioned(tag[1], denoiser if text == denoiser else f"{text}/{denoiser}", _tag(named, tag[1]))


def _number(text: str) -> float:
    try:
        return float(text.strip() or 0)
    except ValueError:
        return math.nan  # still being written


def _tag(named: Mapping[str, str], lora: str) -> LoraTag:
    """What has a bearing on the price; of what is unfinished, its role at least."""
    known = _known(named)
    for names in (OF_PRICE, {"lt"}):
        try:
            return LoraTag.read({name: value for name, value in known.items() if name in names}, lora)
        except SettingsError:
            continue
    return LOCAL


Named = Callable[[str, Settings], Sequence[tuple[str, float]]]
"""Gives names and strengths of the pool's LoRAs that a prompt names."""


def price(
    prompt: str,
    settings: Settings,
    named: Named = lambda prompt, settings: (),
    painted: Collection[int] | None = None,
) -> dict[str, Any]:
    """What the live help tells.

    loras: the prompt's, each with its name, strength and role, and those of the pool that it names in the mode "named".
    evaluations: model evaluations a step of one picture, on average; in the other modes those of the pool come on top.
    pool: "none"; "added" to the prompt's LoRAs; "named"; or "ignored", by a method that has none.

    `painted` are the LoRAs for which the mask has places, among those that compete, where it is known already. Raises
    SettingsError for a mask of the settings that cannot be read.
    """
    loras = loras_of(prompt)
    if _pool(settings) == "named":
        mentioned = {lora.name for lora in loras}
        words = ANY_TAG.sub(" ", prompt)
        loras += [
            Mentioned(name, f"{one:g}", pooled=True) for name, one in named(words, settings) if name not in mentioned
        ]
    if painted is None:
        painted = colours_in(settings.mask)
    return {
        "loras": [lora.told for lora in loras],
        "evaluations": evaluations_per_step(settings, [lora.tag for lora in loras], painted),
        "pool": _pool(settings),
    }


def _pool(settings: Settings) -> str:
    if not settings.pool:
        return "none"
    if not settings.traits.apart:
        return "ignored"
    return "named" if settings.pool_mode == "named" else "added"


def price_of(
    prompt: str, settings: str, named: Named = lambda prompt, settings: (), painted: str = ""
) -> dict[str, Any]:
    """The same, of settings as the text of a JSON object, and of numbers divided by commas. Raises SettingsError."""
    try:
        values = json.loads(settings)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise SettingsError(f"the settings are {settings!r}; they must be a JSON object.")
    numbers = [part.strip() for part in painted.split(",") if part.strip()]
    if not all(number.isascii() and number.isdigit() and len(number) < 4 for number in numbers):
        raise SettingsError(f"painted is {painted!r}; it must be numbers of LoRAs from 0 up, divided by commas.")
    return price(prompt, Settings.from_api(values), named, [*map(int, numbers)] if numbers else None)
