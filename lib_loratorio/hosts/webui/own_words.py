"""Words that one LoRA reads alone: `<ltp:NAME:words>` in the prompt, beside `<lora:NAME:1>`.

Registered with the host as an extra network, so that the host takes the tag out of the prompt; the infotext keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import networks
from modules import extra_networks

from lib_loratorio.errors import SettingsError
from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.hosts.webui.tags import names, requested
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.trigger_words import joined
from lib_loratorio.settings import Settings

KIND = "ltp"
FORM = "it must be <ltp:NAME:words>, with the name of a LoRA of the prompt or of the pool"


class OwnWords(extra_networks.ExtraNetwork):
    """Nothing to be activated: what a tag says is looked up when the prompts are read."""

    def __init__(self):
        super().__init__(KIND)

    def activate(self, p, params_list):
        pass

    def deactivate(self, p):
        pass


def register() -> None:
    extra_networks.register_extra_network(OwnWords())


def own_words(p, adapters: Sequence[Adapter]) -> list[str]:
    """What each of the adapters reads besides the prompt in the pass at hand; empty for most.

    Raises SettingsError for words of a LoRA that is not there, or is global, and for what is no such tag.
    """
    found = [""] * len(adapters)
    for name, words in _tagged(p):
        meant = [number for number, adapter in enumerate(adapters) if _is(adapter, name)]
        if not meant and name not in names(requested(p)):
            there = ", ".join(dict.fromkeys(adapter.name for adapter in adapters)) or "none"
            raise SettingsError(f"the prompt has <{KIND}:{name}:...>, but there is no LoRA '{name}'; there is {there}.")
        for number in meant:
            if adapters[number].is_global:
                raise SettingsError(
                    f"the prompt has <{KIND}:{name}:...>, but the LoRA '{name}' is global, and so part of every "
                    "evaluation; write the words into the prompt."
                )
            found[number] = joined(found[number], words)
    return found


def tell(p, settings: Settings, adapters: Sequence[Adapter]) -> None:
    """Tells where such words are read by nobody. Raises as `own_words`."""
    if not any(own_words(p, adapters)):
        return
    if not settings.traits.apart:
        where = f"with the method {settings.method}"
    elif settings.text_encoder != "own":
        where = "with 'Text encoder' set to 'merged'"
    elif (settings.start, settings.end) != (0, 1):
        where = "outside of Start and End"
    else:
        return
    note(p, f"{KIND} in the prompt has no effect {where}: there no LoRA reads the prompt by itself.")


def _tagged(p) -> list[tuple[str, str]]:
    """Names and words of the tags of the pass at hand; words may hold colons."""
    data = getattr(p, "hr_extra_network_data", None) if p.is_hr_pass else p.extra_network_data
    found = []
    for params in (data or {}).get(KIND, []):
        name, words = str(params.items[0]).strip(), ":".join(map(str, params.items[1:])).strip()
        if not name or not words:
            raise SettingsError(f"the prompt has <{KIND}:{':'.join(map(str, params.items))}>; {FORM}.")
        if re.search(r"\bAND\b", words):
            raise SettingsError(
                f"the prompt has <{KIND}:{name}:{words}>; it must not hold AND, as words are added to each sub-prompt."
            )
        found.append((name, words))
    return found


def _is(adapter: Adapter, name: str) -> bool:
    """Whether a name, or another name of a file, is the adapter's."""
    on_disk = networks.available_network_aliases.get(name) or networks.available_networks.get(name)
    return name == adapter.name or (on_disk is not None and on_disk.filename == adapter.path)
