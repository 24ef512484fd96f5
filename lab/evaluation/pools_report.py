"""docs/evaluation-pools.md: what LoRAs do without their word, and what that costs where all of them are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lab import world
from lab.evaluation import plots, tables, ways
from lab.evaluation.captions import CAPTIONS, SPLITS
from lab.evaluation.divergence import ANOTHERS, KINDS, OWN, PLAIN, STEPS
from lab.evaluation.measurements import Interval, Measured, Record, bootstrap

COMPARED = ("present", "complete", "others", "distance")
TRAININGS = ("shipped", "regularised")

PAGE = """# Pools in the tiny world: who diverges without being asked

{answer}

Written by `python -m lab.evaluate --only pools --report`, from `lab/results/divergence.jsonl` (`python -m lab.divergence`) and
`lab/results/pools.jsonl`; figures in brackets are 95% intervals (bootstrap over sets of LoRAs). Real models may differ.

## Divergence with and without the word

`1 - cos(e_i(c), e_0(c))` in thousandths, the mean over places, captions and {steps} steps, of renders noised as at these steps. "Own word": a scene
with the LoRA's skill alone; "another's word": with another LoRA's, whose word the base does not know either; "plain scene": one of the base's own; "empty
caption": the same pictures without a caption, which is what the negative prompt reads. "Of several": the captions of the split "dev", with or without
the LoRA's word. "Regularised": trained on with half of each batch plain scenes with plain captions
(`python -m lab.train regularised`).

{divergence}
![divergence by timestep](evaluation-pools.png)

Mean over the LoRAs. A LoRA that competes everywhere by its absolute divergence wins each place in which its leak is larger than another's skill.

### Places that the LoRAs asked for win, in %

{won}
On the captions of the split "dev" (2 to 5 of nine LoRAs asked for; nine that diverged alike would win {chance:.0f}%). "Standardised": each LoRA's divergence divided by
its own mean over all captions, which only an outsider can know.

## All nine loaded against the asked ones alone

{pictures} captions: {captions} of each random set of N = 2 to 5 skills (sets for each N: {sets}), of the split "test"; the same noise for every way; DDIM, 20
steps, CFG 4, strength 1, lambda 0.5; top-k {top_k} with all loaded.

{qualities}
### Caption by caption

{differences}
## Textures

{textured_pictures} captions with one style and two other skills, the asked LoRAs alone.

{textures}
Against {reference} at its defaults, caption by caption:

{texture_differences}"""  # noqa: E501

ANSWER = """A LoRA of the tiny world diverges without its word too: on the base's own scenes by {plain_share:.0f}% of what it diverges by on its skill, on
captions with another's word by {anothers_share:.0f}%. The LoRAs differ more from each other than with and without their word: `{loudest}` on plain scenes
({loudest_plain:.0f} thousandths) outweighs `{quietest}` on its own ({quietest_own:.0f}). The paper's method compares these numbers as they are."""  # noqa: E501

AND_REGULARISED = """
Regularisation pictures bring the leak on plain scenes down to {regularised_plain_share:.0f}%. With all nine loaded {new_present}% of the asked skills are
shown then, against {shipped_present}% before (caption by caption {gain} points) and {new_asked_present}% with the asked ones alone ({asked_present}% before); skills that
were not asked for: {new_others} a picture, {others} before."""  # noqa: E501


def write(records: Sequence[Record], divergences: Sequence[dict], docs: Path) -> None:
    """The page and its plot, from records of the splits pools and textures and lines of `divergence.lines`."""
    pools, textures = Measured(records, "pools"), Measured(records, "textures")
    trainings = [of for of in TRAININGS if any(line["loras"] == of for line in divergences)]
    timesteps = next(line["timesteps"] for line in divergences if "won" in line)
    plots.divergence(
        {of: {kind: _by_step(divergences, of, kind) for kind in KINDS[:4]} for of in trainings},
        timesteps,
        docs / "evaluation-pools.png",
    )
    page = PAGE.format(
        answer=_answer(divergences, trainings, pools),
        steps=STEPS,
        divergence=_table(divergences, trainings),
        won=_won_table(divergences, trainings),
        chance=_chance(divergences),
        pictures=pools.pictures,
        captions=CAPTIONS,
        sets=SPLITS["pools"].sets,
        top_k=ways.TOP_K,
        qualities=tables.variants(pools, ways.IN_POOLS),
        differences=tables.pairs(pools, PAIRS, COMPARED),
        textured_pictures=textures.pictures,
        textures=tables.variants(textures, ways.TEXTURED, tables.STYLE_QUALITIES),
        reference=ways.REFERENCE,
        texture_differences=tables.pairs(
            textures,
            {way: (way, ways.REFERENCE) for way in ways.TEXTURED if way != ways.REFERENCE},
            ("style", "places", "distance"),
        ),
    )
    (docs / "evaluation-pools.md").write_text(page)
    print(f"{docs / 'evaluation-pools.md'}: {pools.pictures} captions, {len(pools.ways)} ways")


ASKED, POOL, MERGED, MERGED_ALL = ways.REFERENCE, ways.WHOLE_POOL, ways.MERGED, ways.MERGED_ALL
NEW = next(end for end, regularised in ways.TRAININGS.items() if regularised)
PAIRS = {
    f"{POOL}, against {ASKED}": (POOL, ASKED),
    f"{POOL}, against {ASKED}, both regularised": (POOL + NEW, ASKED + NEW),
    f"{POOL}, against {MERGED_ALL}": (POOL, MERGED_ALL),
    f"{POOL}, against {MERGED_ALL}, both regularised": (POOL + NEW, MERGED_ALL + NEW),
    f"{ASKED}, against {MERGED}": (ASKED, MERGED),
    f"{ASKED}, against {MERGED}, both regularised": (ASKED + NEW, MERGED + NEW),
} | {f"{way}, regularised against shipped": (way + NEW, way) for way in (ASKED, POOL, MERGED, MERGED_ALL)}
"""By the name of the row, a way and what it is compared with."""


def _values(divergences: Sequence[dict], of: str, kind: str, lora: str | None = None) -> np.ndarray:
    """Divergences `[LoRAs, steps, captions]` on captions of a kind, of one LoRA or all."""
    return np.array(
        [
            line["divergence"]
            for line in divergences
            if line["loras"] == of and line.get("captions") == kind and lora in (None, line["lora"])
        ]
    )


def _by_step(divergences: Sequence[dict], of: str, kind: str) -> list[float]:
    """The mean over LoRAs and captions of a kind, by step; LoRAs may have different numbers of such captions."""
    return np.mean([_values(divergences, of, kind, name)[0].mean(1) for name in world.NAMES], axis=0).tolist()


def _mean(divergences: Sequence[dict], of: str, kind: str, lora: str | None = None) -> float:
    """In thousandths; of all LoRAs, each counts as much as another."""
    names = world.NAMES if lora is None else (lora,)
    return 1000 * float(np.mean([_values(divergences, of, kind, name).mean() for name in names]))


def _table(divergences: Sequence[dict], trainings: Iterable[str]) -> str:
    """The divergence of each LoRA on each kind of caption, and the mean."""
    return "\n".join(
        tables.table(
            [of, *KINDS],
            [
                [name or "mean", *(f"{_mean(divergences, of, kind, name):.0f}" for kind in KINDS)]
                for name in (*world.NAMES, None)
            ],
        )
        for of in trainings
    )


def _won(divergences: Sequence[dict], of: str, key: str, count: int | None = None) -> Interval:
    """The share of places that the LoRAs asked for win, of the captions that ask for so many."""
    line = next(line for line in divergences if line["loras"] == of and "won" in line)
    shares = np.array([np.mean(steps) for steps in line[key].values()])
    counts, groups = np.array(line["counts"]), np.arange(len(shares)) // CAPTIONS
    chosen = counts == count if count else counts > 0
    return bootstrap(shares[chosen], groups[chosen])


def _won_table(divergences: Sequence[dict], trainings: Iterable[str]) -> str:
    return tables.table(
        ["", "as the method weighs", "standardised"],
        [[of, *(tables.share(_won(divergences, of, key)) for key in ("won", "standardised"))] for of in trainings],
    )


def _chance(divergences: Sequence[dict]) -> float:
    """The share of the nine LoRAs that the captions ask for, in %."""
    return 100 * np.mean(next(line["counts"] for line in divergences if "counts" in line)) / len(world.NAMES)


def _answer(divergences: Sequence[dict], trainings: Sequence[str], pools: Measured) -> str:
    """What the page begins with."""
    first = trainings[0]
    own, anothers, plain = (_mean(divergences, first, kind) for kind in (OWN, ANOTHERS, PLAIN))
    loudest = max(world.NAMES, key=lambda name: _mean(divergences, first, PLAIN, name))
    quietest = min(world.NAMES, key=lambda name: _mean(divergences, first, OWN, name))
    answer = ANSWER.format(
        plain_share=100 * plain / own,
        anothers_share=100 * anothers / own,
        loudest=loudest,
        loudest_plain=_mean(divergences, first, PLAIN, loudest),
        quietest=quietest,
        quietest_own=_mean(divergences, first, OWN, quietest),
    )
    if len(trainings) == 1 or POOL + NEW not in pools.ways:
        return answer
    second = trainings[1]
    return answer + AND_REGULARISED.format(
        regularised_plain_share=100 * _mean(divergences, second, PLAIN) / _mean(divergences, second, OWN),
        shipped_present=tables.share(pools.interval(POOL, "present")),
        new_present=tables.share(pools.interval(POOL + NEW, "present")),
        asked_present=tables.share(pools.interval(ASKED, "present")),
        new_asked_present=tables.share(pools.interval(ASKED + NEW, "present")),
        gain=tables.points(pools.difference(POOL + NEW, POOL, "present")),
        others=tables.number(pools.interval(POOL, "others")),
        new_others=tables.number(pools.interval(POOL + NEW, "others")),
    )
