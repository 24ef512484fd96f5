"""Who reads the prompt with what: text conditions per adapter, and a cache of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from lib_loratorio.loras.adapter import BASE, Adapter

Value = TypeVar("Value")


class Reading(NamedTuple):
    """How one model reads the prompt: with these adapters in the text encoder, and these words appended."""

    adapters: tuple[Adapter, ...]
    words: str

    @property
    def key(self) -> Hashable:
        """What text conditions depend on besides the prompt: equal for readings of equal outcome."""
        return tuple(adapter.key for adapter in self.adapters), self.words


def readings(adapters: Sequence[Adapter], words: Sequence[str], always: bool = False) -> dict[int, Reading]:
    """The readings of the base and of each adapter that needs its own; none where one reading serves all, unless the
    base's is `always` wanted.

    An adapter needs its own where it changes the text encoder or has words. The global ones that change the text
    encoder are in every reading, and have no words: what they belong to is everything.
    """
    if not always and not any(word or adapter.changes_text for word, adapter in zip(words, adapters)):
        return {}
    in_all = tuple(adapter for adapter in adapters if adapter.is_global and adapter.changes_text)
    found = {BASE: Reading(in_all, "")}
    for number, (adapter, word) in enumerate(zip(adapters, words)):
        if not adapter.is_global and (word or adapter.changes_text):
            found[number] = Reading((*in_all, adapter) if adapter.changes_text else in_all, word)
    return found


class ConditionCache:
    """The most recently used text conditions, apart from the host's own cache: 32, or as many as are made room for.

    Keys must hold everything the conditions depend on: prompt, size, and how it was read.
    """

    def __init__(self, size: int = 32):
        self.size = self._least = size
        self._entries: OrderedDict[Hashable, object] = OrderedDict()

    def make_room(self, count: int) -> None:
        """Keeps one generation's conditions from driving each other out."""
        self.size = max(self._least, count)

    def get(
        self, key: Hashable, compute: Callable[[], Value], holds: Callable[[Value], bool] = lambda value: True
    ) -> Value:
        """The cached value of `key` where that still `holds`, or `compute()`'s, which is then cached; an error caches
        nothing.
        """
        if key not in self._entries or not holds(self._entries[key]):
            self._entries[key] = compute()
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return self._entries[key]

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
