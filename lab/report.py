"""Tables and plots of what `lab.evaluate` measured: docs/evaluation.md, docs/evaluation-*.png."""

import numpy as np

from lab import evaluate, measure, world
from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.settings import Settings

REFERENCE = "LoRAtorio"
COMPARED = ("no LoRA", "Merge", "Switch", "Composite", "LoRAtorio", "Merge, all loaded", "Pool, exact")
"""The ways in the plot by N; the plot of quality against cost has them all."""
QUANTITIES = ("present", "complete", "others", "distance", "style", "places")


class Measured:
    """The records of one split as arrays, one entry a picture, in the same order for every way."""

    def __init__(self, records, split):
        self.ways = {}
        for way in dict.fromkeys(r["way"] for r in records if r["split"] == split):
            own = sorted(
                (r for r in records if r["split"] == split and r["way"] == way), key=lambda r: (r["count"], r["number"])
            )
            self.ways[way] = {key: np.concatenate([r[key] for r in own]) for key in QUANTITIES if key in own[0]}
            of_sets = {
                "count": [r["count"] for r in own],
                "group": [r["count"] * 1000 + r["number"] for r in own],
                "seconds": [r["seconds"] for r in own],
                "evaluations": [_evaluations(r) for r in own],
            }
            self.ways[way] |= {key: np.repeat(values, len(own[0]["present"])) for key, values in of_sets.items()}

    def interval(self, way, key, count=None):
        """(mean, low, high) over the pictures with `count` skills, or all."""
        values = self.ways[way]
        rows = np.ones(len(values[key]), bool) if count is None else values["count"] == count
        return measure.bootstrap(values[key][rows], values["group"][rows])

    def difference(self, way, other, key):
        """(mean, low, high) of `way` less `other`, caption by caption."""
        a, b = self.ways[way], self.ways[other]
        return measure.bootstrap(a[key] - b[key], a["group"])

    def wins(self, one, other):
        """Shares of captions on which `one` shows more, as many and fewer of the asked skills than `other`; and on
        which its patch distance is the smaller one, with that share's interval.
        """
        a, b = self.ways[one], self.ways[other]
        more, closer = np.sign(a["present"] - b["present"]), (a["distance"] < b["distance"]).astype(float)
        return (more > 0).mean(), (more == 0).mean(), (more < 0).mean(), measure.bootstrap(closer, a["group"])

    def evaluations(self, way, count=None):
        """Mean model evaluations a picture, guidance included, of the pictures with `count` skills, or all."""
        values = self.ways[way]
        return values["evaluations"][slice(None) if count is None else values["count"] == count].mean()


def _evaluations(record):
    """Model evaluations a picture: as counted, or of records without a count, as planned."""
    if "evaluations" in record:
        return record["evaluations"]
    ways = evaluate.METHODS | evaluate.STYLED | evaluate.ablation() | evaluate.scouting()
    return evaluate.STEPS * evaluations_a_step(ways[record["way"]], record["count"])


def evaluations_a_step(way, count):
    """Model evaluations a step, guidance included, of a way that has all its adapters in every step."""
    adapters = 0 if way.settings is None else len(world.NAMES) if way.everything else count
    return evaluations_per_step(way.settings or Settings(), adapters)


def _share(interval):
    mean, low, high = (100 * v for v in interval)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def _number(interval):
    return "{:.2f} ({:.2f} to {:.2f})".format(*interval)


def _points(interval):
    mean, low, high = (100 * v for v in interval)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _change(interval):
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*interval)


def table(header, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def _by_count(measured, key, show):
    counts = evaluate.COUNTS
    return table(
        ["", *(f"N = {n}" for n in counts), "all"],
        [
            [way, *(show(measured.interval(way, key, n)) for n in (*counts, None))]
            for way in evaluate.METHODS
            if way in measured.ways
        ],
    )


def _seconds(speed, way):
    """Seconds a picture: the median over the sets, of which each has every way's time in turn."""
    return np.median(speed.ways[way]["seconds"]) if way in speed.ways else np.nan


def _overview(test, speed):
    header = [
        "",
        "model evaluations a picture",
        "s a picture, N = 3",
        "skills present %",
        "all skills %",
        "not asked for, a picture",
        "patch distance",
    ]
    ways = [way for way in evaluate.METHODS if way in test.ways]
    return table(
        header,
        [[way, f"{test.evaluations(way):.0f}", f"{_seconds(speed, way):.2f}", *_qualities(test, way)] for way in ways],
    )


def _qualities(measured, way):
    """The means of all skills with their intervals, as they are shown."""
    return [
        show(measured.interval(way, key))
        for key, show in (("present", _share), ("complete", _share), ("others", _number), ("distance", _number))
    ]


def _against(measured, reference, ways, keys=("present", "complete", "distance")):
    """What each of these ways saves of the reference's evaluations, and what it changes, caption by caption."""
    show = {"distance": _change, "others": _change}
    names = {
        "present": "skills present, points",
        "complete": "all skills, points",
        "distance": "patch distance",
        "others": "not asked for, a picture",
        "style": "style present, points",
        "places": "other skills present, points",
    }
    return table(
        ["", f"evaluations, of {reference}'s", *(names[key] for key in keys)],
        [
            [
                way,
                f"{measured.evaluations(way) / measured.evaluations(reference):.0%}",
                *(show.get(key, _points)(measured.difference(way, reference, key)) for key in keys),
            ]
            for way in ways
            if way in measured.ways
        ],
    )


def plot_methods(measured, path):
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for i, way in enumerate(w for w in COMPARED if w in measured.ways):
        for panel, key, factor in zip(panels, ("present", "complete", "distance"), (100, 100, 1)):
            mean, low, high = factor * np.array([measured.interval(way, key, n) for n in evaluate.COUNTS]).T
            panel.errorbar(
                np.array(evaluate.COUNTS) + (i - 3) * 0.06,
                mean,
                [mean - low, high - mean],
                marker="o",
                ms=4,
                capsize=2,
                label=way,
            )
    for panel, title in zip(
        panels,
        (
            "asked skills present (%)",
            "pictures with all asked skills (%)",
            "patch distance to renders (lower is better)",
        ),
    ):
        panel.set(title=title, xlabel="LoRAs in the prompt", xticks=evaluate.COUNTS)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_cost(measured, path):
    """Quality against model evaluations a picture: filled, the asked LoRAs alone; hollow, all of them loaded."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(13, 4.6), constrained_layout=True)
    colours = plt.get_cmap("tab20").colors
    for i, (way, made) in enumerate((w, m) for w, m in evaluate.METHODS.items() if w in measured.ways):
        for panel, key, factor in zip(panels, ("present", "distance"), (100, 1)):
            mean, low, high = factor * np.array(measured.interval(way, key))
            panel.errorbar(
                measured.evaluations(way),
                mean,
                [[mean - low], [high - mean]],
                marker="s" if made.everything else "o",
                ms=6,
                capsize=2,
                color=colours[i],
                mfc="white" if made.everything else None,
                linestyle="none",
                label=way,
            )
    for panel, title in zip(panels, ("asked skills present (%)", "patch distance to renders (lower is better)")):
        panel.set(title=title, xlabel="model evaluations a picture (20 steps)", xscale="log")
        panel.set_xticks([40, 60, 100, 200, 400], ["40", "60", "100", "200", "400"])
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_ablation(measured, path):
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 3.4), constrained_layout=True)
    for patch in evaluate.PATCHES:
        for panel, key, factor in zip(panels, ("present", "distance"), (100, 1)):
            mean, low, high = (
                factor * np.array([measured.interval(f"tau {t:g}, d {patch}", key) for t in evaluate.TEMPERATURES]).T
            )
            panel.errorbar(
                evaluate.TEMPERATURES,
                mean,
                [mean - low, high - mean],
                marker="o",
                ms=4,
                capsize=2,
                label=f"patch size {patch}",
            )
    mean, low, high = 100 * np.array([measured.interval(f"lambda {v:g}", "present") for v in evaluate.LAMBDAS]).T
    panels[2].errorbar(evaluate.LAMBDAS, mean, [mean - low, high - mean], marker="o", ms=4, capsize=2)
    for panel, title in zip(panels, ("asked skills present (%)", "patch distance", "asked skills present (%)")):
        panel.set(title=title, xlabel="temperature", xscale="log")
        panel.grid(alpha=0.3)
    panels[2].set(xlabel="lambda", xscale="linear")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _variants(measured, ways):
    header = [
        "",
        "model evaluations a picture",
        "skills present %",
        "all skills %",
        "not asked for, a picture",
        "patch distance",
    ]
    return table(
        header,
        [[way, f"{measured.evaluations(way):.0f}", *_qualities(measured, way)] for way in ways if way in measured.ways],
    )


def best(measured, ways):
    """The way with the most asked skills; among those within one point of it, the one of smallest patch distance."""
    ways = [w for w in ways if w in measured.ways]
    most = max(measured.ways[w]["present"].mean() for w in ways)
    return min(
        (w for w in ways if measured.ways[w]["present"].mean() > most - 0.01),
        key=lambda w: measured.ways[w]["distance"].mean(),
    )


def cheapest(measured, ways, reference):
    """Of the ways whose share of asked skills is at most one point below the reference's the one with the fewest
    evaluations; if there is none, the one with the most skills.
    """
    ways = [w for w in ways if w in measured.ways]
    least = measured.ways[reference]["present"].mean() - 0.01
    good = [w for w in ways if measured.ways[w]["present"].mean() >= least]
    return min(good, key=measured.evaluations) if good else max(ways, key=lambda w: measured.ways[w]["present"].mean())


def choices(records):
    """The best variant of each kind: temperature with patch size, lambda, top-k with all LoRAs loaded, how a pool is
    scouted.
    """
    dev, pool = Measured(records, "dev"), Measured(records, "pool")
    found = {kind: [way for way in dev.ways if way.startswith(kind)] for kind in ("tau", "lambda", "all loaded")}
    chosen = {kind: best(dev, ways) for kind, ways in found.items() if ways}
    scouted = [way for way in pool.ways if way != evaluate.EXACT]
    return chosen | ({"scout": cheapest(pool, scouted, evaluate.EXACT)} if scouted else {})


def write(records, docs):
    """docs/evaluation.md and its plots."""
    import matplotlib

    matplotlib.use("Agg")
    test, dev, pool, style, speed = (Measured(records, split) for split in ("test", "dev", "pool", "style", "speed"))
    pictures, styled = (len(next(iter(split.ways.values()), {"present": ()})["present"]) for split in (test, style))
    plot_methods(test, docs / "evaluation-methods.png")
    plot_cost(test, docs / "evaluation-cost.png")
    plot_ablation(dev, docs / "evaluation-ablation.png")
    default, chosen = Settings(), choices(records)
    text = f"""# Evaluation in the tiny world

Written by `python -m lab.evaluate`; figures in brackets are 95% intervals (bootstrap over sets of LoRAs). The tiny
world, its model,
its LoRAs and the detector are described in [the model card](../lab/MODEL_CARD.md). Real models may rank the methods
differently.

{pictures} captions: {pictures // len(evaluate.COUNTS)} for each N, of {
        pictures // len(evaluate.COUNTS) // evaluate.CAPTIONS
    } random sets of N skills
with {evaluate.CAPTIONS} captions each; the same noise for every method; DDIM, {evaluate.STEPS} steps, CFG {
        evaluate.CFG:g}, every LoRA at strength 1.
LoRAtorio at its defaults: temperature {default.temperature:g}, patch size {default.patch_size}, lambda {default.lam:g}.
"Pool" and "all loaded" have all {len(world.NAMES)} LoRAs, whatever the caption asks for; in a pool, the {
        evaluate.TOP_K
    } most divergent in each place compose
it (top-k); it is scouted up to {
        default.scout:g} of the sampling, with the named least share of the strongest LoRA's places.

## Quality and cost

Model evaluations are rows of the UNet, guidance included. Seconds with one thread, the loading of the LoRAs included:
the median of
{evaluate.SPLITS["speed"][1]} sets of three skills with {evaluate.CAPTIONS} pictures each, the methods in turn.

{_overview(test, speed)}
![quality against cost](evaluation-cost.png)

Filled: only the asked LoRAs are loaded; hollow: all of them.

### Cheaper guidance

What lambda 1 (N + 2 evaluations a step instead of 2N + 2) and the LoRAs' negative prompt in some steps only (between
them its last known
difference from the base) change against LoRAtorio's defaults, caption by caption.

{_against(test, REFERENCE, [way for way in evaluate.METHODS if way.startswith(f"{REFERENCE}, ")])}
### A large pool

What scouting changes against evaluating the whole pool in every step, caption by caption.

{
        _against(
            test,
            "Pool, exact",
            [way for way in evaluate.METHODS if way.startswith("Pool, scout")],
            ("present", "complete", "others", "distance"),
        )
    }
### A style everywhere

{styled} captions of {
        styled // evaluate.CAPTIONS
    } sets with one style and two other skills. "Global": the style's LoRA is part of the base and of both
other LoRAs' evaluations (`lt=global`); "local": it competes for places with them.

{_style(style)}
Global and merged against local, caption by caption:

{
        _against(
            style,
            "styles local",
            [way for way in evaluate.STYLED if way != "styles local"],
            ("style", "places", "complete", "distance"),
        )
        if styled
        else ""
    }
## By number of skills

![methods](evaluation-methods.png)

### Asked skills present, in % (found by the detector)

{_by_count(test, "present", _share)}
### Pictures with all asked skills, in %

{_by_count(test, "complete", _share)}
### Skills shown that were not asked for, a picture

{_by_count(test, "others", _number)}
### Patch distance to ground-truth renders of the caption (lower is better)

Sliced Wasserstein distance between the 3 x 3-block patches of a picture and those of renders of the same caption.
Figures may stand anywhere,
so no pixel-wise measure fits; the patches are the same wherever they stand. Unlike the detector's features it has
seen no training, so blur,
wrong colours and half-drawn figures count as well. Between two renders of one caption it is {_number(floor())}.

{_by_count(test, "distance", _number)}
### Model evaluations a picture

{
        table(
            ["", *(f"N = {n}" for n in evaluate.COUNTS)],
            [[way, *(f"{test.evaluations(way, n):.0f}" for n in evaluate.COUNTS)] for way in test.ways],
        )
    }
## LoRAtorio against each other method, caption by caption

{
        table(
            ["", "more skills %", "as many %", "fewer %", "smaller patch distance %"],
            [
                [way, *(f"{100 * v:.0f}" for v in test.wins(REFERENCE, way)[:3]), _share(test.wins(REFERENCE, way)[3])]
                for way in test.ways
                if way != REFERENCE
            ],
        )
    }
## Choice of the defaults

On captions, sets and seeds that are not among those above ({
        len(next(iter(dev.ways.values()))["present"])
    } captions). Rule: most asked
skills; among the variants within one point of that, the smallest patch distance. Temperature and patch size: **{
        chosen["tau"]
    }**;
lambda at the defaults of these: **{chosen["lambda"]}**; top-k with all loaded: **{chosen["all loaded"]}**.

![ablation](evaluation-ablation.png)

{_variants(dev, evaluate.ablation())}
Scouting a pool is to save evaluations: on {
        len(pool.ways[evaluate.EXACT]["present"])
    } further captions, how long all of it are evaluated, and the share of
the strongest LoRA's places that one needs to stay. Rule: of the variants at most one point of asked skills below the
whole pool in every step,
the one with the fewest evaluations: **{chosen["scout"]}**.

{_variants(pool, evaluate.scouting())}
Against the whole pool in every step, caption by caption:

{
        _against(
            pool,
            evaluate.EXACT,
            [way for way in evaluate.scouting() if way != evaluate.EXACT],
            ("present", "complete", "others", "distance"),
        )
    }"""
    (docs / "evaluation.md").write_text(text)
    print(f"{docs / 'evaluation.md'}: {pictures} captions, {len(test.ways)} ways")


def _style(style):
    return table(
        [
            "",
            "model evaluations a picture",
            "style present %",
            "other skills present %",
            "all three %",
            "patch distance",
        ],
        [
            [
                way,
                f"{style.evaluations(way):.0f}",
                *(_share(style.interval(way, key)) for key in ("style", "places", "complete")),
                _number(style.interval(way, "distance")),
            ]
            for way in style.ways
        ],
    )


def floor(count=60):
    """Patch distance of renders to other renders of their captions."""
    contents = [c for s in evaluate.skill_sets("test") for c in s.contents()[1]][:count]
    renders = np.stack([world.render(c, 10**7 + i) for i, c in enumerate(contents)])
    return measure.bootstrap(measure.patch_distance(renders, contents, 2 * 10**7), np.arange(len(contents)))
