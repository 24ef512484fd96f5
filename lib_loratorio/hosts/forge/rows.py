"""The batches that these hosts hand to their models, as trees that can be cut and joined by rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lib_loratorio.engine.trees import map_tensors
from lib_loratorio.errors import LoratorioError

NOT_BY_ROWS = ("transformer_options", "control_model")


@dataclass
class HostBatch:
    """What the host hands to a `model_function_wrapper`: chunks of `images` rows each.

    flags: per chunk 0 for a condition, 1 for the unconditional one.
    tree: everything that has rows; its `chunk` is each row's number in `flags`, so that a batch put together from parts
        of it can be described to the model anew.
    fixed: the rest of `c`.
    """

    flags: list[int]
    images: int
    tree: dict
    fixed: dict

    @classmethod
    def of(cls, args: dict, c: dict) -> HostBatch:
        x, flags = args["input"], list(args["cond_or_uncond"])
        rows, images = x.shape[0], x.shape[0] // len(flags)
        tree = {
            "x": x,
            "timestep": args["timestep"],
            "c": {key: _by_rows(value, key, rows) for key, value in c.items() if key not in NOT_BY_ROWS},
            "chunk": torch.arange(len(flags), device=x.device).repeat_interleave(images),
        }
        return cls(flags, images, tree, {key: c[key] for key in NOT_BY_ROWS if key in c})

    def rows_of(self, chunks: Sequence[int]) -> torch.Tensor:
        """The row numbers of these chunks, one after the other."""
        return torch.tensor(
            [chunk * self.images + row for chunk in chunks for row in range(self.images)],
            device=self.tree["x"].device,
        )

    def call(self, tree: dict) -> dict:
        """Arguments for a wrapper, for a batch put together of parts of this one."""
        chunks = tree["chunk"][:: self.images].tolist()
        flags = [self.flags[chunk] for chunk in chunks]
        fixed = dict(self.fixed)
        if "transformer_options" in fixed:
            fixed["transformer_options"] = self._options(fixed["transformer_options"], chunks, flags)
        c = map_tensors(lambda tensor: tensor, tree["c"])  # the model takes out of ControlNet's lists what it has used
        return {"input": tree["x"], "timestep": tree["timestep"], "c": {**c, **fixed}, "cond_or_uncond": flags}

    def _options(self, options: dict, chunks: list[int], flags: list[int]) -> dict:
        """The batch's description for the model and its patches, for these chunks."""
        options = {**options, "cond_or_uncond": list(flags)}
        rows = [flag for flag in flags for _ in range(self.images)]
        if "cond_mark" in options:
            options["cond_mark"] = torch.tensor(rows).to(options["cond_mark"])
            options["cond_indices"] = [row for row, flag in enumerate(rows) if flag == 0]
            options["uncond_indices"] = [row for row, flag in enumerate(rows) if flag != 0]
        if "uuids" in options:
            options["uuids"] = [options["uuids"][chunk] for chunk in chunks]
        return options


def looks_across_rows(transformer_options: dict) -> bool:
    """Whether another extension has replaced the self-attention of several blocks, as those do that share attention
    among a batch's images: they expect the batch to be one model's. What replaces a single block's looks at each row
    for itself.
    """
    return len(transformer_options.get("patches_replace", {}).get("attn1", ())) > 1


def _by_rows(tree: Any, key: str, rows: int) -> Any:
    """Tensors of one row stand for all rows."""

    def expanded(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() and tensor.shape[0] == rows:
            return tensor
        if tensor.dim() and tensor.shape[0] == 1:
            return tensor.expand(rows, *tensor.shape[1:])
        raise LoratorioError(
            f"the model's input '{key}' has the shape {tuple(tensor.shape)} in a batch of {rows}; "
            "LoRAtorio cannot divide it among the LoRAs. Switch off the extension that makes it."
        )

    return map_tensors(expanded, tree)
