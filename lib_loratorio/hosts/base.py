"""What every host offers the engine, and the errors that reach its user."""

from __future__ import annotations

from typing import Any, Protocol

from lib_loratorio.settings import Settings


class LoratorioError(RuntimeError):
    """Something only the user can put right; the message says what to do."""


class Host(Protocol):
    """The host side of a composition. An implementation puts everything back, whatever ends the sampling."""

    def prepare(self, p: Any, settings: Settings) -> None:
        """Arranges that the sampling about to start is composed. Raises LoratorioError."""

    def stop(self, p: Any, message: str) -> None:
        """Arranges that the sampling about to start fails with this message, on the page and in the API."""

    def note(self, p: Any, message: str) -> None:
        """Tells the user something, on the page and in the API's answer; the generation goes on."""
