"""What the user has written about a LoRA in the WebUI, which keeps it in a file beside the LoRA's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def user_metadata(path: str) -> Mapping[str, Any]:
    """The user's metadata of the LoRA file at `path`, by the WebUI's names for them; empty where there are none."""
    try:
        found = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
