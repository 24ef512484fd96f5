"""The training loop that the tiny model's stages share: resumable, with its losses in a table."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

EMA = 0.995  # of averaged weights, per step
SAVE_EVERY = 60  # seconds between checkpoints
LOG_EVERY = 20  # steps between rows of the table

LossAt = Callable[[torch.Generator], torch.Tensor]
"""Computes the loss, a scalar, of one batch that is drawn with this generator."""


@dataclass(frozen=True)
class Stage:
    """How one stage is trained. Seeds are part of it, so that a stage is the same wherever it runs."""

    steps: int
    batch: int
    rate: float  # peak learning rate
    scenes: int  # size of the data set
    seed: int


class Training:
    """One stage of training: warm-up and cosine rate, gradient clipping, table of losses, checkpoints.

    Goes on where the stage's checkpoint in `scratch` stands, if there is one.

    Args:
        name: of the stage's files.
        stage: how it is trained.
        modules: whose parameters are trained, as far as they require gradients.
        scratch: the folder of checkpoints and tables.
        averaged: whether to keep the running mean of the weights, in `average`.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        modules: Mapping[str, torch.nn.Module],
        scratch: Path,
        averaged: bool = False,
    ):
        self.stage, self.modules = stage, modules
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=stage.rate, weight_decay=1e-4, betas=(0.9, 0.99))
        self.average = {k: copy.deepcopy(m.state_dict()) for k, m in modules.items()} if averaged else None
        self.checkpoint, self.table = scratch / f"{name}.pt", scratch / f"{name}.csv"
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            self._restore()
        else:
            self.table.write_text("step,loss,seconds\n")

    def run(self, loss_at: LossAt) -> None:
        """Trains to the stage's last step; the generator given to `loss_at` depends on the step alone."""
        stage, begin, saved, losses = self.stage, time.time() - self.seconds, time.time(), []
        while self.step < stage.steps:
            losses.append(self._train_step(loss_at))
            if self.average:
                self._take_into_average()
            if self.step % LOG_EVERY == 0 or self.step == stage.steps:
                self.seconds = time.time() - begin
                self._log(np.mean(losses))
                losses = []
            if time.time() - saved > SAVE_EVERY or self.step == stage.steps:
                self._save()
                saved = time.time()

    def _train_step(self, loss_at: LossAt) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss = loss_at(torch.Generator().manual_seed(self.stage.seed * 1_000_003 + self.step))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _rate(self) -> float:
        """The learning rate of this step: up in the first 3% of the steps, then down to 2% of the peak."""
        steps = self.stage.steps
        warm = min(1, (self.step + 1) / (0.03 * steps + 1))
        return self.stage.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (self.step / steps))))

    def _take_into_average(self) -> None:
        keep = min(EMA, self.step / (self.step + 10))  # so that the untrained weights fade soon
        for key, module in self.modules.items():
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    self.average[key][name].lerp_(value, 1 - keep)

    def _log(self, loss: float) -> None:
        with self.table.open("a") as file:
            file.write(f"{self.step},{loss:.5f},{self.seconds:.1f}\n")
        print(f"{self.table.stem} {self.step}/{self.stage.steps}  loss {loss:.4f}  {self.seconds:.0f} s", flush=True)

    def _save(self) -> None:
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        heading, *rows = self.table.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[0]) <= self.step]  # later ones are trained again
        self.table.write_text("\n".join([heading, *kept]) + "\n")
