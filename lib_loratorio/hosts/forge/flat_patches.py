"""Patchers that hold their patches in one list a weight, with a number for the whole that tells the host when to merge
anew.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lib_loratorio.hosts.forge.backend import Factors, Patches, low_rank_factors, weighted_patches
from lib_loratorio.loras.block_weights import BlockWeights, Evenly


def patches(patcher: Any, original: Any) -> Patches:
    return _without(patcher.patches, original.patches)


def _without(patches: Patches, others: Patches) -> dict[str, list]:
    found = {}
    for key, of_weight in patches.items():
        known = [id(patch) for patch in others.get(key, ())]
        if rest := [patch for patch in of_weight if id(patch) not in known]:
            found[key] = rest
    return found


def without_networks(patcher: Any, merged: Any, original: Any) -> Any:
    return _with(patcher, _without(patcher.patches, patches(merged, original)), original)


def weighted(patcher: Any, original: Any, weights: BlockWeights | Evenly) -> Any:
    of_networks = weighted_patches(patches(patcher, original), weights)
    return _with(patcher, _together(original.patches, of_networks), original)


def with_patches(patcher: Any, networks: Any, original: Any) -> Any:
    return _with(patcher, _together(patcher.patches, patches(networks, original)), original)


def _together(patches: Patches, others: Patches) -> dict[str, list]:
    return {key: [*patches.get(key, ()), *others.get(key, ())] for key in {**patches, **others}}


def _with(patcher: Any, patches: Patches, original: Any) -> Any:
    """A clone with these patches. Which they are the host tells by a number alone, so it must be a new one, or the
    original's where they are the original's, which saves the host from merging anew.
    """
    clone = patcher.clone()
    clone.patches = dict(patches)
    same = {key: list(map(id, value)) for key, value in patches.items()} == {
        key: list(map(id, value)) for key, value in original.patches.items()
    }
    clone.patches_uuid = original.patches_uuid if same else uuid.uuid4()
    return clone


def merging(patcher: Any) -> AbstractContextManager[None]:
    """These patchers themselves take back a merge that has failed."""
    return nullcontext()


class _Complaints(logging.Handler):
    """What is logged about a weight."""

    def __init__(self, key: str):
        super().__init__(logging.WARNING)
        self.key, self.messages = key, []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self.key in message:
            self.messages.append(message)


@contextmanager
def complaints_raised(key: str, *loggers: logging.Logger) -> Iterator[None]:
    """These hosts log a patch that they cannot merge into a weight, and go on without it. Raises RuntimeError with what
    they say.
    """
    complaints = _Complaints(key)
    for logger in loggers:
        logger.addHandler(complaints)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(complaints)
    if complaints.messages:
        raise RuntimeError(complaints.messages[0])


def factors(patch: Any, lora_adapter: type) -> Factors | None:
    value = patch[1]
    return low_rank_factors(patch, value.weights) if isinstance(value, lora_adapter) else None
