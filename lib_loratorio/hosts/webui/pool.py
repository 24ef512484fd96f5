"""The pool's LoRAs among those that the host knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

import networks
from modules import shared

from lib_loratorio.errors import LoratorioError, SettingsError
from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.hosts.webui.tags import names, requested
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.pool import entries, resolved
from lib_loratorio.loras.trigger_words import is_named
from lib_loratorio.settings import Settings


def known() -> dict[str, str]:
    """All LoRAs of the host by name, as paths within that of its LoRA folders that holds them: without extension,
    divided by `/`.
    """
    options = shared.cmd_opts
    folders = [
        options.lora_dir,
        *filter(None, [getattr(options, "lyco_dir_backcompat", None)]),
        *getattr(options, "lora_dirs", ()),
    ]
    return {name: _path(network.filename, folders) for name, network in sorted(networks.available_networks.items())}


def _path(filename: str, folders: Sequence[str]) -> str:
    """A file's path within the first of the folders that holds it; its bare name where none does."""
    path = PurePath(filename).with_suffix("")
    folder = next(filter(path.is_relative_to, folders), path.parent)
    return path.relative_to(folder).as_posix()


def _aliases() -> dict[str, str]:
    """The LoRAs' names by those other names that are the name of no second one."""
    ambiguous = networks.forbidden_network_aliases
    return {
        alias: network.name
        for alias, network in networks.available_network_aliases.items()
        if alias.lower() not in ambiguous
    }


def pooled(p, settings: Settings, asked: Sequence[Adapter], load: Callable[[str, float], Adapter]) -> list[Adapter]:
    """The pool's adapters by `load(name, strength)`, without those that the prompt has itself or switches off.

    `asked` are the prompt's own. Those that cannot be loaded for this model are left out, and tried once a request: a
    folder may hold LoRAs for several models. Raises SettingsError for names that the host does not know.
    """
    aliases = _aliases()
    tagged = {aliases.get(name, name) for name in names(requested(p))}
    files = {adapter.path for adapter in asked}
    taken = [
        name for name, network in networks.available_networks.items() if name in tagged or network.filename in files
    ]
    wanted = resolved(entries(settings.pool), known(), [*taken, *refused(p)], aliases)
    if settings.pool_mode == "named":
        prompts = p.hr_prompts if p.is_hr_pass else p.prompts
        wanted = [one for one in wanted if _is_named(one[0], prompts)]
    found = []
    for name, strength in wanted:
        try:
            found.append(load(name, strength))
        except LoratorioError:
            refused(p).append(name)
    return found


def named(prompt: str, settings: Settings) -> list[tuple[str, float]]:
    """Names and strengths of the pool's LoRAs that a prompt names; none of a pool that cannot be read."""
    try:
        wanted = resolved(entries(settings.pool), known(), (), _aliases())
    except SettingsError:
        return []
    return [one for one in wanted if _is_named(one[0], [prompt])]


def _is_named(name: str, prompts: Sequence[str]) -> bool:
    return is_named(networks.available_networks[name].filename, prompts)


def refused(p) -> list[str]:
    """The pool's LoRAs that this request has found not to suit the model at hand; further ones are added to it."""
    return state_of(p).refused.setdefault(shared.sd_model.sd_checkpoint_info, [])


def tell_refused(p) -> None:
    left_out = refused(p)
    if left_out:
        note(
            p,
            f"{len(left_out)} LoRAs of the pool cannot be read, or do not suit this model, and are left out: "
            f"{', '.join(left_out)}.",
        )
