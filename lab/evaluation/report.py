"""docs/evaluation.md and its plots: the page's text, section by section, and the figures that go into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab import world
from lab.evaluation import plots, tables, ways
from lab.evaluation.captions import CAPTIONS, COUNTS, SPLITS, skill_sets
from lab.evaluation.choices import choices
from lab.evaluation.measurements import Interval, Measured, Record, bootstrap
from lab.evaluation.patches import patch_distance
from lab.evaluation.ways import CFG, REFERENCE, STEPS, TOP_K
from lib_loratorio.settings import Settings

IN_A_POOL = ("present", "complete", "others", "distance")
"""What is compared of pools: they show skills that were not asked for."""


def write(records: Sequence[Record], docs: Path) -> None:
    """The page and its plots; needs records of the splits dev, pool and test."""
    test, dev, pool, style, speed = (Measured(records, split) for split in ("test", "dev", "pool", "style", "speed"))
    plots.methods(test, docs / "evaluation-methods.png")
    plots.cost(test, docs / "evaluation-cost.png")
    plots.ablation(dev, docs / "evaluation-ablation.png")
    page = (
        _introduction(test),
        _quality_and_cost(test, speed),
        _cheaper_guidance(test),
        _large_pool(test),
        _styles(style),
        _by_number_of_skills(test),
        _against_each_other_method(test),
        _choice_of_defaults(dev, pool, choices(records)),
    )
    (docs / "evaluation.md").write_text("".join(page))
    print(f"{docs / 'evaluation.md'}: {test.pictures} captions, {len(test.ways)} ways")


INTRODUCTION = """# Evaluation in the tiny world

Written by `python -m lab.evaluate`; figures in brackets are 95% intervals (bootstrap over sets of LoRAs). The tiny
world, its model,
its LoRAs and the detector are described in [the model card](../lab/MODEL_CARD.md). Real models may rank the methods
differently.

{pictures} captions: {pictures_each} for each N, of {sets_each} random sets of N skills
with {captions} captions each; the same noise for every method; DDIM, {steps} steps, CFG {cfg:g}, every LoRA at strength 1.
LoRAtorio at its defaults: temperature {default.temperature:g}, patch size {default.patch_size}, lambda {default.lam:g}.
"Pool" and "all loaded" have all {loras} LoRAs, whatever the caption asks for; in a pool, the {top_k} most divergent in each place compose
it (top-k); it is scouted up to {default.scout:g} of the sampling, with the named least share of the strongest LoRA's places.

"""  # noqa: E501


def _introduction(test: Measured) -> str:
    pictures_each = test.pictures // len(COUNTS)
    return INTRODUCTION.format(
        pictures=test.pictures,
        pictures_each=pictures_each,
        sets_each=pictures_each // CAPTIONS,
        captions=CAPTIONS,
        steps=STEPS,
        cfg=CFG,
        default=Settings(),
        loras=len(world.NAMES),
        top_k=TOP_K,
    )


QUALITY_AND_COST = """## Quality and cost

Model evaluations are rows of the UNet, guidance included. Seconds with one thread, the loading of the LoRAs included:
the median of
{sets} sets of three skills with {captions} pictures each, the methods in turn.

{overview}
![quality against cost](evaluation-cost.png)

Filled: only the asked LoRAs are loaded; hollow: all of them.

"""


def _quality_and_cost(test: Measured, speed: Measured) -> str:
    return QUALITY_AND_COST.format(
        sets=SPLITS["speed"].sets, captions=CAPTIONS, overview=tables.overview(test, speed, ways.METHODS)
    )


CHEAPER_GUIDANCE = """### Cheaper guidance

What lambda 1 (N + 2 evaluations a step instead of 2N + 2) and the LoRAs' negative prompt in some steps only (between
them its last known
difference from the base) change against LoRAtorio's defaults, caption by caption.

{differences}
"""


def _cheaper_guidance(test: Measured) -> str:
    return CHEAPER_GUIDANCE.format(differences=tables.against(test, REFERENCE, ways.CHEAPER_GUIDANCE))


LARGE_POOL = """### A large pool

What scouting changes against evaluating the whole pool in every step, caption by caption.

{differences}
"""


def _large_pool(test: Measured) -> str:
    return LARGE_POOL.format(differences=tables.against(test, ways.WHOLE_POOL, ways.SCOUTED, IN_A_POOL))


STYLES = """### A style everywhere

{pictures} captions of {sets} sets with one style and two other skills. "Global": the style's LoRA is part of the base and of both
other LoRAs' evaluations (`lt=global`); "local": it competes for places with them.

{qualities}
Global and merged against local, caption by caption:

{differences}
"""  # noqa: E501


def _styles(style: Measured) -> str:
    others = [way for way in ways.STYLED if way != ways.LOCAL_STYLES]
    return STYLES.format(
        pictures=style.pictures,
        sets=style.pictures // CAPTIONS,
        qualities=tables.variants(style, style.ways, tables.STYLE_QUALITIES),
        differences=tables.against(style, ways.LOCAL_STYLES, others, ("style", "places", "complete", "distance"))
        if style.pictures
        else "",
    )


BY_NUMBER_OF_SKILLS = """## By number of skills

![methods](evaluation-methods.png)

### Asked skills present, in % (found by the detector)

{present}
### Pictures with all asked skills, in %

{complete}
### Skills shown that were not asked for, a picture

{others}
### Patch distance to ground-truth renders of the caption (lower is better)

Sliced Wasserstein distance between the 3 x 3-block patches of a picture and those of renders of the same caption.
Figures may stand anywhere,
so no pixel-wise measure fits; the patches are the same wherever they stand. Unlike the detector's features it has
seen no training, so blur,
wrong colours and half-drawn figures count as well. Between two renders of one caption it is {floor}.

{distance}
### Model evaluations a picture

{evaluations}
"""


def _by_number_of_skills(test: Measured) -> str:
    return BY_NUMBER_OF_SKILLS.format(
        **{key: tables.by_count(test, key, show, ways.METHODS) for key, show in tables.QUALITIES.values()},
        floor=tables.number(_between_renders()),
        evaluations=tables.evaluations_by_count(test),
    )


def _between_renders(count: int = 60) -> Interval:
    """Patch distance of renders to other renders of their captions."""
    contents = [c for s in skill_sets("test") for c in s.contents()[1]][:count]
    renders = np.stack([world.render(c, 10**7 + i) for i, c in enumerate(contents)])
    return bootstrap(patch_distance(renders, contents, 2 * 10**7), np.arange(len(contents)))


AGAINST_EACH_OTHER_METHOD = """## LoRAtorio against each other method, caption by caption

{wins}
"""


def _against_each_other_method(test: Measured) -> str:
    return AGAINST_EACH_OTHER_METHOD.format(wins=tables.wins(test, REFERENCE))


CHOICE_OF_DEFAULTS = """## Choice of the defaults

On captions, sets and seeds that are not among those above ({pictures} captions). Rule: most asked
skills; among the variants within one point of that, the smallest patch distance. Temperature and patch size: **{tau}**;
lambda at the defaults of these: **{lam}**; top-k with all loaded: **{top_k}**.

![ablation](evaluation-ablation.png)

{ablation}
Scouting a pool is to save evaluations: on {pool_pictures} further captions, how long all of it are evaluated, and the share of
the strongest LoRA's places that one needs to stay. Rule: of the variants at most one point of asked skills below the
whole pool in every step,
the one with the fewest evaluations: **{scout}**.

{scouting}
Against the whole pool in every step, caption by caption:

{differences}"""  # noqa: E501


def _choice_of_defaults(dev: Measured, pool: Measured, chosen: dict[str, str]) -> str:
    scouted = [way for way in ways.SCOUTING if way != ways.EVERY_STEP]
    return CHOICE_OF_DEFAULTS.format(
        pictures=dev.pictures,
        tau=chosen["tau"],
        lam=chosen["lambda"],
        top_k=chosen["all loaded"],
        ablation=tables.variants(dev, ways.ABLATION),
        pool_pictures=pool.pictures,
        scout=chosen["scout"],
        scouting=tables.variants(pool, ways.SCOUTING),
        differences=tables.against(pool, ways.EVERY_STEP, scouted, IN_A_POOL),
    )
