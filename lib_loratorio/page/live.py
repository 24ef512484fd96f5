"""The accordion's live help: which LoRAs a prompt has, what a step costs with them, and what is wrong with them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.errors import SettingsError, untold
from lib_loratorio.loras.mask_image import colours_in
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts, read_strength
from lib_loratorio.presets import PRESETS, with_preset
from lib_loratorio.settings import Settings

TAG = re.compile(r"<(?:lora|lyco):([^:>]+)(?::([^>]*))?>")

ANY_TAG = re.compile(r"<\w+:[^>]+>")
"""A LoRA's, or another extra network's."""

OF_PRICE = {"lt", "ltbox", "ltat", "ltshare"}
"""What of a tag the price depends on."""

OF_HOST = {"lbw", "x"}
"""What of a tag only a generation can read: block weights may be presets of another extension."""

TWICE, UNKNOWN, UNSUITED = "twice", "unknown", "unsuited"
"""What can be wrong with a LoRA of a prompt: there is a second tag of it; it is none of the host's; or it is made for
another kind of model than the one that is loaded.
"""


class Mentioned(NamedTuple):
    """A LoRA as a prompt has it.

    strength: as written, the text encoder's and the UNet's where they differ. tag: as far as the price depends on it.
    pooled: whether it is of the pool, and the prompt has its trigger words. where: its region, as written.
    """

    name: str
    strength: str
    tag: LoraTag = LOCAL
    pooled: bool = False
    where: str = ""

    @property
    def role(self) -> str:
        return self.tag.role

    @property
    def told(self) -> dict[str, Any]:
        of_pool = {"pooled": True} if self.pooled else {}
        place = {"where": self.where} if self.tag.region else {}
        return {"name": self.name, "strength": self.strength, "role": self.role} | of_pool | place


def loras_of(prompt: str) -> list[Mentioned]:
    """The LoRAs of a prompt that is being written, without those of strength 0."""
    return [lora for lora in map(_mentioned, TAG.finditer(prompt)) if lora]


def tags_of(prompt: str) -> list[tuple[str, dict[str, str]]]:
    """Name and named arguments of each LoRA of a prompt that is being written, without those of strength 0."""
    return [(tag[1], _known(_parts(tag)[1])) for tag in _acting(prompt)]


def _acting(prompt: str) -> Iterator[re.Match]:
    """The tags of LoRAs, without those of strength 0."""
    return filter(_mentioned, TAG.finditer(prompt))


def _parts(tag: re.Match) -> tuple[list[str], dict[str, str]]:
    parts = (tag[2] or "").split(":")
    return parts, dict(part.split("=")[:2] for part in parts if "=" in part)


def _known(named: Mapping[str, str]) -> dict[str, str]:
    return {name.strip().lower(): value for name, value in named.items()}


def _mentioned(tag: re.Match) -> Mentioned | None:
    parts, named = _parts(tag)
    text, denoiser = _strengths(parts, named)
    if not acts(_number(text), _number(denoiser)):
        return None
    strength = denoiser if text == denoiser else f"{text}/{denoiser}"
    known = _known(named)
    where = "+".join(known[name].strip() for name in ("ltat", "ltbox") if name in known)
    return Mentioned(tag[1], strength, _tag(named, tag[1]), where=where)


def _strengths(parts: Sequence[str], named: Mapping[str, str]) -> tuple[str, str]:
    """The text encoder's and the UNet's, as written."""
    first, second, *_ = [*(part for part in parts if part and "=" not in part), None, None]
    text = named.get("te", first if first is not None else "1")
    return text, named.get("unet", second if second is not None else text)


def _number(text: str) -> float:
    try:
        return float(text.strip() or 0)
    except ValueError:
        return math.nan  # told as unreadable


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


ProblemOf = Callable[[str], str]
"""Gives what is wrong with a LoRA of this name: UNKNOWN, UNSUITED, or nothing."""


def price(
    prompt: str,
    settings: Settings,
    named: Named = lambda prompt, settings: (),
    painted: Collection[int] | None = None,
    problem_of: ProblemOf = lambda name: "",
) -> dict[str, Any]:
    """What the live help tells.

    loras: the prompt's, each with its name, strength and role, and its region where it has one; and those of the pool
        that it names in the mode "named".
    evaluations: model evaluations a step of one picture, on average; in the other modes those of the pool come on top.
    presets: the same with each of the presets.
    pool: "none"; "added" to the prompt's LoRAs; "named"; or "ignored", by a method that has none.
    problems: the names of LoRAs by what is wrong with them; empty where all is well.
    unreadable: the message about a tag that cannot be read; empty where all can.

    `painted` are the LoRAs for which the mask has places, among those that compete, where it is known already. Raises
    SettingsError for a mask of the settings that cannot be read.
    """
    loras = loras_of(prompt)
    names = [lora.name for lora in loras]
    if _pool(settings) == "named":
        words = ANY_TAG.sub(" ", prompt)
        loras += [Mentioned(name, f"{one:g}", pooled=True) for name, one in named(words, settings) if name not in names]
    if painted is None:
        painted = colours_in(settings.mask)
    tags = [lora.tag for lora in loras]
    return {
        "loras": [lora.told for lora in loras],
        "evaluations": evaluations_per_step(settings, tags, painted),
        "presets": {preset: evaluations_per_step(with_preset(settings, preset), tags, painted) for preset in PRESETS},
        "pool": _pool(settings),
        "problems": _problems(names, problem_of),
        "unreadable": _unreadable(prompt),
    }


def _problems(names: Sequence[str], problem_of: ProblemOf) -> dict[str, list[str]]:
    counted = Counter(names)
    found: dict[str, list[str]] = {}
    for name, count in counted.items():
        for problem in (TWICE if count > 1 else "", problem_of(name)):
            if problem:
                found.setdefault(problem, []).append(name)
    return found


def _unreadable(prompt: str) -> str:
    """The message about the first tag that a generation would refuse, but for what is in `OF_HOST`."""
    for tag in _acting(prompt):
        parts, named = _parts(tag)
        try:
            for strength in _strengths(parts, named):
                read_strength(strength.strip() or 0, tag[1])
            LoraTag.read({name: value for name, value in _known(named).items() if name not in OF_HOST}, tag[1])
        except SettingsError as error:
            return untold(str(error))
    return ""


def _pool(settings: Settings) -> str:
    if not settings.pool:
        return "none"
    if not settings.traits.apart:
        return "ignored"
    return "named" if settings.pool_mode == "named" else "added"


def price_of(
    prompt: str,
    settings: str,
    named: Named = lambda prompt, settings: (),
    painted: str = "",
    problem_of: ProblemOf = lambda name: "",
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
    known = [*map(int, numbers)] if numbers else None
    return price(prompt, Settings.from_api(values), named, known, problem_of)
