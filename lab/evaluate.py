"""Measures ways of composing LoRAs in the tiny world and writes docs/evaluation.md with its plots.

    python -m lab.evaluate              everything; goes on where an earlier run stopped
    python -m lab.evaluate --report     only the report, from what was measured so far

For N = 2..5 skills: sets of skills drawn at random, several captions each, one picture a caption and method, the same
starting noise for every method. Defaults are chosen on the "dev" captions (the ablation) and the "pool" captions (how a
pool is scouted); the reported methods use other captions, skills' sets and seeds ("test"). "style" has sets of three
skills with one style each; "speed" takes every method's time in turn, in one process with one thread. Measurements lie
in --results, one JSON line a set and method.
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
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

COUNTS = (2, 3, 4, 5)
STEPS, CFG = 20, 4.0
CAPTIONS = 4  # of every set of skills
# First seed, sets for each N, and the N.
SPLITS = {
    "dev": (1_000_000, 2, COUNTS),
    "test": (2_000_000, 13, COUNTS),
    "style": (3_000_000, 26, (3,)),
    "speed": (4_000_000, 5, (3,)),
    "pool": (5_000_000, 6, COUNTS),
}


@dataclass(frozen=True)
class Way:
    """One way of making the pictures of a set of skills."""

    settings: Settings | None  # None: without any LoRA
    everything: bool = False  # all LoRAs loaded, not only those that the caption asks for
    pool: bool = False  # these are a pool, beside a prompt without LoRAs
    roles: bool = False  # styles are global

    def loras(self, skills):
        """The names and parts of the LoRAs that are loaded for a caption with these skills."""
        names = world.NAMES if self.everything else skills
        return [(name, LoraTag(role="global" if self.roles and _is_style(name) else "local")) for name in names]


def _is_style(skill):
    return world.SKILLS[skill].kind == "style"


DEFAULT = Settings(enabled=True)
TOP_K = 2  # with all LoRAs loaded; chosen on dev
SCOUT = replace(DEFAULT, top_k=TOP_K, pool_mode="scout")
METHODS = {
    "no LoRA": Way(None),
    "Merge": Way(replace(DEFAULT, method="merge")),
    "Switch": Way(replace(DEFAULT, method="switch")),
    "Composite": Way(replace(DEFAULT, method="composite")),
    "LoRAtorio": Way(DEFAULT),
    "Merge, all loaded": Way(replace(DEFAULT, method="merge"), everything=True),
    "Pool, exact": Way(replace(DEFAULT, top_k=TOP_K), everything=True),
    "LoRAtorio, lambda 1": Way(replace(DEFAULT, lam=1.0)),
    "LoRAtorio, negative every 2nd step": Way(replace(DEFAULT, guidance_every=2)),
    "LoRAtorio, negative every 5th step": Way(replace(DEFAULT, guidance_every=5)),
    "Pool, scout, share 0.7": Way(replace(SCOUT, scout_share=0.7), everything=True, pool=True),
    "Pool, scout, share 0.9": Way(replace(SCOUT, scout_share=0.9), everything=True, pool=True),
}
STYLED = {
    "styles local": Way(DEFAULT),
    "styles global": Way(DEFAULT, roles=True),
    "merged": Way(replace(DEFAULT, method="merge")),
}
TEMPERATURES, PATCHES, LAMBDAS, TOP_KS = (0.003, 0.02, 0.1, 0.5), (1, 2, 4), (0.0, 0.5, 1.0), (1, 2, 3)
SCOUTS, SHARES = (0.05, 0.2, 0.4), (0.7, 0.9)
EXACT = "every step"  # what scouting is measured against


def ablation():
    """The variants measured on dev: temperature by patch size, then lambda, and top-k with all LoRAs loaded."""
    ways = {
        f"tau {t:g}, d {d}": Way(replace(DEFAULT, temperature=t, patch_size=d)) for t in TEMPERATURES for d in PATCHES
    }
    ways |= {f"lambda {v:g}": Way(replace(DEFAULT, lam=v)) for v in LAMBDAS}
    return ways | {f"all loaded, k {k}": Way(replace(DEFAULT, top_k=k), everything=True) for k in TOP_KS}


def scouting():
    """How long a pool is scouted, by the share that a LoRA needs to stay; and the whole pool in every step."""
    ways = {f"scout to {u:g}, share {v:g}": replace(SCOUT, scout=u, scout_share=v) for u in SCOUTS for v in SHARES}
    return {
        name: Way(settings, everything=True, pool=True)
        for name, settings in {EXACT: replace(SCOUT, pool_mode="exact"), **ways}.items()
    }


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
        while self.split == "style" and sum(map(_is_style, skills)) != 1:
            skills = world.random_skills(rng, self.count)
        return skills, [world.content(skills, rng) for _ in range(CAPTIONS)]


def skill_sets(split, limit=None):
    _, sets, counts = SPLITS[split]
    return [SkillSet(split, number, count) for number in range(limit or sets) for count in counts]


class Studio:
    """The tiny model and its LoRAs, for one process."""

    def __init__(self, weights=WEIGHTS):
        self.pipe = model.load(weights / "model")
        self.loras = weights / "loras"
        self.judge = detector.load(weights / "detector.safetensors")

    def pictures(self, way, skills, contents, seed):
        """[len(contents), SIZE, SIZE, 3] uint8, and the model evaluations for each."""
        captions = [shown.caption for shown in contents]
        if way.settings is None:
            return model.sample(self.pipe, captions, seed, STEPS, CFG), 2 * STEPS
        from lib_loratorio.hosts.diffusers import Lora, composed

        loras = [Lora(self.loras / f"{name}.safetensors", 1.0, part, way.pool) for name, part in way.loras(skills)]
        with composed(self.pipe, loras, way.settings) as composition:
            return model.sample(self.pipe, captions, seed, STEPS, CFG), composition.tally.rows / len(contents)

    def measure(self, way, skill_set):
        """What one line of the results holds."""
        skills, contents = skill_set.contents()
        start = time.time()
        images, evaluations = self.pictures(way, skills, contents, skill_set.seed)
        seconds = time.time() - start
        found = detector.detect(self.judge, images)
        asked = np.array([name in skills for name in world.NAMES])
        shares = {"present": asked}
        if skill_set.split == "style":
            styles = np.array([_is_style(name) for name in world.NAMES])
            shares |= {"style": asked & styles, "places": asked & ~styles}
        return {
            "skills": list(skills),
            **{key: found[:, of].mean(1).tolist() for key, of in shares.items()},
            "complete": found[:, asked].all(1).astype(int).tolist(),
            "others": found[:, ~asked].sum(1).tolist(),
            "distance": measure.patch_distance(images, contents, skill_set.seed).tolist(),
            "seconds": seconds / len(images),
            "evaluations": evaluations,
        }


_studio = None


def _work(name, way, skill_set):
    global _studio
    if _studio is None:
        torch.set_num_threads(1)
        _studio = Studio()
    return {
        "split": skill_set.split,
        "way": name,
        "count": skill_set.count,
        "number": skill_set.number,
        **_studio.measure(way, skill_set),
    }


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
    parser.add_argument("--only", choices=tuple(SPLITS), help="one of the splits; the report needs dev, pool and test")
    parser.add_argument("--sets", type=int, help="sets of skills for each N, for a shorter run than the published one")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for split, ways in (
            ("dev", ablation()),
            ("pool", scouting()),
            ("test", METHODS),
            ("style", STYLED),
            ("speed", METHODS),
        ):
            if args.only in (None, split):
                tasks = [(name, way, s) for s in skill_sets(split, args.sets) for name, way in ways.items()]
                run(tasks, args.results, args.workers if split != "speed" else 1)
    from lab import report

    records = read(args.results)
    if {"dev", "pool", "test"} <= {record["split"] for record in records}:
        report.write(records, args.docs)
    for kind, way in report.choices(records).items():
        print(f"best of {kind}: {way}")


if __name__ == "__main__":
    main()
