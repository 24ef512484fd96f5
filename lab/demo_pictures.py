"""Makes the demo's pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from lab import detector, model, world
from lab.demo_plan import Shot
from lab.evaluation import boxes
from lab.evaluation.ways import CFG, STEPS
from lib_loratorio.hosts.diffusers import Composition, composed


@dataclass
class Picture:
    """One picture `[SIZE, SIZE, 3]` uint8, and what is told of it.

    found: the skills that the detector sees. in_place: how many figures stand in their box, where that was asked.
    evaluations and seconds: of the model, and on the machine that made it. labels, weights: of the LoRAs that compete,
    and their mean weights `[N, h, w]`; none where nothing was weighed. steps, weights_of_steps: of each step the
    estimate of the picture, `[steps, SIZE, SIZE, 3]` uint8, and the weights in it, `[steps, N, h, w]`.
    """

    image: np.ndarray
    found: list[str]
    evaluations: float
    seconds: float
    in_place: int = 0
    labels: list[str] = field(default_factory=list)
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))
    steps: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    weights_of_steps: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 1, 1), np.float32))


class Maker:
    """The tiny model with its LoRAs and the detector, loaded once something is to be made."""

    def __init__(self, weights: Path):
        self.weights = weights

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        torch.set_num_threads(1)  # the same picture on every number of processors
        return model.load(self.weights / "model")

    @cached_property
    def judge(self) -> detector.Detector:
        return detector.load(self.weights / "detector.safetensors")

    def picture(self, shot: Shot) -> Picture:
        loras = shot.way.loras(shot.skills, self.weights / "loras", shot.shown)
        film = Film()
        with composed(self.pipe, loras, shot.way.settings) as composition:
            start = time.perf_counter()
            with film.taken(self.pipe, composition) if shot.filmed else nullcontext():
                images = model.sample(self.pipe, [shot.shown.caption], shot.seed, STEPS, CFG)
            seconds = time.perf_counter() - start
        present = detector.detect(self.judge, images)[0]
        made = Picture(
            images[0],
            [name for name, is_there in zip(world.NAMES, present) if is_there],
            composition.tally.rows,
            seconds,
        )
        if shot.placed:
            made.in_place = round(len(shot.skills) * float(boxes.found(self.judge, images, shot.skills).inside[0]))
        if composition.maps.mean is not None:
            made.labels, made.weights = composition.labels, composition.maps.mean[:, 0].numpy()
        if shot.filmed:
            made.steps, made.weights_of_steps = film.pictures(self.pipe), np.stack(film.weights)
        return made


class Film:
    """Of each step of one picture: the model's estimate of it, as a latent, and the weights `[N, h, w]`."""

    def __init__(self) -> None:
        self.estimates: list[torch.Tensor] = []
        self.weights: list[np.ndarray] = []

    @contextmanager
    def taken(self, pipe: StableDiffusionPipeline, composition: Composition) -> Iterator[None]:
        """Within it the steps of the pipeline's scheduler are watched: only it knows the estimate."""
        scheduler, step = pipe.scheduler, pipe.scheduler.step
        before: list[torch.Tensor] = []

        @wraps(step)  # the pipeline reads its arguments' names
        def watched(*args: object, **options: object) -> tuple[torch.Tensor]:
            made = step(*args, **{**options, "return_dict": True})
            # The maps keep the mean of the steps so far, of which the latest is what the one before lacks.
            count, mean = len(before) + 1, composition.maps.mean[:, 0].clone()
            latest = count * mean - (count - 1) * before[-1] if before else mean
            before.append(mean)
            self.estimates.append(made.pred_original_sample)
            self.weights.append(latest.clamp(0, 1).numpy())
            return (made.prev_sample,)

        scheduler.step = watched
        try:
            yield
        finally:
            del scheduler.step

    @torch.no_grad()
    def pictures(self, pipe: StableDiffusionPipeline) -> np.ndarray:
        """The estimates decoded, `[steps, SIZE, SIZE, 3]` uint8."""
        decoded = pipe.vae.decode(torch.cat(self.estimates) / pipe.vae.config.scaling_factor).sample
        return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
