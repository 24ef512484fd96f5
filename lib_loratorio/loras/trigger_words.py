"""The words that call for what a LoRA has learned, as its file or its user tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lib_loratorio.loras.metadata import metadata_of, user_metadata


def trigger_words(path: str) -> str:
    """A LoRA file's trigger words; empty where nothing tells them.

    These are what the user has noted in the WebUI as its activation text; else the file's own
    `modelspec.trigger_phrase`; else the tag that more of its training captions had than any other. Of a list all are
    taken, divided by commas. Tags such as `<lora:...>` are no words, and `AND` divides no sub-prompts here.
    """
    metadata = metadata_of(path)
    return (
        _words(user_metadata(path).get("activation text"))
        or _words(metadata.get("modelspec.trigger_phrase"))
        or _words(_most_frequent_tag(metadata))
    )


def _words(value: Any) -> str:
    """Words from a text, a list, or a list written as JSON; none from anything else."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(one) for one in value)
    text = re.sub(r"<[^<>]*>", " ", value) if isinstance(value, str) else ""
    parts = re.split(r",|\bAND\b", text)
    return ", ".join(" ".join(part.split()) for part in parts if part.strip())


def appended(prompt: str, words: str) -> str:
    """The prompt with the words at its end, unless it has them."""
    if not words or _stands(words, prompt):
        return prompt
    return f"{prompt}, {words}" if prompt.strip() else words


def is_named(path: str, prompts: Iterable[str]) -> bool:
    """Whether any of a LoRA file's trigger words stands in any of the prompts, in whatever case."""
    words = [word.strip() for word in trigger_words(path).split(",")]
    return any(word and _stands(word, prompt) for word in words for prompt in prompts)


def _stands(words: str, prompt: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE) is not None


def joined(*words: str) -> str:
    """Words of several origins as one text."""
    return ", ".join(filter(None, words))


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
