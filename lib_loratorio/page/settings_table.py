"""The settings as a page of documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lib_loratorio.declaration import Setting
from lib_loratorio.presets import IN_PRESETS, PRESETS, START, preset_of, values_of
from lib_loratorio.settings import METHODS, SETTINGS

INTRODUCTION = """# Settings

Written by `python -m lib_loratorio settings` from the declarations in `lib_loratorio/settings.py`.

The keys are those of the API's dict and of a picture's infotext; values may come as text, too. The order is that of
positional arguments. On the command line an option has the key's name, with hyphens for underscores. With a method that
makes no use of a setting, that setting is grey on the page and has no effect.
"""

STARRED = (
    "\\* has no such option: the command line always composes, and has `--maps`, `--pool` and `--mask` of its own."
)

STARTS = """The defaults above are the paper's: the API's dict, the command line and diffusers take them for what is
not given. The accordion and the settings page start with the preset *{preset}* instead ({settings}). A request with
fewer positional arguments than settings has the rest from there too, since the WebUI fills them in."""


def markdown() -> str:
    """The whole page."""
    settings = _table(
        ("on the page", "key", "values", "default", "used by", "what it does"),
        (
            (
                declared.label,
                f"`{name}`" if declared.option else f"`{name}` \\*",
                _values(declared),
                _code(declared.default),
                _methods(declared),
                declared.described,
            )
            for name, declared in SETTINGS.items()
        ),
    )
    changed = (f"`{name}` {_code(value)}" for name, value in PRESETS[preset_of(START.to_api())].items())
    presets = _table(
        ("preset", *(f"`{name}`" for name in IN_PRESETS)),
        ((preset, *map(_code, values_of(preset).values())) for preset in PRESETS),
    )
    starts = STARTS.format(preset=preset_of(START.to_api()), settings=", ".join(changed))
    return f"{INTRODUCTION}\n{settings}\n{STARRED}\n\n{starts}\n\n## Presets\n\n{presets}"


def _values(declared: Setting) -> str:
    return f"{declared.kind.allowed} ({declared.unit})" if declared.unit else declared.kind.allowed


def _methods(declared: Setting) -> str:
    using = [name for name, traits in METHODS.items() if traits.include(declared.uses)]
    return "all" if len(using) == len(METHODS) else ", ".join(using)


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (" | ".join(row) for row in (header, ["---"] * len(header), *rows))
    return "".join(f"| {line} |\n" for line in lines)
