"""Other extensions that touch what LoRAtorio does, and what a user has to know of them, all in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules import shared

from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.settings import Settings

SCRIPT = "loratorio"
"""What extensions call our script that list scripts by their files' names."""


def _first(args: Sequence[Any]) -> bool:
    return bool(args) and args[0] is True


def _leaves_us_out(args: Sequence[Any]) -> bool:
    """Whether ADetailer makes passes, in which our script does not run."""
    listed = [name.strip() for name in _option("ad_script_names", "").split(",")]
    if SCRIPT in listed or not _option("ad_only_selected_scripts", True):
        return False
    models = [arg.get("ad_model", "None") for arg in args if isinstance(arg, Mapping)]
    return False not in args[:1] and any(model not in ("", "None") for model in models)


def _option(name: str, default: Any) -> Any:
    return getattr(shared.opts, name, default)


def _of_text(settings: Settings, adapters: Sequence[Adapter]) -> bool:
    return settings.text_encoder == "own" and any(adapter.changes_text for adapter in adapters)


def _always(settings: Settings, adapters: Sequence[Adapter]) -> bool:
    return True


@dataclass(frozen=True)
class Neighbour:
    """An extension that a user may have switched on beside LoRAtorio.

    titles: of its script, on any host. acts: whether the script's arguments switch it on.
    declined: why a pass is not composed beside it; None where it is.
    told: a note for passes that are composed beside it, where `matters(settings, adapters)`.
    """

    titles: tuple[str, ...]
    acts: Callable[[Sequence[Any]], bool] = _first
    declined: str | None = None
    told: str | None = None
    matters: Callable[[Settings, Sequence[Adapter]], bool] = _always


NEIGHBOURS = (
    Neighbour(
        ("Composable Lora",),
        told="where LoRAtorio composes, Composable LoRA's rule has no effect: which LoRA belongs to which part of the "
        "prompt. Switch it off here, or LoRAtorio.",
    ),
    Neighbour(
        ("Cutoff", "Cutoff (sd-forge-cutoff)"),
        told="Cutoff does not reach LoRAs with text-encoder weights, which read the prompt by themselves. Set 'Text "
        "encoder' to merged to have it for all.",
        matters=_of_text,
    ),
    Neighbour(
        ("ADetailer",),
        acts=_leaves_us_out,
        told="ADetailer's own passes merge the LoRAs. To have them composed too, add loratorio to 'Script names to "
        "apply to ADetailer' in its settings.",
    ),
    Neighbour(
        ("TeaCache", "Block Cache", "First Block Cache / TeaCache"),
        declined="{title} goes on with what one model has computed in an earlier step, and composing needs several "
        "models; switch it off",
    ),
)


def declined(p) -> str | None:
    """Why this pass cannot be composed beside what is switched on, or None."""
    return next((one.declined.format(title=title) for one, title in _acting(p) if one.declined), None)


def tell(p, settings: Settings, adapters: Sequence[Adapter]) -> None:
    """Tells what a user has to know of the extensions beside which the pass about to start is composed."""
    for one, _ in _acting(p):
        if one.told and one.matters(settings, adapters):
            note(p, one.told)


def script_titled(p, title: str) -> Any | None:
    """The always shown script of this title, or None."""
    return next((script for script in _scripts(p) if script.title() == title), None)


def _acting(p) -> list[tuple[Neighbour, str]]:
    """Those of the table that the request switches on, each with its script's title."""
    found = []
    for script in _scripts(p):
        title = script.title()
        args = p.script_args[script.args_from : script.args_to]
        found += [(one, title) for one in NEIGHBOURS if title in one.titles and one.acts(args)]
    return found


def _scripts(p) -> Sequence[Any]:
    return getattr(p.scripts, "alwayson_scripts", ())
