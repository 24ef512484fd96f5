"""The one family of errors that a user reads, and how everything that a user is told begins."""

from __future__ import annotations

NAME = "LoRAtorio"


def told(message: str) -> str:
    """The message as a user reads it: it says whom it is from, unless its own first word does."""
    return message if message.startswith(NAME) else f"{NAME}: {message}"


def untold(message: str) -> str:
    """The message where it is plain whom it is from."""
    return message.removeprefix(f"{NAME}: ")


class LoratorioError(RuntimeError):
    """A composition that cannot begin or go on; the message is for the user and says what to do."""

    def __init__(self, message: str):
        super().__init__(told(message))


class SettingsError(LoratorioError, ValueError):
    """A setting has a value that cannot be used; the message names field, value and allowed range."""
