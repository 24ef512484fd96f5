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
    """Consecutive spans of rows, of equal size, whose adapters are consecutive in a layer's stack.

    `count` spans of `rows` each; a span has `together` adapters, more than one only where it is the only span.
    """

    start: int
    rows: int
    first: int
    count: int = 1
    together: int = 1

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.start + self.rows * self.count

    @property
    def adapters(self) -> slice:
        """Their places in the stack."""
        return slice(self.first, self.first + self.count * self.together)


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
        """The fewest of two ways: an adapter's rows that touch are one span, or only those of one and the same model.

        The first is better for an adapter that every model has, the second for a model that has every adapter.
        """
        return min((self._joined(stacked, within_models) for within_models in (False, True)), key=len)

    def _joined(self, stacked: tuple[int, ...], within_models: bool) -> list[Run]:
        of_spans: dict[tuple[int, int], list[int]] = {}
        for position, adapter in enumerate(stacked):
            for span in self._spans(adapter, within_models):
                of_spans.setdefault(span, []).append(position)
        found = [
            Run(start, rows, first, together=together)
            for (start, rows), positions in of_spans.items()
            for first, together in _consecutive(positions)
        ]
        runs: list[Run] = []
        for run in sorted(found, key=lambda run: (run.together, run.first, run.start)):
            last = runs[-1] if runs else None
            if (
                last
                and last.together == run.together == 1
                and (last.rows, last.end, last.adapters.stop) == (run.rows, run.start, run.first)
            ):
                runs[-1] = last._replace(count=last.count + 1)
            else:
                runs.append(run)
        return runs

    def _spans(self, adapter: int, within_models: bool) -> list[tuple[int, int]]:
        """The adapter's rows as `(start, rows)`, blocks that touch as one, or only those of one model."""
        spans: list[tuple[int, int]] = []
        start, before = 0, None
        for adapters, rows in self.blocks:
            if adapter in adapters:
                if before is not None and adapter in before and (not within_models or adapters == before):
                    spans[-1] = spans[-1][0], spans[-1][1] + rows
                else:
                    spans.append((start, rows))
            start, before = start + rows, adapters
        return spans


def _consecutive(positions: list[int]) -> list[tuple[int, int]]:
    """Increasing positions as `(first, count)` of those that follow each other."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and sum(found[-1]) == position:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((position, 1))
    return found
