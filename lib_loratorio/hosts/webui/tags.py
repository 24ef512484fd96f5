"""The LoRA tags of a prompt, as the host has parsed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import networks

from lib_loratorio.errors import LoratorioError
from lib_loratorio.loras.tag import LoraTag

KINDS = ("lora", "lyco")


def lora_params(p) -> list[Any]:
    """The host's parameters, `.positional` and `.named`, of the tags for the pass about to start."""
    return _lora_params(getattr(p, "hr_extra_network_data", None) if p.is_hr_pass else p.extra_network_data)


def names(p) -> list[str]:
    """The names of the LoRAs of the pass about to start."""
    return [params.positional[0] for params in lora_params(p)]


def hires_names(p) -> list[str]:
    """The names of the LoRAs of the hires pass, where one follows the pass about to start."""
    if p.is_hr_pass:
        return []
    return [params.positional[0] for params in _lora_params(getattr(p, "hr_extra_network_data", None))]


def read_tag(params) -> LoraTag:
    """What a tag says of LoRAtorio. Raises SettingsError."""
    return LoraTag.read(params.named, params.positional[0])


def tags_by_name(p) -> dict[str, Iterator[LoraTag]]:
    """For each LoRA of the prompt, by name, what its tags say, in their order. Raises SettingsError."""
    found: dict[str, list[LoraTag]] = {}
    for params in lora_params(p):
        found.setdefault(params.positional[0], []).append(read_tag(params))
    return {name: iter(tags) for name, tags in found.items()}


def is_available(name: str) -> bool:
    """Whether a tag's name is one of the host's LoRAs, or another name of one."""
    return name in networks.available_network_aliases or name in networks.available_networks


def require(wanted: Sequence[str], present: Callable[[str], bool], reason: str = "") -> None:
    """Raises LoratorioError for the names that `present(name)` denies, with the reason where there is one."""
    missing = [name for name in wanted if not present(name)]
    if missing:
        raise LoratorioError(
            f"LoRA not found or not readable: {', '.join(missing)}{f' ({reason})' if reason else ''}. "
            "Check the names in the prompt, or refresh the list of LoRAs if a file is new."
        )


def matches_nothing(name: str) -> LoratorioError:
    return LoratorioError(
        f"the LoRA '{name}' matches nothing in this model; "
        "it was made for another kind of model. Take it out of the prompt or change the checkpoint."
    )


def _lora_params(data: Mapping[str, list[Any]] | None) -> list[Any]:
    return [params for kind in KINDS for params in (data or {}).get(kind, []) if params.positional]
