"""Makes the pictures of a way and measures them, in several processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import torch

from lab import detector, model, world
from lab.evaluation import boxes, measurements
from lab.evaluation.captions import STYLED, SkillSet
from lab.evaluation.couple import coupled
from lab.evaluation.measurements import Record
from lab.evaluation.patches import patch_distance
from lab.evaluation.ways import Way
from lib_loratorio.hosts.diffusers import composed


class Studio:
    """The tiny model, its LoRAs and the detector, for one process; `regularised` is the folder of the LoRAs that were
    trained on with regularisation pictures.
    """

    def __init__(self, weights: Path = model.WEIGHTS, regularised: Path | None = None):
        self.pipe = model.load(weights / "model")
        self.ddim = self.pipe.scheduler
        self.loras, self.regularised = weights / "loras", regularised
        self.judge = detector.load(weights / "detector.safetensors")

    def pictures(
        self, way: Way, skills: Sequence[str], contents: Sequence[world.Content], seed: int
    ) -> tuple[np.ndarray, float]:
        """One picture for each content, `[len(contents), SIZE, SIZE, 3]` uint8, and the model evaluations a picture."""
        steps, scheduler, cfg = way.sampling
        folder = self.regularised if way.regularised else self.loras
        self.pipe.scheduler = getattr(diffusers, scheduler).from_config(self.ddim.config) if scheduler else self.ddim
        if way.own_captions and len(contents) > 1:  # words of a LoRA are one call's
            made = [self.pictures(way, skills, [shown], seed + number) for number, shown in enumerate(contents)]
            return np.concatenate([images for images, _ in made]), sum(count for _, count in made) / len(made)
        captions = [way.prompt(shown, skills) for shown in contents]
        if way.settings is None:
            return model.sample(self.pipe, captions, seed, steps, cfg), 2 * steps
        with composed(self.pipe, way.loras(skills, folder, contents[0]), way.settings) as composition:
            regional = [*zip(*(way.captions(skills, shown) for shown in contents))]
            with coupled(self.pipe, regional) if way.couple else nullcontext():
                images = model.sample(self.pipe, captions, seed, steps, cfg)
            return images, composition.tally.rows / len(contents)

    def measure(self, name: str, way: Way, skill_set: SkillSet) -> Record:
        """Makes the pictures of a set of skills and says what they show; `name` is the way's."""
        skills, contents = skill_set.contents()
        start = time.time()
        images, evaluations = self.pictures(way, skills, contents, skill_set.seed)
        seconds = time.time() - start
        found = detector.detect(self.judge, images)
        asked = np.array([name in skills for name in world.NAMES])
        shares = {"present": asked}
        if skill_set.split in STYLED:
            styles = np.array([world.is_style(name) for name in world.NAMES])
            shares |= {"style": asked & styles, "places": asked & ~styles}
        placed = boxes.found(self.judge, images, skills)._asdict() if skill_set.split == "places" else {}
        if way.grounds:
            placed |= boxes.grounds_found(images, [boxes.grounds(shown) for shown in contents])._asdict()
        return {
            "split": skill_set.split,
            "way": name,
            "count": skill_set.count,
            "number": skill_set.number,
            "skills": list(skills),
            **{key: found[:, of].mean(1).tolist() for key, of in shares.items()},
            **{key: values.tolist() for key, values in placed.items()},
            "complete": found[:, asked].all(1).astype(int).tolist(),
            "others": found[:, ~asked].sum(1).tolist(),
            "distance": patch_distance(images, contents, skill_set.seed).tolist(),
            "seconds": seconds / len(images),
            "evaluations": evaluations,
        }


class Task(NamedTuple):
    """One line of the results, to be measured."""

    name: str
    way: Way
    skill_set: SkillSet


@cache
def _own_studio(regularised: Path | None) -> Studio:
    """This process's studio; one thread, because there is a process for each processor."""
    torch.set_num_threads(1)
    return Studio(regularised=regularised)


def _measured(task: Task, regularised: Path | None) -> Record:
    return _own_studio(regularised).measure(*task)


def run(tasks: Sequence[Task], results: Path, workers: int, regularised: Path | None = None) -> None:
    """Measures the tasks that the file of results lacks, each finished one written at once; for ways with `regularised`
    LoRAs their folder.
    """
    done = {(r["split"], r["way"], r["count"], r["number"]) for r in measurements.read(results)}
    missing = [t for t in tasks if (t.skill_set.split, t.name, t.skill_set.count, t.skill_set.number) not in done]
    start = time.time()
    with ProcessPoolExecutor(workers) as pool, results.open("a") as file:
        for i, future in enumerate(as_completed([pool.submit(_measured, task, regularised) for task in missing]), 1):
            file.write(measurements.line(future.result()))
            file.flush()
            print(f"\r{i}/{len(missing)}  {time.time() - start:.0f} s", end="", flush=True)
    print()
