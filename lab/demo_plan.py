"""What the demo shows, as data: its sections with their pictures.

The captions are drawn by a rule, not chosen: of each number of skills the first set of the split, and of it the first
caption. What the pictures show is what there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from lab import world
from lab.evaluation.captions import SPLITS, skill_sets
from lab.evaluation.ways import COMPARED, DEFAULT, SCOUT, TOP_K, Way
from lib_loratorio.presets import with_preset

RULE = (
    "The captions are not picked by hand: of each number of LoRAs the first set of the test split "
    "(lab/evaluation/captions.py), its first caption and its first seed."
)
COUNTS = (2, 3, 4)
FILMED = 3  # of this number of skills the paper's picture is shown step by step
PAPER = "LoRAtorio, paper"
PRESETS = {f"LoRAtorio, {preset}": Way(with_preset(DEFAULT, preset)) for preset in ("balanced", "fast")}
WAYS = {way: COMPARED[way] for way in ("Merge", "Switch", "Composite")} | {PAPER: COMPARED["LoRAtorio"]} | PRESETS
"""What is compared; the paper's settings are the defaults of `Settings`."""

BALANCED = with_preset(DEFAULT, "balanced")
SCOUTED = Way(replace(with_preset(SCOUT, "balanced"), top_k=TOP_K), everything=True, pool=True)
NAMED = Way(replace(BALANCED, pool_mode="named"), everything=True, pool=True)


@dataclass(frozen=True)
class Shot:
    """One picture to be made. The LoRAs are loaded in the order of `skills`, which is that of their regions."""

    title: str
    way: Way
    skills: tuple[str, ...]
    shown: world.Content
    seed: int
    filmed: bool = False  # its steps are kept
    placed: bool = False  # its figures are looked for in their halves

    @property
    def asked(self) -> set[str]:
        return set(self.skills)


class Section(NamedTuple):
    """Pictures that are looked at together: `asked` is a render of what their caption asks for, with its seed."""

    name: str
    title: str
    text: str
    shots: tuple[Shot, ...]
    asked: tuple[world.Content, int] | None = None
    mapped: str = ""  # the title of the shot whose weights are shown beside


def sections() -> list[Section]:
    compared = [_compared(count) for count in COUNTS]
    return [_alone(), *compared, _regions(), _pool(compared[COUNTS.index(FILMED)])]


def _alone() -> Section:
    first, merge = SPLITS["test"].first_seed, WAYS["Merge"]
    shots = (
        Shot(name, merge, (name,), world.content((name,), first + number), first + number)
        for number, name in enumerate(world.NAMES)
    )
    text = "Each LoRA teaches the tiny model one thing, which a word of its own calls. Alone, each works."
    return Section("alone", "Nine LoRAs, each alone", text, tuple(shots))


def _first(split: str, count: int) -> tuple[tuple[str, ...], world.Content, int]:
    """The skills of the first set of so many in a split, its first content and that one's seed."""
    skill_set = next(one for one in skill_sets(split, 1) if one.count == count)
    skills, contents = skill_set.contents()
    return skills, contents[0], skill_set.seed


def _compared(count: int) -> Section:
    skills, shown, seed = _first("test", count)
    shots = (
        Shot(title, way, skills, shown, seed, filmed=count == FILMED and title == PAPER) for title, way in WAYS.items()
    )
    text = f"{', '.join(skills)} in one picture, from the same noise in every way."
    return Section("compared", f"{count} LoRAs: {shown.caption}", text, tuple(shots), (shown, seed), PAPER)


def _regions() -> Section:
    skills, shown, seed = _first("places", 2)
    free, placed = Way(BALANCED), Way(BALANCED, regions=True)
    other = skills[::-1]
    shots = (
        Shot("no region", free, skills, shown, seed, placed=True),
        Shot(f"{skills[0]} left, {skills[1]} right", placed, skills, shown, seed, placed=True),
        Shot(f"{other[0]} left, {other[1]} right", placed, other, shown, seed, placed=True),
    )
    text = (
        "A region in a LoRA's tag (ltat=left, ltat=right) is where it may be. The same noise, without regions, with "
        "them and with the two swapped; preset balanced, the first caption of the split of figures alone (places)."
    )
    return Section("regions", f"Regions: {shown.caption}", text, shots, (shown, seed), shots[1].title)


def _pool(compared: Section) -> Section:
    """The caption of a compared section, with all LoRAs loaded."""
    like = compared.shots[0]
    ways = {"Merge, all nine loaded": COMPARED["Merge, all loaded"], "pool, scouted": SCOUTED, "pool, named": NAMED}
    shots = tuple(replace(like, title=title, way=way, filmed=False) for title, way in ways.items())
    text = (
        f"All nine LoRAs loaded, for the caption of {FILMED} LoRAs above. A pool is beside the prompt: scouted, its "
        "LoRAs stay that matter in the first steps; named, those whose trigger words are in the prompt. Both with the "
        "preset balanced."
    )
    return Section("pool", f"A pool of nine: {like.shown.caption}", text, shots, None, "pool, named")
