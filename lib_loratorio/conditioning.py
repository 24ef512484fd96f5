"""Text conditions per adapter, computed by the host and cached across steps and generations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

Value = TypeVar("Value")


class ConditionCache:
    """A cache of the most recently used text conditions, apart from the host's own.

    Keys must hold everything the conditions depend on: prompt, text-encoder weights, adapter, strength.
    """

    def __init__(self, size: int = 32):
        self.size = size
        self._entries: OrderedDict[Hashable, object] = OrderedDict()

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
