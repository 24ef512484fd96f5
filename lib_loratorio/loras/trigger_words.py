"""The words that call for what a LoRA has learned, as its file or the WebUI's notes on it tell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open

from lib_loratorio.loras.metadata import user_metadata


def trigger_words(path: str) -> str:
    """A LoRA file's trigger words; empty where nothing tells them.

    These are what the user has noted in the WebUI as its activation text; else the file's own
    `modelspec.trigger_phrase`; else the tag that more of its training captions had than any other.
    """
    metadata = _metadata(path)
    words = (
        str(user_metadata(path).get("activation text") or "").strip()
        or str(metadata.get("modelspec.trigger_phrase", "")).strip()
        or _most_frequent_tag(metadata)
    )
    # A sub-prompt of its own would be one that the base has not.
    return re.sub(r"[\s,]*\bAND\b[\s,]*", ", ", words)


def appended(prompt: str, words: str) -> str:
    """The prompt with the words at its end, unless it has them."""
    if not words or re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE):
        return prompt
    return f"{prompt}, {words}" if prompt.strip() else words


def _metadata(path: str) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _most_frequent_tag(metadata: Mapping[str, Any]) -> str:
    """Of the tags that trainers count by training folder; none where two are as frequent."""
    counts: dict[str, int] = {}
    try:
        for folder in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            for tag, count in folder.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, TypeError, AttributeError):
        return ""
    most = [tag for tag, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else ""
