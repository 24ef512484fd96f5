"""The host's requests are those that all hosts have."""

from bases.processing import Processing, process_images

__all__ = ["Processing", "process_images"]
