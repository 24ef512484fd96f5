"""Text conditions per adapter: who reads the prompt with what, computed by the host and cached across steps and
generations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from lib_loratorio.engine.methods import BASE

Value = TypeVar("Value")


class Reading(NamedTuple):
    """How one model's text conditions come about: the adapters that are in the text encoder, and words appended to the
    prompt.
    """

    adapters: tuple[Any, ...]
    words: str


def readings(adapters: Sequence[Any], words: Sequence[str]) -> dict[int, Reading]:
    """The readings of the base and of each adapter that needs its own; none where no adapter does, so that one reading
    serves all.

    An adapter needs its own where it changes the text encoder or has words. The global ones that change the text
    encoder are in every reading, and have no words: what they belong to is everything.
    """
    if not any(word or adapter.changes_text for word, adapter in zip(words, adapters)):
        return {}
    everywhere = tuple(adapter for adapter in adapters if adapter.part.role == "global" and adapter.changes_text)
    found = {BASE: Reading(everywhere, "")}
    for number, (adapter, word) in enumerate(zip(adapters, words)):
        if adapter.part.role == "local" and (word or adapter.changes_text):
            found[number] = Reading((*everywhere, adapter) if adapter.changes_text else everywhere, word)
    return found


class ConditionCache:
    """A cache of the most recently used text conditions, apart from the host's own: of 32, or of as many as there must
    be room for.

    Keys must hold everything the conditions depend on: prompt, text-encoder weights, adapter, strength.
    """

    def __init__(self, size: int = 32):
        self.size = self._least = size
        self._entries: OrderedDict[Hashable, object] = OrderedDict()

    def make_room(self, count: int) -> None:
        """So that one generation's conditions do not drive each other out."""
        self.size = max(self._least, count)

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The cached value of `key`, or `compute()`'s, which is then cached; an error caches nothing."""
        if key not in self._entries:
            self._entries[key] = compute()
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return self._entries[key]

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
