"""What we keep for an object that is not ours, without a trace on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Values that belong to objects of others, which copy, compare and serialise them with all their attributes.

    An object's value is known by the object's identity, as such objects need not be hashable: a copy has none. It goes
    with the object.
    """

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def get(self, of: Any) -> T | None:
        return self._values.get(id(of))

    def set(self, of: Any, value: T) -> None:
        if id(of) not in self._values:
            weakref.finalize(of, self._values.pop, id(of), None).atexit = False
        self._values[id(of)] = value

    def get_or_make(self, of: Any, make: Callable[[], T]) -> T:
        if id(of) not in self._values:
            self.set(of, make())
        return self._values[id(of)]

    def drop(self, of: Any) -> None:
        self._values.pop(id(of), None)

    def values(self) -> list[T]:
        """Of all objects that have one."""
        return list(self._values.values())
