"""Other extensions that touch what LoRAtorio does, and what a user has to know of them, all in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules import shared

from lib_loratorio.hosts.webui.messages import note

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


@dataclass(frozen=True)
class Other:
    """An extension that a user may have switched on beside LoRAtorio.

    titles: of its script, on any host. acts: whether the script's arguments switch it on.
    declined: why a pass is not composed beside it; None where it is.
    told: a note for passes that are composed beside it.
    """

    titles: tuple[str, ...]
    acts: Callable[[Sequence[Any]], bool] = _first
    declined: str | None = None
    told: str | None = None


OTHERS = (
    Other(
        ("Composable Lora",),
        told="where LoRAtorio composes, Composable LoRA's rule has no effect: which LoRA belongs to which part of the "
        "prompt. Switch it off here, or LoRAtorio.",
    ),
    Other(
        ("ADetailer",),
        acts=_leaves_us_out,
        told="ADetailer's own passes merge the LoRAs. To have them composed too, add loratorio to 'Script names to "
        "apply to ADetailer' in its settings.",
    ),
    Other(
        ("TeaCache", "Block Cache", "First Block Cache / TeaCache"),
        declined="{title} goes on with what one model has computed in an earlier step, and composing needs several "
        "models; switch it off",
    ),
)


def declined(p) -> str | None:
    """Why this pass cannot be composed beside what is switched on, or None."""
    return next((one.declined.format(title=title) for one, title in _acting(p) if one.declined), None)


def tell(p) -> None:
    """Tells what a user has to know of the extensions beside which the pass about to start is composed."""
    for one, _ in _acting(p):
        if one.told:
            note(p, one.told)


def script_titled(p, title: str) -> Any | None:
    """The always shown script of this title, or None."""
    return next((script for script in shown_scripts(p) if script.title() == title), None)


def shown_scripts(p) -> Sequence[Any]:
    """The request's scripts that are always shown."""
    return getattr(p.scripts, "alwayson_scripts", ())


def _acting(p) -> list[tuple[Other, str]]:
    """Those of the table that the request switches on, each with its script's title."""
    found = []
    for script in shown_scripts(p):
        title = script.title()
        args = p.script_args[script.args_from : script.args_to]
        found += [(one, title) for one in OTHERS if title in one.titles and one.acts(args)]
    return found
