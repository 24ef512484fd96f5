"""The LoRA tags of a prompt, as the host has parsed them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import networks
from modules import shared
from modules.extra_networks import ExtraNetworkParams

from lib_loratorio.errors import LoratorioError, SettingsError
from lib_loratorio.hosts.webui import block_weights
from lib_loratorio.hosts.webui.failures import unreadable
from lib_loratorio.loras.block_weights import PRESETS
from lib_loratorio.loras.tag import LoraTag, read_strength

KINDS = ("lora", "lyco")

SCHEDULE = re.compile(r"[\d.]\s*[@~]\s*[\d.]")
"""A strength at a step, as loractl has them in tags."""
SCHEDULED = {"te", "unet", "hr", "hrte", "hrunet"}
"""The names that it has for strengths."""


class Wanted(NamedTuple):
    """What a tag asks the host for: a LoRA, its strengths in the text encoders and in the UNet, and a rank."""

    name: str
    te: float
    unet: float
    rank: int | None = None


class Requested(NamedTuple):
    """One tag."""

    wanted: Wanted
    tag: LoraTag


def requested(p) -> list[Requested]:
    """The tags of the pass about to start. Raises SettingsError for what cannot be read in one of them."""
    data = getattr(p, "hr_extra_network_data", None) if p.is_hr_pass else p.extra_network_data
    params = _lora_params(data)
    return _read_all(p, [*params, *_added_to_prompt(params)])


def requested_in_hires(p) -> list[Requested]:
    """Those of the hires pass, where one follows the pass about to start. Raises SettingsError."""
    if p.is_hr_pass:
        return []
    return _read_all(p, _lora_params(getattr(p, "hr_extra_network_data", None)))


def names(requests: Sequence[Requested]) -> list[str]:
    return [request.wanted.name for request in requests]


def tags_by_name(requests: Sequence[Requested]) -> dict[str, Iterator[LoraTag]]:
    """For each LoRA, by name, what its tags say, in their order."""
    found: dict[str, list[LoraTag]] = {}
    for request in requests:
        found.setdefault(request.wanted.name, []).append(request.tag)
    return {name: iter(tags) for name, tags in found.items()}


def is_available(name: str) -> bool:
    """Whether a tag's name is one of the host's LoRAs, or another name of one."""
    return name in networks.available_network_aliases or name in networks.available_networks


def require(wanted: Sequence[str], present: Callable[[str], bool], layouts: Sequence[str], reason: str = "") -> None:
    """Raises LoratorioError for the names that `present(name)` denies, with the reason where there is one.

    `layouts` are those of files that the host reads.
    """
    missing = [name for name in wanted if not present(name)]
    for name in filter(is_available, missing):
        on_disk = networks.available_network_aliases.get(name) or networks.available_networks[name]
        error = unreadable(name, on_disk.filename, layouts)
        if error:
            raise error
    if missing:
        raise LoratorioError(
            f"LoRA not found or not readable: {', '.join(missing)}{f' ({reason})' if reason else ''}. "
            "Check the names in the prompt, or refresh the list of LoRAs if a file is new."
        )


def _lora_params(data: Mapping[str, list[Any]] | None) -> list[Any]:
    return [params for kind in KINDS for params in (data or {}).get(kind, []) if params.items]


def _added_to_prompt(params: Sequence[Any]) -> list[Any]:
    """The LoRA of the host's setting "Add network to prompt", which its parsed tags have only beside others."""
    added = getattr(shared.opts, "sd_lora", "None")
    if added == "None" or added not in networks.available_networks or any(one.items[0] == added for one in params):
        return []
    return [ExtraNetworkParams(items=[added, str(shared.opts.extra_networks_default_multiplier)])]


def _read_all(p, params: Sequence[Any]) -> list[Requested]:
    """The tags. Random block weights are drawn by the seed of the batch's first picture, to come again with it.

    They are read from their items: loractl puts other values in place of what the host has read from them.
    """
    params = [ExtraNetworkParams(items=list(one.items)) for one in params]
    has_weights = any(str(name).strip().lower() == "lbw" for one in params for name in one.named)
    presets = block_weights.presets(p) if has_weights else PRESETS
    seed = (getattr(p, "seeds", None) or [p.seed])[0]
    return [_read(one, presets, f"{seed} {number}") for number, one in enumerate(params)]


def _read(params, presets: Mapping[str, str], seed: str) -> Requested:
    """A tag `<lora:name:te:unet:rank>`, with each of these by name too, as the hosts read it. Raises SettingsError."""
    name = str(params.items[0])
    if "=" in name:
        raise SettingsError(f"the name of the LoRA '{name}' holds '=', which the WebUI cannot read; rename its file.")
    _, *positional = params.positional
    named = {str(key).strip().lower(): value for key, value in params.named.items()}
    for strength in [*positional, *(named[key] for key in SCHEDULED & named.keys())]:
        _refuse_schedule(strength, name)
    te = read_strength(named.get("te", positional[0] if positional else 1.0), name)
    unet = read_strength(named.get("unet", positional[1] if len(positional) > 1 else te), name)
    rank = named.get("dyn", positional[2] if len(positional) > 2 else None)
    tag = LoraTag.read(named, name, presets).drawn(seed)
    return Requested(Wanted(name, te, unet, None if rank is None else _rank(rank, name)), tag)


def _refuse_schedule(strength: Any, name: str) -> None:
    """Raises SettingsError for a strength that changes from step to step."""
    if SCHEDULE.search(str(strength)):
        raise SettingsError(
            f"the LoRA '{name}' has the strength '{strength}', a schedule of loractl, which LoRAtorio does not follow. "
            "Give it one number; with ltw in its tag, such as ltw=0@0,1@0.5, the strength changes over the sampling, "
            "and with ltstart and ltend it takes part in a stretch of it."
        )


def _rank(text: Any, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"the LoRA '{name}' has the rank '{text}'; it must be a whole number.") from None
