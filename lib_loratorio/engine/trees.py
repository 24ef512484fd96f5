"""A model call's inputs as trees of tuples, lists and dicts, whose tensors have the rows in dim 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def map_tensors(function: Callable[..., torch.Tensor], tree: Any, *others: Any) -> Any:
    """Applies `function` to the tensors of trees of equal structure; other leaves are taken from the first."""
    if isinstance(tree, torch.Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(function, *values) for values in zip(tree, *others))
    return tree


def take_rows(tree: Any, rows: slice | list[int]) -> Any:
    """The tree of these rows alone."""
    return map_tensors(lambda tensor: tensor[rows], tree)


def concatenate(trees: Sequence[Any]) -> Any:
    """The rows of several trees of equal structure, one after the other."""
    return trees[0] if len(trees) == 1 else map_tensors(lambda *tensors: torch.cat(tensors), *trees)


def shapes(tree: Any) -> tuple[tuple[int, ...], ...]:
    """What must agree for two trees to share a batch: every tensor's shape but for the rows."""
    found: list[tuple[int, ...]] = []
    map_tensors(lambda tensor: found.append(tuple(tensor.shape[1:])) or tensor, tree)
    return tuple(found)
