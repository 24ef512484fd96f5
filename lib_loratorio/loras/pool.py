"""The pool as a text: LoRAs besides the prompt's, by name or pattern, each with a strength."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.tag import acts


class Entry(NamedTuple):
    """A LoRA's name, or a pattern such as `styles/*` for names and for paths within the LoRA folder."""

    pattern: str
    strength: float = 1.0


def entries(text: str) -> list[Entry]:
    """The entries `name` or `name:strength` of a text, divided by commas; tags of a prompt are read too.

    Raises SettingsError for a strength that is no number.
    """
    return [_entry(part) for part in text.split(",") if part]


def _entry(text: str) -> Entry:
    text = text.removeprefix("<lora:").removesuffix(">")
    pattern, separator, strength = text.partition(":")
    try:
        value = float(strength) if separator else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"the pool has '{text}'; the strength behind the colon must be a number.")
    return Entry(pattern.strip(), value)


def resolved(
    wanted: Iterable[Entry],
    paths: Mapping[str, str],
    taken: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> list[tuple[str, float]]:
    """Names and strengths of the LoRAs that the entries mean, each once, none of strength 0 and none that is `taken`.

    `paths` are all LoRAs by name, as paths within the LoRA folder, without extension and divided by `/`; `aliases` are
    further names of theirs. Raises SettingsError for an entry that means none of them.
    """
    found: dict[str, float] = {}
    for pattern, strength in wanted:
        names = _meant(pattern, paths, aliases or {})
        if not names:
            raise SettingsError(
                f"the pool has '{pattern}', which is none of the WebUI's LoRAs. "
                "Check the name, or refresh the list of LoRAs if a file is new."
            )
        for name in names:
            found.setdefault(name, strength)
    return [(name, strength) for name, strength in found.items() if acts(strength) and name not in set(taken)]


def _meant(pattern: str, paths: Mapping[str, str], aliases: Mapping[str, str]) -> list[str]:
    """The names of the LoRAs that an entry means."""
    name = pattern if pattern in paths else aliases.get(pattern)
    if name:
        return [name]
    if pattern.endswith("/*"):  # of a folder that there is, whatever its name would mean as a pattern
        within = [name for name, path in paths.items() if path.startswith(pattern[:-1])]
        if within:
            return within
    return [name for name, path in paths.items() if fnmatchcase(name, pattern) or fnmatchcase(path, pattern)]
