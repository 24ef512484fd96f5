"""The line of settings that WebUIs write into a picture and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from PIL.PngImagePlugin import PngInfo


def infotext(prompt: str, negative: str, fields: Mapping[str, Any]) -> str:
    """The prompt, the negative prompt if there is one, and `name: value` pairs; empty values are left out."""
    lines = [prompt] + ([f"Negative prompt: {negative}"] if negative else [])
    return "\n".join(
        [*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value not in ("", None))]
    )


def _quoted(value: Any) -> str:
    """As AUTOMATIC1111 does it: text that would end the field early is written as a JSON string."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


def png_info(text: str) -> PngInfo:
    """The `parameters` of a PNG file."""
    info = PngInfo()
    info.add_text("parameters", text)
    return info
