"""docs/evaluation-price.md: what fewer evaluations cost, and Merge at other strengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.evaluation import plots, tables, ways
from lab.evaluation.captions import CAPTIONS, COUNTS, SPLITS
from lab.evaluation.choices import most_skills
from lab.evaluation.measurements import Measured, Record
from lab.evaluation.ways import CFG, REFERENCE, STEPS

IN_A_POOL = ("present", "complete", "others", "distance")
"""What is compared of pools: they show skills that were not asked for."""

PAGE = """# Fewer evaluations in the tiny world

Written by `python -m lab.evaluate --only price`, from `lab/results/price.jsonl`; figures in brackets are 95% intervals (bootstrap over
sets of LoRAs). Real models may rank the ways differently.

{pictures} captions: {captions} of each random set of N = 2 to 5 skills (sets for each N: {sets}), those of [the evaluation](evaluation.md); the
same noise for every way; {steps} steps, DDIM, CFG {cfg:g}, every LoRA at strength 1 unless a row says otherwise. "{reference}" is the preset *paper*:
lambda 0.5, each LoRA alone in every step. "Each alone every 3rd step": in the steps between, one prediction with all LoRAs merged is moved
by what composing had made of it (`refresh_every`). "{lambda_1}" is the preset *quality*; with each alone every 2nd step *balanced*, every 3rd *fast*.

## The price

{qualities}
![quality against cost](evaluation-price.png)

Filled: LoRAtorio; hollow: Merge.

### Asked skills present, in %, by number of LoRAs

{present}
### Model evaluations a picture

{evaluations}
### Against the paper's settings, caption by caption

{differences}
### Against lambda 1 with each LoRA alone in every step

{from_lambda_1}
### With other samplings

Lambda 1, each LoRA alone in every 3rd step against in every step, with the same sampling, on {sampled_pictures} of the captions. The scheduler is diffusers' for the sampler of that name.

{sampled}
## All LoRAs loaded, and a pool

All nine LoRAs, whatever the caption asks for, on {large_pictures} of the captions; the {top_k} most divergent in each place compose it. In the pool, each LoRA is alone in
every step while it is scouted.

{of_pools}
## Merge at other strengths

The strength with the most skills on the dev captions is {best}.

{strengths}
Lambda 1, each LoRA alone in every 3rd step, against these, caption by caption:

{against_merge}"""  # noqa: E501


def write(records: Sequence[Record], docs: Path) -> None:
    """The page and its plot, from records of the splits price, strengths, samplings and large."""
    price, dev, sampled, large = (Measured(records, split) for split in ("price", "strengths", "samplings", "large"))
    alike = [way for way in ways.CHEAPER if way in ways.PRICED]
    shown = [REFERENCE, ways.LAMBDA_1, *alike, "Merge"]
    key, show = tables.QUALITIES["skills present %"]
    plots.price(price, [REFERENCE, ways.LAMBDA_1, *alike], list(ways.MERGES), docs / "evaluation-price.png")
    page = PAGE.format(
        pictures=price.pictures,
        sampled_pictures=sampled.pictures,
        large_pictures=large.pictures,
        captions=CAPTIONS,
        sets=SPLITS["price"].sets,
        steps=STEPS,
        cfg=CFG,
        reference=REFERENCE,
        lambda_1=ways.LAMBDA_1,
        qualities=tables.variants(price, shown),
        present=tables.by_count(price, key, show, shown),
        evaluations=tables.evaluations_by_count(price, shown),
        differences=tables.against(price, REFERENCE, [ways.LAMBDA_1, *alike, "Merge"]),
        from_lambda_1=tables.against(price, ways.LAMBDA_1, alike),
        sampled=tables.pairs(
            sampled, {name: (f"{ways.EVERY_THIRD}, {name}", f"{ways.LAMBDA_1}, {name}") for name in ways.SAMPLINGS}
        ),
        top_k=ways.TOP_K,
        of_pools="\n".join(
            tables.against(large, pool, [way for way in ways.CHEAPER if way.startswith(f"{pool},")], IN_A_POOL)
            for pool in ways.POOLS
        ),
        best=", ".join(f"{most_skills(dev, ways.MERGES, count)} for N = {count}" for count in COUNTS),
        strengths=tables.by_count(price, key, show, ways.MERGES),
        against_merge=tables.pairs(price, {f"against {merge}": (ways.EVERY_THIRD, merge) for merge in ways.MERGES}),
    )
    (docs / "evaluation-price.md").write_text(page)
    print(f"{docs / 'evaluation-price.md'}: {price.pictures} captions, {len(price.ways)} ways")
