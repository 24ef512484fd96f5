"""docs/evaluation-pools.md: why loading all LoRAs shows fewer of the asked skills, and textures against merged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lab import world
from lab.evaluation import plots, tables, ways
from lab.evaluation.captions import CAPTIONS, SPLITS
from lab.evaluation.divergence import ANOTHERS, EMPTY, OWN, PLACED, PLAIN, SEVERAL
from lab.evaluation.measurements import Interval, Measured, Record, bootstrap

ASKED, POOL, MERGED, MERGED_ALL = ways.REFERENCE, ways.WHOLE_POOL, ways.MERGED, ways.MERGED_ALL
NEW = next(end for end, regularised in ways.TRAININGS.items() if regularised)
SHIPPED, REGULARISED = "shipped", "regularised"
"""The names under which `python -m lab.divergence` keeps the two trainings."""

ALONE = (OWN, ANOTHERS, PLAIN, EMPTY)
COMPARED = ("present", "complete", "others", "distance")
PAIRS = {
    f"{POOL}, against {ASKED}, both regularised": (POOL + NEW, ASKED + NEW),
    f"{POOL}, against {MERGED_ALL}, both regularised": (POOL + NEW, MERGED_ALL + NEW),
    f"{ASKED}, against {MERGED}, both regularised": (ASKED + NEW, MERGED + NEW),
} | {f"{way}, regularised against shipped": (way + NEW, way) for way in (ASKED, POOL, MERGED, MERGED_ALL)}
"""By the name of the row, a way and what it is compared with."""

PAGE = """# Pools in the tiny world: who diverges without being asked

With all nine LoRAs loaded {loaded}% of the asked skills are shown, with the asked ones alone {alone}%: {lost}
points. Their divergence cannot tell who is asked while the picture is laid out: at the noisiest of {steps} steps
the asked ones win {won_first}% of the places, where {chance:.0f}% would be chance, and on plain scenes a LoRA
diverges by {plain_first:.0f}% of what it does where it is asked. When noise is low they win {won_late}%, but on
pictures that already show what was asked; in a pool, it seems, whoever won early has drawn its own. At timestep
{middle} some LoRAs diverge without their word ({loudest} {loudest_plain:.0f} thousandths) more than others do with
it ({quietest} {quietest_own:.0f}). None of {weighings} corrections of the paper's weights gives more places to the
asked. The same leak is in the negative prompt, where guidance subtracts it, which may be why textures suffer: with
lambda 1 styles are shown {style_gained} points more often than with lambda 0.5. Averaging is not seen to matter:
with one LoRA alone in each place the points are {style_of_winner} ({textured_pictures} captions).

Written by `python -m lab.evaluate --only pools --report`, from `lab/results/divergence.jsonl`
(`python -m lab.divergence`), `lab/results/price.jsonl` and `lab/results/pools.jsonl`; figures in brackets are 95%
intervals (bootstrap over sets of LoRAs). Real models may differ: what the paper saw of its LoRAs, that they
diverge little off their concept, is not so here, and the paper loses half a point of CLIPScore by loading all LoRAs.

## Divergence with and without the word

`1 - cos(e_i(c), e_0(c))` in thousandths, the mean over places and captions, of renders noised as at {steps} steps
of a sampling, the noisiest first. "Own word": a scene with the LoRA's skill alone; "another's word": with another
LoRA's, whose word the base does not know either; "plain scene": one of the base's own; "empty caption": the same
pictures without a caption, which is what the negative prompt reads.

{by_step}
![divergence by timestep](evaluation-pools.png)

At timestep {middle}, for each LoRA:

{by_lora}
### Places that the asked LoRAs win, in %

On renders of captions of the split "dev" that ask for 2 to 5 of the nine: the truth, noised. Nine LoRAs that
diverged alike would win {chance:.0f}%.

{won}
### Other ways of weighing

What competes for a place instead of the divergence, on renders of {weighed} captions of the split "pool", in
{weighed_steps} steps. "With a place": the share of the asked LoRAs that win {placed:.0f}% of the places or more.
The divergence on the empty caption is no base to measure from: a LoRA reacts to a picture that shows its skill,
whatever the caption says.

{weighings_table}
## All nine loaded against the asked ones alone

{pictures} captions: {captions} of each random set of N = 2 to 5 skills (sets for each N: {sets}), of the split
"test"; the same noise for every way; DDIM, 20 steps, CFG 4, strength 1, lambda 0.5; top-k {top_k} with all loaded.

{qualities}
{differences}
{regularised}
## Textures

{textured_pictures} captions with one style and two other skills, those of the split "style", the asked LoRAs alone.
"Winner takes all" is temperature 0.001: nothing is averaged. "Lambda 1" leaves the LoRAs out of the negative
prompt.

{textures}
Against {reference} at its defaults, caption by caption:

{texture_differences}"""

TRIED = """### LoRAs trained with regularisation pictures

Of one style alone. `hatching` was trained on from the shipped LoRA, half of each batch of 8 plain scenes with plain
captions (`python -m lab.train regularised hatching`: 700 steps at a peak rate of 2e-3). In thousandths, means over
5 steps and 2 scenes a kind, it then diverges on plain scenes by 35 instead of 152, with another's word by 19
instead of 73, with its own by 298 instead of 312. But it shows its skill in 31% of 64 pictures, the shipped one in
97%: it had been trained without a need for its word. Such LoRAs are not shipped, and what a pool of nine would show
is not known."""

TRAINED = """### LoRAs trained with regularisation pictures

Trained on with half of each batch plain scenes with plain captions (`python -m lab.train regularised`), on {pictures}
captions of the split "test".

{qualities}
{differences}"""


def write(records: Sequence[Record], price: Sequence[Record], divergences: Sequence[dict], docs: Path) -> None:
    """The page and its plot.

    Args:
        records: of the split textures, and of pools where that was measured.
        price: of the splits price and large.
        divergences: as `divergence.lines` and `divergence.weighing_lines` give them.
        docs: the folder to write to.
    """
    textures, pools = Measured(records, "textures"), Measured(records, "pools")
    loaded = _all_loaded(price, records)
    trainings = [of for of in (SHIPPED, REGULARISED) if any(line["loras"] == of for line in divergences)]
    timesteps = _won_line(divergences, SHIPPED)["timesteps"]
    plots.divergence(
        {of: {kind: _by_step(divergences, of, kind) for kind in ALONE} for of in trainings},
        timesteps,
        docs / "evaluation-pools.png",
    )
    middle = len(timesteps) // 2
    at_middle = {
        (name, kind): _values(divergences, SHIPPED, kind, name)[middle] for name in world.NAMES for kind in ALONE
    }
    loudest = max(world.NAMES, key=lambda name: at_middle[name, PLAIN])
    quietest = min(world.NAMES, key=lambda name: at_middle[name, OWN])
    weighed = [line for line in divergences if "weighing" in line and line["loras"] == SHIPPED]
    page = PAGE.format(
        loaded=tables.share(loaded.interval(POOL, "present")),
        alone=tables.share(loaded.interval(ASKED, "present")),
        lost=tables.points(loaded.difference(POOL, ASKED, "present")),
        steps=len(timesteps),
        won_first=tables.share(_won(_won_line(divergences, SHIPPED), 0)),
        won_late=tables.share(_won(_won_line(divergences, SHIPPED), -2)),
        chance=_chance(_won_line(divergences, SHIPPED)),
        plain_first=100 * _by_step(divergences, SHIPPED, PLAIN)[0] / _by_step(divergences, SHIPPED, OWN)[0],
        loudest=loudest,
        loudest_plain=at_middle[loudest, PLAIN],
        quietest=quietest,
        quietest_own=at_middle[quietest, OWN],
        weighings=len(weighed) - 1,
        style_gained=tables.points(textures.difference(ways.LAMBDA_1, ASKED, "style")),
        style_of_winner=tables.points(textures.difference(ways.WINNER, ASKED, "style")),
        by_step="\n".join(_step_table(divergences, of, timesteps) for of in trainings),
        middle=timesteps[middle],
        by_lora=tables.table(
            ["", *ALONE],
            [[name, *(f"{at_middle[name, kind]:.0f}" for kind in ALONE)] for name in world.NAMES],
        ),
        won=_won_table(divergences, trainings),
        weighed=len(weighed[0]["counts"]),
        weighed_steps=len(weighed[0]["timesteps"]),
        placed=100 * PLACED,
        weighings_table=_weighings_table(weighed),
        pictures=loaded.pictures,
        captions=CAPTIONS,
        sets=SPLITS["large"].sets,
        top_k=ways.TOP_K,
        qualities=tables.variants(loaded, (ASKED, MERGED, POOL, ways.POOL_LAMBDA_1)),
        differences=tables.pairs(
            loaded,
            {f"{way}, against {other}": (way, other) for way, other in ((POOL, ASKED), (ways.POOL_LAMBDA_1, POOL))},
            COMPARED,
        ),
        regularised=_regularised(pools),
        textured_pictures=textures.pictures,
        textures=tables.variants(textures, ways.TEXTURED, tables.STYLE_QUALITIES),
        reference=ASKED,
        texture_differences=tables.pairs(
            textures,
            {way: (way, ASKED) for way in ways.TEXTURED if way != ASKED},
            ("style", "places", "distance"),
        ),
    )
    (docs / "evaluation-pools.md").write_text(page)
    print(f"{docs / 'evaluation-pools.md'}: {loaded.pictures} captions, {len(divergences)} lines of divergence")


def _all_loaded(price: Iterable[Record], records: Iterable[Record]) -> Measured:
    """What was measured for the page on the price of pools and, on the same captions, of the asked LoRAs alone; and of
    `records` the pool without LoRAs in the negative prompt.
    """
    alike = [
        record | {"split": "pools"}
        for record in price
        if record["split"] in ("price", "large")
        and record["number"] < SPLITS["large"].sets
        and record["way"] in (ASKED, MERGED, POOL)
    ]
    alike += [r for r in records if r["way"] == ways.POOL_LAMBDA_1 and r["number"] < SPLITS["large"].sets]
    return Measured(alike, "pools")


def _regularised(pools: Measured) -> str:
    """What training with regularisation pictures changes, or that it is not known."""
    if POOL + NEW not in pools.ways:
        return TRIED + "\n"
    return TRAINED.format(
        pictures=pools.pictures,
        qualities=tables.variants(pools, ways.IN_POOLS),
        differences=tables.pairs(pools, PAIRS, COMPARED),
    )


def _values(divergences: Sequence[dict], of: str, kind: str, lora: str) -> np.ndarray:
    """The divergence of a LoRA in each step, in thousandths, the mean over the captions of a kind."""
    wanted = {"loras": of, "lora": lora, "captions": kind}
    line = next(line for line in divergences if wanted.items() <= line.items())
    return 1000 * np.mean(line["divergence"], axis=1)


def _by_step(divergences: Sequence[dict], of: str, kind: str) -> np.ndarray:
    """The mean of the LoRAs' divergences in each step, in thousandths."""
    return np.mean([_values(divergences, of, kind, name) for name in world.NAMES], axis=0)


def _step_table(divergences: Sequence[dict], of: str, timesteps: Sequence[int]) -> str:
    return tables.table(
        [f"{of}, at timestep", *timesteps],
        [[kind, *(f"{value:.1f}" for value in _by_step(divergences, of, kind))] for kind in ALONE],
    )


def _won_line(divergences: Sequence[dict], of: str) -> dict:
    """Which share of the places the asked LoRAs win, as the method weighs."""
    return next(line for line in divergences if line["loras"] == of and "won" in line and "weighing" not in line)


def _won(line: dict, step: int) -> Interval:
    """The share of places that the asked LoRAs win in one step."""
    return bootstrap([steps[step] for steps in line["won"].values()], _sets(line))


def _sets(line: dict) -> np.ndarray:
    """The set that each caption of a line belongs to; captions of one set follow each other."""
    several = len(line["counts"])
    return np.arange(several) // (CAPTIONS if "weighing" not in line else SEVERAL)


def _chance(line: dict) -> float:
    """The share of the nine LoRAs that the captions ask for, in %."""
    return 100 * float(np.mean(line["counts"])) / len(world.NAMES)


def _won_table(divergences: Sequence[dict], trainings: Iterable[str]) -> str:
    found = {of: _won_line(divergences, of) for of in trainings}
    timesteps = next(iter(found.values()))["timesteps"]
    return tables.table(
        ["at timestep", *timesteps],
        [[of, *(tables.share(_won(line, step)) for step in range(len(timesteps)))] for of, line in found.items()],
    )


def _weighings_table(weighed: Sequence[dict]) -> str:
    return tables.table(
        ["", "places won by asked LoRAs %", "the same, noisiest step", "asked LoRAs with a place %"],
        [
            [
                line["weighing"],
                tables.share(bootstrap([np.mean(steps) for steps in line["won"].values()], _sets(line))),
                tables.share(_won(line, 0)),
                tables.share(bootstrap(list(line["placed"].values()), _sets(line))),
            ]
            for line in weighed
        ],
    )
