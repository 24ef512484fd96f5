"""Other extensions that act on the model here: where they do, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from lib_loratorio.hosts.webui.neighbours import acting_on, extension_of

IN_PLACE = frozenset({"ldm_patched.contrib.nodes_hypertile"})
"""Modules of patches of self-attention that make more rows of each row, in its place: several models may share what
they act on.
"""


def acting(model: nn.Module, wrapper: Callable | None) -> set[str]:
    """The extensions that act on rows between the host's batch and the model's layers, by folder."""
    folder = extension_of(wrapper)
    return acting_on(model.modules()) | ({folder} if folder else set())


def repeat_in_place(transformer_options: Mapping) -> bool:
    """Whether these patches make more rows of each row, in its place."""
    patches = transformer_options.get("patches", {}).get("attn1_patch", ())
    return any(getattr(patch, "__module__", None) in IN_PLACE for patch in patches)
