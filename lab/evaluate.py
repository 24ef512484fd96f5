"""Measures ways of composing LoRAs in the tiny world and writes docs/evaluation.md with its plots.

    python -m lab.evaluate              everything; goes on where an earlier run stopped
    python -m lab.evaluate --report     only the report, from what was measured so far

For N = 2..5 skills: sets of skills drawn at random, several captions each, one picture a caption and method, the same starting
noise for every method. Defaults are chosen on the "dev" captions (the ablation); the reported methods use other captions, skills'
sets and seeds ("test"). Measurements lie in --results, one JSON line a set and method.
"""
import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lab import detector, measure, model, world
from lab.model import WEIGHTS
from lib_loratorio.settings import Settings

COUNTS = (2, 3, 4, 5)
STEPS, CFG = 20, 4.0
CAPTIONS = 4                                   # of every set of skills
SPLITS = {"dev": (1_000_000, 2), "test": (2_000_000, 13)}      # first seed, sets for each N


@dataclass(frozen=True)
class Way:
    """One way of making the pictures of a set of skills."""
    settings: Settings | None          # None: without any LoRA
    everything: bool = False           # all LoRAs loaded, not only those that the caption asks for


DEFAULT = Settings(enabled=True)
TOP_K = 2                              # with all LoRAs loaded; chosen on dev
METHODS = {
    "no LoRA": Way(None),
    "Merge": Way(replace(DEFAULT, method="merge")),
    "Switch": Way(replace(DEFAULT, method="switch")),
    "Composite": Way(replace(DEFAULT, method="composite")),
    "LoRAtorio": Way(DEFAULT),
    "Merge, all loaded": Way(replace(DEFAULT, method="merge"), everything=True),
    "LoRAtorio, all loaded, top-k": Way(replace(DEFAULT, top_k=TOP_K), everything=True),
}
TEMPERATURES, PATCHES, LAMBDAS, TOP_KS = (0.003, 0.02, 0.1, 0.5), (1, 2, 4), (0.0, 0.5, 1.0), (1, 2, 3)


def ablation():
    """The variants measured on dev: temperature by patch size, then lambda, then top-k with all LoRAs loaded."""
    ways = {f"tau {t:g}, d {d}": Way(replace(DEFAULT, temperature=t, patch_size=d)) for t in TEMPERATURES for d in PATCHES}
    ways |= {f"lambda {v:g}": Way(replace(DEFAULT, lam=v)) for v in LAMBDAS}
    ways |= {f"all loaded, k {k}": Way(replace(DEFAULT, top_k=k), everything=True) for k in TOP_KS}
    return ways


@dataclass(frozen=True)
class SkillSet:
    """One set of skills with its captions."""
    split: str
    number: int
    count: int

    @property
    def seed(self):
        return SPLITS[self.split][0] + 1000 * (self.count * 100 + self.number)

    def contents(self):
        """The skills, and what each of the pictures is to show."""
        rng = np.random.default_rng(self.seed)
        skills = world.random_skills(rng, self.count)
        return skills, [world.content(skills, rng) for _ in range(CAPTIONS)]


def skill_sets(split, limit=None):
    return [SkillSet(split, number, count) for number in range(limit or SPLITS[split][1]) for count in COUNTS]


class Studio:
    """The tiny model and its LoRAs, for one process."""

    def __init__(self, weights=WEIGHTS):
        self.pipe = model.load(weights / "model")
        self.loras = weights / "loras"
        self.judge = detector.load(weights / "detector.safetensors")

    def pictures(self, way, skills, contents, seed):
        """[len(contents), SIZE, SIZE, 3] uint8."""
        captions = [shown.caption for shown in contents]
        if way.settings is None:
            return model.sample(self.pipe, captions, seed, STEPS, CFG)
        from lib_loratorio.hosts.diffusers import composed
        with composed(self.pipe, [(self.loras / f"{name}.safetensors", 1.0) for name in (world.NAMES if way.everything else skills)], way.settings):
            return model.sample(self.pipe, captions, seed, STEPS, CFG)

    def measure(self, way, skill_set):
        """What one line of the results holds."""
        skills, contents = skill_set.contents()
        start = time.time()
        images = self.pictures(way, skills, contents, skill_set.seed)
        seconds = time.time() - start
        found = detector.detect(self.judge, images)
        asked = np.array([name in skills for name in world.NAMES])
        return {"skills": list(skills), "present": found[:, asked].mean(1).tolist(), "complete": found[:, asked].all(1).astype(int).tolist(),
                "others": found[:, ~asked].sum(1).tolist(), "distance": measure.patch_distance(images, contents, skill_set.seed).tolist(),
                "seconds": seconds / len(images)}


_studio = None


def _work(name, way, skill_set):
    global _studio
    if _studio is None:
        torch.set_num_threads(1)
        _studio = Studio()
    return {"split": skill_set.split, "way": name, "count": skill_set.count, "number": skill_set.number, **_studio.measure(way, skill_set)}


def run(tasks, results, workers):
    """Measures the (name, way, skill set) that `results` lacks, each finished one written at once."""
    done = {(r["split"], r["way"], r["count"], r["number"]) for r in read(results)}
    missing = [t for t in tasks if (t[2].split, t[0], t[2].count, t[2].number) not in done]
    start = time.time()
    with ProcessPoolExecutor(workers) as pool, results.open("a") as file:
        for i, future in enumerate(as_completed([pool.submit(_work, *task) for task in missing]), 1):
            file.write(json.dumps(future.result()) + "\n")
            file.flush()
            print(f"\r{i}/{len(missing)}  {time.time() - start:.0f} s", end="", flush=True)
    print()


def read(results):
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("outputs/evaluation.jsonl"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("dev", "test"), help="one of the two splits; the report needs both")
    parser.add_argument("--sets", type=int, help="sets of skills for each N, for a shorter run than the published one")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for split, ways in (("dev", ablation()), ("test", METHODS)):
            if args.only in (None, split):
                run([(name, way, s) for s in skill_sets(split, args.sets) for name, way in ways.items()], args.results, args.workers)
    from lab import report
    records = read(args.results)
    if {record["split"] for record in records} == set(SPLITS):
        report.write(records, args.docs)
    for kind, way in report.choices(records).items():
        print(f"dev: best of {kind}: {way}")


if __name__ == "__main__":
    main()
