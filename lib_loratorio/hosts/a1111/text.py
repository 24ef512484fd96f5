"""Which text conditions a composition needs: the base's and those of the adapters that change the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lib_loratorio.hosts.a1111.loader import Adapter, loaded
from lib_loratorio.hosts.webui.text import encoded
from lib_loratorio.methods import BASE


def text_conditions(p, adapters: Sequence[Adapter]) -> dict[int, tuple]:
    """The conditions `(cond, uncond)` of the base and of each adapter that changes the text; else none."""
    if not any(adapter.changes_text for adapter in adapters):
        return {}
    wanted = {BASE: ()}
    wanted.update({number: (adapter,) for number, adapter in enumerate(adapters) if adapter.changes_text})
    return {number: encoded(p, tuple(adapter.key for adapter in alone), partial(loaded, alone)) for number, alone in wanted.items()}
