"""How far a command has come: one line, rewritten where it is a terminal."""

from __future__ import annotations

import shutil
from typing import TextIO

BAR = 20
FEW = 4  # lines in all, where nothing can be rewritten


class Progress:
    """Of `total` things, 0 while that is not known. Elsewhere than on a terminal: a plain line for each quarter."""

    def __init__(self, total: int, stream: TextIO):
        self.total, self.stream, self.rewrites = total, stream, stream.isatty()
        self._quarter = 0

    def tell(self, done: int, doing: str) -> None:
        """So many are done, and what is being done now."""
        if self.rewrites:
            text = doing
            if self.total:
                filled = BAR * done // self.total
                text = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{self.total}  {doing}"
            width = shutil.get_terminal_size().columns - 1  # a longer one would wrap, and stay
            self.stream.write(f"\r\x1b[K{text[:width]}")
        elif self.total and FEW * done // self.total > self._quarter:
            self._quarter = FEW * done // self.total
            self.stream.write(f"{done} of {self.total}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Takes the line away, so that others can be written."""
        if self.rewrites:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
