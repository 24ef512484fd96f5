"""A LoRA as an argument of the command line: a file or folder, and what a prompt's tag has behind its name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.tag import KNOWN, NAMES, LoraTag, X, read_strength

WORDS = ":prompt="

PEFT, DIFFUSERS = "adapter_model", "pytorch_lora_weights"
"""The names, without extension, that PEFT and diffusers save a folder's LoRA by."""


def name_of(path: Path) -> str:
    """What a user calls a LoRA: its folder's name where the file's says nothing."""
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if path.stem in (PEFT, DIFFUSERS) else path.stem


def read_argument(text: str) -> tuple[Path, float, LoraTag]:
    """The file or folder of `file[:strength][:ltstart=S][:lt=ROLE][:lbw=WEIGHTS]`, its strength and its tag.

    What is behind the file may come in any order; `:prompt=words` comes last, as words may hold colons. Raises
    SettingsError, which names the file and the text.
    """
    text, _, words = text.partition(WORDS)
    path, rest = _divided(text)
    name = path.name or str(path)
    strengths = [part for part in rest if "=" not in part]
    if len(strengths) > 1:
        raise SettingsError(f"the LoRA '{name}' has the strengths '{':'.join(strengths)}'; it must be one number.")
    pairs = [part.partition("=") for part in rest if "=" in part]
    named = {key.strip().lower(): value.strip() for key, _, value in pairs}
    if len(named) < len(pairs):
        raise SettingsError(f"the LoRA '{name}' has a name twice in '{text}'.")
    strength, tag = read_strength(strengths[0], name) if strengths else 1.0, LoraTag.read(named, name)
    unknown = [key for key in named if key not in (*NAMES, X)]
    if unknown:
        raise SettingsError(
            f"the LoRA '{name}' has '{unknown[0]}', which the command line does not know; the names are {KNOWN}."
        )
    return path, strength, replace(tag, words=words.strip())


def _divided(text: str) -> tuple[Path, list[str]]:
    """The path that the text begins with, and what is behind it between colons.

    A path can hold colons too, as that of a Windows drive: it is as much as there is of the text on the disk, else all
    up to the last folder's name in it.
    """
    parts = text.split(":")
    lengths = range(len(parts), 0, -1)
    exists = (length for length in lengths if os.path.exists(":".join(parts[:length])))
    in_folder = (length for length in lengths if "/" in parts[length - 1] or "\\" in parts[length - 1])
    length = next(exists, None) or next(in_folder, 1)
    path = ":".join(parts[:length])
    if not path.strip():
        raise SettingsError(f"'{text}' names no LoRA file.")
    return Path(path), parts[length:]
