"""Which text conditions a composition needs: the base's and those of the adapters that change the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lib_loratorio.hosts.forge.loader import Adapter, text_encoder_of
from lib_loratorio.hosts.webui.text import encoded
from lib_loratorio.methods import BASE


def text_conditions(p, adapters: Sequence[Adapter]) -> dict[int, tuple]:
    """The conditions `(cond, uncond)` of the base and of each adapter that changes the text; else none.

    `uncond` is None where the host has none, as with CFG 1.
    """
    if not any(adapter.changes_text for adapter in adapters):
        return {}
    model = p.sd_model
    unconditional = p.get_conds()[1] is not None
    texts = {BASE: encoded(p, (), partial(text_encoder_of, model, model.forge_objects_original.clip), unconditional)}
    for number, adapter in enumerate(adapters):
        if adapter.changes_text:
            texts[number] = encoded(p, adapter.key, partial(text_encoder_of, model, adapter.clip), unconditional)
    return texts
