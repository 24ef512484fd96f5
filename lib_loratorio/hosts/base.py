"""What every host offers the script."""

from __future__ import annotations

from typing import Any, Protocol

from lib_loratorio.settings import Settings


class Host(Protocol):
    """A host's module. It puts everything back, whatever ends the sampling. `p` is the host's request."""

    def start(self, p: Any) -> bool:
        """A request begins; False where it is only a copy of one that is not over."""

    def prepare(self, p: Any, settings: Settings) -> None:
        """Arranges that the sampling about to start is composed. Raises LoratorioError."""

    def stop(self, p: Any, message: str) -> None:
        """Arranges that the sampling about to start fails with this message, on the page and in the API."""

    def leave_alone(self, p: Any, message: str) -> None:
        """Says, on the page and in the API's answer, why the sampling about to start is the host's ordinary one."""

    def listen(self, p: Any) -> None:
        """A request that is to be composed begins: other machines may have a part of it."""

    def batch_done(self, p: Any, number: int | None) -> None:
        """The latents of the request's batch are decoded; None where all is made on other machines."""

    def image_done(self, p: Any, image: Any) -> None:
        """An image of the request is there, a PIL image."""

    def finish(self, p: Any, processed: Any) -> None:
        """A request is over; what it shows beside its images is added to `processed`, the host's."""
