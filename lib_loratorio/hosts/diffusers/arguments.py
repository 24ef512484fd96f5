"""What `composed` is called with, in the forms that come to mind: one LoRA or several, and settings by name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from lib_loratorio.errors import LoratorioError, SettingsError
from lib_loratorio.loras.tag import LOCAL, LoraTag
from lib_loratorio.loras.trigger_words import joined
from lib_loratorio.settings import SETTINGS, Settings

FORMS = "give a file, (file, strength), Lora(...), a dict of files and strengths, or a list of these"

ELSEWHERE = {
    "enabled": "leave the `with composed(...)` away for an ordinary picture",
    "maps": "composition.panels(pictures) draws them",
    "pool": "composed(..., pool=[...]) takes LoRAs as `loras` does",
}
"""Settings of the WebUIs' accordion, and what there is in their place."""


class Lora(NamedTuple):
    """A LoRA, and its strength; of strength 0 it is left out.

    `path` is a file or folder, the name of an adapter that the pipeline has loaded, a repository on the hub, or a state
    dict. `tag` says when and as what it takes part; the method merge has it in the whole sampling. `pooled` LoRAs may
    be left out of steps in which they would matter little, as the settings say, and are never merged; of them, files
    that do not suit the model are left out and named. `name` is what it is called afterwards, if not as its file is.
    `weight_name` is its file in a folder or repository of several. `prompt` are words that it alone reads, behind the
    prompt.
    """

    path: str | os.PathLike | Mapping[str, torch.Tensor]
    strength: float = 1.0
    tag: LoraTag = LOCAL
    pooled: bool = False
    name: str = ""
    weight_name: str | None = None
    prompt: str = ""


def read_loras(given: Any, pooled: bool = False) -> list[Lora]:
    """The LoRAs that an argument means, in its order; `pooled` makes them the pool's.

    Raises LoratorioError, which says what may be given.
    """
    found = [_checked(lora) for lora in _loras(given)]
    return [lora._replace(pooled=True) for lora in found] if pooled else found


def read_settings(settings: Any, changes: Mapping[str, Any]) -> Settings:
    """The settings that `composed` is given: `Settings` or a dict of them, and some by name on top. Raises
    LoratorioError.
    """
    for name, advice in ELSEWHERE.items():
        if name in changes or (isinstance(settings, Mapping) and name in settings):
            raise SettingsError(f"{name} is a setting of the WebUIs; here, {advice}.")
    if unknown := [name for name in changes if name not in SETTINGS]:
        known = ", ".join(name for name in SETTINGS if name not in ELSEWHERE)
        raise SettingsError(f"composed() has no argument {unknown[0]!r}; the settings are {known}.")
    changes = {name: _plain(value) for name, value in changes.items()}
    if settings is None or isinstance(settings, Mapping):
        return Settings.from_api({**(settings or {}), **changes})
    if not isinstance(settings, Settings):
        raise LoratorioError(
            f"the settings are {_told(settings)}; give Settings(...) or single ones by name, such as temperature=0.1, "
            "and several LoRAs as one list."
        )
    return replace(settings, **changes)


def strength_of(value: Any, path: Any) -> float:
    """A strength given as Python's, numpy's or torch's number. Raises LoratorioError, which names the LoRA."""
    number = math.nan
    if isinstance(value, Mapping):
        raise LoratorioError(
            f"the strength of {path} is a dict; give one number, and strengths by block as "
            "Lora(file, strength, LoraTag.read({'lbw': 'OUTALL'}, name))."
        )
    if not isinstance(value, (bool, str, bytes)):
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    if not math.isfinite(number):
        raise LoratorioError(f"the strength of {path} is {_told(value)}; it must be a number.")
    return number


def _loras(given: Any) -> list[Lora]:
    if given is None or isinstance(given, Mapping) or _is_lora(given):
        return _one_or_dict(given)
    if not isinstance(given, Iterable):
        raise LoratorioError(f"{_told(given)} is no LoRA; {FORMS}.")
    return [lora for one in given for lora in _of_list(one)]


def _of_list(one: Any) -> list[Lora]:
    """What one entry of a list means, which may be a pair as JSON has it."""
    if isinstance(one, list) and _is_pair(tuple(one)):
        one = tuple(one)
    if not (isinstance(one, (Mapping, tuple)) or _is_lora(one)):
        raise LoratorioError(f"the list of LoRAs has {_told(one)}; {FORMS}.")
    return _one_or_dict(one)


def _one_or_dict(given: Any) -> list[Lora]:
    if given is None:
        raise LoratorioError(f"the LoRAs are None; {FORMS}.")
    if isinstance(given, Mapping) and not _is_state_dict(given):
        return [Lora(path, strength) for path, strength in given.items()]
    if isinstance(given, Lora):
        return [given]
    if not isinstance(given, tuple):
        return [Lora(given)]
    if not 1 <= len(given) <= len(Lora._fields):
        raise LoratorioError(f"a LoRA is given as {_told(given)}; {FORMS}.")
    return [Lora(*given)]


def _is_lora(given: Any) -> bool:
    """Whether it is one LoRA rather than several; a tuple is, where it has a strength in the second place."""
    return isinstance(given, (str, os.PathLike, Lora)) or (isinstance(given, tuple) and _is_pair(given))


def _is_pair(given: tuple) -> bool:
    names_one = len(given) > 1 and (isinstance(given[0], (str, os.PathLike)) or _is_state_dict(given[0]))
    return names_one and not isinstance(given[1], (str, os.PathLike, tuple, list, Mapping))


def _is_state_dict(given: Any) -> bool:
    """Whether it is tensors by name, rather than strengths."""
    return isinstance(given, Mapping) and any(torch.is_tensor(one) and one.dim() > 1 for one in given.values())


def _checked(lora: Lora) -> Lora:
    path, tag = lora.path, lora.tag
    if not (isinstance(path, (str, os.PathLike)) and str(path)) and not _is_state_dict(path):
        raise LoratorioError(f"the LoRA {_told(path)} is no file or folder; {FORMS}.")
    if _is_state_dict(path) and not all(torch.is_tensor(tensor) for tensor in path.values()):
        raise LoratorioError(f"a LoRA's state dict has other things than tensors; {FORMS}.")
    told = lora.name or (_told(path) if isinstance(path, Mapping) else path)
    if not isinstance(tag, LoraTag):
        raise LoratorioError(f"the LoRA {told} has {tag!r} for its tag; give a LoraTag, such as LoraTag(end=0.5).")
    if tag.elements:
        raise LoratorioError(f"the LoRA {told} has lbwe={tag.elements}; of block weights only lbw is known.")
    words = joined(tag.words, lora.prompt)
    if words and tag.is_global and not tag.has_place:
        raise LoratorioError(f"the LoRA {told} is global, and has no prompt of its own; write it into the prompt.")
    tag = replace(tag, words=words)
    return lora._replace(strength=strength_of(lora.strength, told), pooled=bool(lora.pooled), tag=tag, prompt="")


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's."""
    is_scalar = isinstance(value, torch.Tensor) or type(value).__module__ == "numpy"
    return value.item() if is_scalar and getattr(value, "size", None) is not None and _size(value) == 1 else value


def _size(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else value.size


def _told(value: Any) -> str:
    """A value as it is written, where that is short."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"
