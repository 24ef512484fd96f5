"""Which text conditions a composition needs: the base's and those of the adapters that change the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lib_loratorio.hosts.a1111.loader import Adapter, loaded
from lib_loratorio.hosts.webui.text import encoded, own_texts


def text_conditions(p, adapters: Sequence[Adapter], words: bool) -> dict[int, tuple]:
    """The conditions `(cond, uncond)` of the base and of each adapter that changes the text, or whose trigger `words`
    do; else none.
    """

    def encoded_with(readers: tuple[Adapter, ...], of_reader: str) -> tuple:
        return encoded(p, tuple(adapter.key for adapter in readers), partial(loaded, readers), of_reader)

    return own_texts(adapters, words, encoded_with)
