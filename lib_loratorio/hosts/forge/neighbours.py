"""Other extensions that act on the model here: where they do, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lib_loratorio.hosts.webui.neighbours import acting_on, extension_of

IN_PLACE = frozenset({"sd_forge_hypertile"})
"""Those that make more rows of each row, in its place: several models may share what they act on."""


def acting(model: nn.Module, wrapper: Callable | None) -> set[str]:
    """The extensions that act on rows between the host's batch and the model's layers, by folder."""
    folder = extension_of(wrapper)
    return acting_on(model.modules()) | ({folder} if folder else set())
