"""Which rows of a batch belong to which adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple


class Block(NamedTuple):
    """Consecutive rows of a batch that belong to one model: the base with these adapters."""

    adapters: tuple[int, ...]
    rows: int


class Run(NamedTuple):
    """Consecutive spans of rows, of equal size, whose adapters are consecutive in a layer's stack."""

    start: int
    rows: int
    first: int
    count: int


@dataclass(frozen=True)
class Layout:
    """How one batch's rows are divided among the models."""

    blocks: tuple[Block, ...]
    _runs: dict = field(default_factory=dict, compare=False, repr=False)
    _of_rows: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    def of_rows(self, rows: int) -> Layout:
        """The layout of a batch of so many rows, where all rows are one model's: then any number is."""
        if rows == self.rows:
            return self
        if rows not in self._of_rows:
            ((adapters, _),) = self.blocks
            self._of_rows[rows] = Layout((Block(adapters, rows),))
        return self._of_rows[rows]

    @cached_property
    def adapters(self) -> tuple[int, ...]:
        return tuple(sorted({adapter for block in self.blocks for adapter in block.adapters}))

    def runs(self, stacked: tuple[int, ...]) -> list[Run]:
        """The row runs of these adapters, which is where a layer with this stack has work to do."""
        if stacked not in self._runs:
            self._runs[stacked] = self._find_runs(stacked)
        return self._runs[stacked]

    def _find_runs(self, stacked: tuple[int, ...]) -> list[Run]:
        runs: list[Run] = []
        for position, adapter in enumerate(stacked):
            for start, rows in self._spans(adapter):
                last = runs[-1] if runs else None
                if (
                    last
                    and last.rows == rows
                    and last.start + last.rows * last.count == start
                    and last.first + last.count == position
                ):
                    runs[-1] = last._replace(count=last.count + 1)
                else:
                    runs.append(Run(start, rows, position, 1))
        return runs

    def _spans(self, adapter: int) -> list[tuple[int, int]]:
        """The adapter's rows as `(start, rows)`, blocks that touch as one."""
        spans: list[tuple[int, int]] = []
        start = 0
        for adapters, rows in self.blocks:
            if adapter in adapters:
                if spans and sum(spans[-1]) == start:
                    spans[-1] = spans[-1][0], spans[-1][1] + rows
                else:
                    spans.append((start, rows))
            start += rows
        return spans
