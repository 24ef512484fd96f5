"""What a LoRA file tells of itself, and what its user has written about it in the WebUI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def user_metadata(path: str) -> Mapping[str, Any]:
    """The user's metadata of the LoRA file at `path`, from the file beside it; empty without one."""
    try:
        found = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def metadata_of(path: str) -> Mapping[str, str]:
    """What a safetensors file's header tells of it; empty for another file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
