"""The ways of making pictures that are compared, as data: `BY_SPLIT` has, for each split of captions, its ways by name.

A name is what the results and the tables have; a group of ways is what one table compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lab import world
from lab.evaluation import boxes
from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.hosts.diffusers import Lora
from lib_loratorio.loras.tag import LOCAL, LoraTag
from lib_loratorio.settings import Settings

STEPS, CFG = 20, 4.0  # of every picture, unless its sampling says otherwise


class Sampling(NamedTuple):
    """How pictures are sampled; the scheduler is a class of diffusers, DDIM where there is none."""

    steps: int = STEPS
    scheduler: str = ""
    cfg: float = CFG


DDIM = Sampling()
SAMPLINGS = {
    "10 steps": Sampling(10),
    "50 steps": Sampling(50),
    "Euler a": Sampling(scheduler="EulerAncestralDiscreteScheduler"),
    "DPM++ 2M": Sampling(scheduler="DPMSolverMultistepScheduler"),
}


@dataclass(frozen=True)
class Way:
    """One way of making the pictures of a set of skills."""

    settings: Settings | None  # None: without any LoRA
    everything: bool = False  # all LoRAs are loaded, not only those that the caption asks for
    pool: bool = False  # they are a pool, beside a prompt without LoRAs
    global_styles: bool = False
    regions: bool = False  # each LoRA in its box
    own_words: bool = False  # each LoRA alone reads its figure's word
    own_captions: bool = False  # each LoRA alone reads a caption of its figure and ground; all read nothing
    grounds: bool = False  # each box has a ground of its own
    couple: bool = False  # each box reads its figure's caption, by attention couple
    strength: float = 1.0  # of every LoRA
    regularised: bool = False  # the LoRAs that were trained on with regularisation pictures
    sampling: Sampling = DDIM

    def loras(self, skills: Sequence[str], folder: Path, shown: world.Content | None = None) -> list[Lora]:
        """The LoRAs in `folder` that are loaded for a caption with these skills, `shown` where they read of it."""
        return [
            Lora(
                folder / f"{name}.safetensors",
                self.strength,
                self._tag(name, boxes.WORDS[len(skills)][number] if self.regions else None),
                self.pool,
                prompt=self._words(name, number, skills, shown),
            )
            for number, name in enumerate(world.NAMES if self.everything else skills)
        ]

    def prompt(self, shown: world.Content, skills: Sequence[str] = ()) -> str:
        """What all read: the caption, without what each LoRA reads alone; `skills` are in the order of their boxes."""
        if self.own_captions:
            return ""
        if self.grounds:
            return " and ".join(self.captions(skills, shown))
        return (replace(shown, figures=()) if self.own_words else shown).caption

    def captions(self, skills: Sequence[str], shown: world.Content) -> list[str]:
        """Of each figure with its ground alone."""
        grounds = boxes.grounds(shown) if self.grounds else [shown.ground] * len(skills)
        return [replace(shown, figures=(one,), ground=ground).caption for one, ground in zip(skills, grounds)]

    def _words(self, name: str, number: int, skills: Sequence[str], shown: world.Content | None) -> str:
        if self.own_captions:
            return self.captions(skills, shown)[number]
        return world.SKILLS[name].trigger if self.own_words else ""

    def _tag(self, skill: str, place: str | None) -> LoraTag:
        role = "global" if self.global_styles and world.is_style(skill) else "local"
        return LoraTag.read({"lt": role, **({"ltat": place} if place else {})}, skill)


def evaluations_a_step(way: Way, count: int) -> float:
    """Model evaluations a step, guidance included, of a way that has all its adapters in every step.

    `count` is the number of the skills asked for.
    """
    adapters = 0 if way.settings is None else len(world.NAMES) if way.everything else count
    return evaluations_per_step(way.settings or Settings(), [LOCAL] * adapters)


# The reported ways

DEFAULT = Settings(enabled=True)
MERGE = replace(DEFAULT, method="merge")
TOP_K = 2  # with all LoRAs loaded; chosen on dev
SCOUT = replace(DEFAULT, top_k=TOP_K, pool_mode="scout")

REFERENCE, WHOLE_POOL = "LoRAtorio", "Pool, exact"
LAMBDA_1 = f"{REFERENCE}, lambda 1"
COMPARED = {
    "no LoRA": Way(None),
    "Merge": Way(MERGE),
    "Switch": Way(replace(DEFAULT, method="switch")),
    "Composite": Way(replace(DEFAULT, method="composite")),
    REFERENCE: Way(DEFAULT),
    "Merge, all loaded": Way(MERGE, everything=True),
    WHOLE_POOL: Way(replace(DEFAULT, top_k=TOP_K), everything=True),
}
FAST = replace(DEFAULT, lam=1.0)
CHEAPER_GUIDANCE = {
    LAMBDA_1: Way(FAST),
    f"{REFERENCE}, negative every 2nd step": Way(replace(DEFAULT, guidance_every=2)),
    f"{REFERENCE}, negative every 5th step": Way(replace(DEFAULT, guidance_every=5)),
}
EVERY_THIRD = f"{LAMBDA_1}, each alone every 3rd step"
SCOUTED_POOL = "Pool, scout, share 0.7"
CHEAPER = {
    f"{LAMBDA_1}, each alone every {named} step": Way(replace(FAST, refresh_every=every))
    for every, named in ((2, "2nd"), (3, "3rd"), (4, "4th"))
} | {
    f"{REFERENCE}, each alone every 3rd step": Way(replace(DEFAULT, refresh_every=3)),
    f"{WHOLE_POOL}, lambda 1, each alone every 3rd step": Way(
        replace(FAST, top_k=TOP_K, refresh_every=3), everything=True
    ),
    f"{SCOUTED_POOL}, lambda 1, each alone every 3rd step": Way(
        replace(SCOUT, scout_share=0.7, lam=1.0, refresh_every=3), everything=True, pool=True
    ),
}
"""Each LoRA alone in some steps only, and all merged in those between."""
STRENGTHS = {f"Merge at {strength:g}": Way(MERGE, strength=strength) for strength in (0.5, 0.7, 0.85, 1.2, 1.4, 1.7)}
"""Merge at other strengths than 1."""
SCOUTED = {
    f"Pool, scout, share {share:g}": Way(replace(SCOUT, scout_share=share), everything=True, pool=True)
    for share in (0.7, 0.9)
}
SAMPLED = {
    f"{way}, {name}": Way(replace(FAST, refresh_every=every), sampling=sampling)
    for name, sampling in SAMPLINGS.items()
    for way, every in ((LAMBDA_1, 1), (EVERY_THIRD, 3))
}
"""Each LoRA alone in some steps only, and in every step, with other samplings."""
METHODS = COMPARED | CHEAPER_GUIDANCE | SCOUTED

POOLS = (WHOLE_POOL, SCOUTED_POOL)
MERGES = {"Merge": Way(MERGE)} | STRENGTHS
"""Of which the one with the most skills on dev is a control for each number of skills."""
PRICED = (
    {way: METHODS[way] for way in (REFERENCE, LAMBDA_1)}
    | {way: made for way, made in CHEAPER.items() if not made.everything}
    | MERGES
)
"""Quality against model evaluations."""
LARGE = {way: METHODS[way] for way in POOLS} | {way: made for way, made in CHEAPER.items() if made.everything}
"""All LoRAs loaded, and a pool."""

LOCAL_STYLES = "styles local"
STYLED = {
    LOCAL_STYLES: Way(DEFAULT),
    "styles global": Way(DEFAULT, global_styles=True),
    "merged": Way(MERGE),
}

NO_REGION = "LoRAtorio, no region"
PLACED = {
    NO_REGION: Way(DEFAULT),
    "LoRAtorio, regions": Way(DEFAULT, regions=True),
    "LoRAtorio, regions, lambda 1": Way(FAST, regions=True),
    "LoRAtorio, regions, every 2nd": Way(replace(FAST, refresh_every=2), regions=True),
    "LoRAtorio, regions, every 3rd": Way(replace(FAST, refresh_every=3), regions=True),
    "LoRAtorio, regions, own words": Way(DEFAULT, regions=True, own_words=True),
    "Merge": Way(MERGE),
    "Merge, attention couple": Way(MERGE, couple=True),
}
"""What keeps a figure in its box."""

ONE_CAPTION, OWN_CAPTIONS = "LoRAtorio, regions, lambda 1", "LoRAtorio, regions, lambda 1, own captions"
CAPTIONED = {ONE_CAPTION: PLACED[ONE_CAPTION], OWN_CAPTIONS: Way(FAST, regions=True, own_captions=True)}
"""Words of its own for each figure, in a form that the model was trained with."""

COLOURED = {
    "one caption": Way(FAST, regions=True, grounds=True),
    "own captions": Way(FAST, regions=True, own_captions=True, grounds=True),
    "Merge, attention couple, captions": Way(MERGE, couple=True, grounds=True),
}
"""What keeps a colour in its box: a ground of its own for each."""

TRAININGS = {"": False, ", regularised": True}
"""What a way's name ends in, by whether its LoRAs were trained on with regularisation pictures."""


def trained(ways: dict[str, Way]) -> dict[str, Way]:
    """The ways with the shipped LoRAs, and with those that were trained on with regularisation pictures."""
    return {
        name + end: replace(way, regularised=regularised)
        for end, regularised in TRAININGS.items()
        for name, way in ways.items()
    }


MERGED, MERGED_ALL = "Merge", "Merge, all loaded"
POOL_LAMBDA_1 = f"{WHOLE_POOL}, lambda 1"
IN_POOLS = {POOL_LAMBDA_1: Way(replace(FAST, top_k=TOP_K), everything=True)} | trained(
    {way: COMPARED[way] for way in (REFERENCE, MERGED, WHOLE_POOL, MERGED_ALL)}
)
"""What loading all LoRAs changes, and how the LoRAs were trained."""

WINNER, MILD = (f"{REFERENCE}, {what}" for what in ("winner takes all", "CFG 2"))
TEXTURED = {
    REFERENCE: COMPARED[REFERENCE],
    WINNER: Way(replace(DEFAULT, temperature=0.001)),
    LAMBDA_1: Way(FAST),
    MILD: Way(DEFAULT, sampling=Sampling(cfg=2.0)),
    MERGED: COMPARED[MERGED],
}
"""What may make textures worse than merged: averaging and guidance."""

# The variants among which defaults are chosen

TEMPERATURES, PATCHES, LAMBDAS, TOP_KS = (0.003, 0.02, 0.1, 0.5), (1, 2, 4), (0.0, 0.5, 1.0), (1, 2, 3)
SCOUTS, SHARES = (0.05, 0.2, 0.4), (0.7, 0.9)


def tempered(temperature: float, patch_size: int) -> str:
    """The name of the variant with this temperature and patch size."""
    return f"tau {temperature:g}, d {patch_size}"


def recentred(lam: float) -> str:
    """The name of the variant with this lambda."""
    return f"lambda {lam:g}"


VARIANTS = {
    "tau": {tempered(t, d): Way(replace(DEFAULT, temperature=t, patch_size=d)) for t in TEMPERATURES for d in PATCHES},
    "lambda": {recentred(v): Way(replace(DEFAULT, lam=v)) for v in LAMBDAS},
    "all loaded": {f"all loaded, k {k}": Way(replace(DEFAULT, top_k=k), everything=True) for k in TOP_KS},
}
"""What is chosen on dev, by kind: temperature with patch size, lambda, top-k with all LoRAs loaded."""

ABLATION = {name: way for group in VARIANTS.values() for name, way in group.items()}

EVERY_STEP = "every step"
SCOUTING = {EVERY_STEP: Way(replace(SCOUT, pool_mode="exact"), everything=True, pool=True)} | {
    f"scout to {u:g}, share {v:g}": Way(replace(SCOUT, scout=u, scout_share=v), everything=True, pool=True)
    for u in SCOUTS
    for v in SHARES
}
"""How long a pool is scouted, by the share that a LoRA needs to stay; and the whole pool in every step."""

BY_SPLIT = {
    "dev": ABLATION,
    "pool": SCOUTING,
    "test": METHODS,
    "style": STYLED,
    "speed": METHODS,
    "places": PLACED | CAPTIONED | COLOURED,
    "price": PRICED,
    "samplings": SAMPLED,
    "large": LARGE,
    "strengths": MERGES,
    "pools": IN_POOLS,
    "textures": TEXTURED,
}
