"""Tables and plots of what `lab.evaluate` measured: docs/evaluation.md, docs/evaluation-*.png."""
import numpy as np

from lab import evaluate, measure, world
from lib_loratorio.methods import METHODS
from lib_loratorio.settings import Settings

REFERENCE = "LoRAtorio"


class Measured:
    """The records of one split as arrays, one entry a picture, in the same order for every way."""

    def __init__(self, records, split):
        self.ways = {}
        for way in dict.fromkeys(r["way"] for r in records if r["split"] == split):
            own = sorted((r for r in records if r["split"] == split and r["way"] == way), key=lambda r: (r["count"], r["number"]))
            self.ways[way] = {key: np.concatenate([r[key] for r in own]) for key in ("present", "complete", "others", "distance")}
            pictures = len(own[0]["present"])
            self.ways[way]["count"] = np.repeat([r["count"] for r in own], pictures)
            self.ways[way]["group"] = np.repeat([r["count"] * 1000 + r["number"] for r in own], pictures)
            self.ways[way]["seconds"] = np.repeat([r["seconds"] for r in own], pictures)
            self.ways[way]["evaluations"] = np.repeat([r.get("evaluations", np.nan) for r in own], pictures)

    def interval(self, way, key, count=None):
        """(mean, low, high) over the pictures with `count` skills, or all."""
        values = self.ways[way]
        rows = np.ones(len(values[key]), bool) if count is None else values["count"] == count
        return measure.bootstrap(values[key][rows], values["group"][rows])

    def wins(self, one, other):
        """Shares of captions on which `one` shows more, as many and fewer of the asked skills than `other`; and on which its
        patch distance is the smaller one, with that share's interval."""
        a, b = self.ways[one], self.ways[other]
        more, closer = np.sign(a["present"] - b["present"]), (a["distance"] < b["distance"]).astype(float)
        return (more > 0).mean(), (more == 0).mean(), (more < 0).mean(), measure.bootstrap(closer, a["group"])


    def evaluations(self, name, count):
        """Model evaluations a step, guidance included, where they were counted; else as planned."""
        of_way = self.ways[name]
        counted = of_way["evaluations"][of_way["count"] == count].mean() / evaluate.STEPS
        return evaluations(evaluate.METHODS[name], count) if np.isnan(counted) else f"{counted:.3g}"


def evaluations(way, count):
    """Model evaluations a step, guidance included, of a way that has all its adapters in every step."""
    if way.settings is None or way.settings.method == "merge":
        return 2
    plan = METHODS[way.settings.method](way.settings).plan(range(len(world.NAMES) if way.everything else count), 0)
    return len(plan.conditional) + len(plan.unconditional)


def _share(interval):
    mean, low, high = (100 * v for v in interval)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def _number(interval):
    return "{:.2f} ({:.2f} to {:.2f})".format(*interval)


def table(header, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def _by_count(measured, key, show):
    counts = evaluate.COUNTS
    return table(["", *(f"N = {n}" for n in counts), "all"],
                 [[way, *(show(measured.interval(way, key, n)) for n in (*counts, None))] for way in evaluate.METHODS if way in measured.ways])


def plot_methods(measured, path):
    from matplotlib import pyplot as plt
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for i, way in enumerate(w for w in evaluate.METHODS if w in measured.ways):
        for panel, key, factor in zip(panels, ("present", "complete", "distance"), (100, 100, 1)):
            mean, low, high = factor * np.array([measured.interval(way, key, n) for n in evaluate.COUNTS]).T
            panel.errorbar(np.array(evaluate.COUNTS) + (i - 3) * 0.06, mean, [mean - low, high - mean], marker="o", ms=4, capsize=2, label=way)
    for panel, title in zip(panels, ("asked skills present (%)", "pictures with all asked skills (%)", "patch distance to renders (lower is better)")):
        panel.set(title=title, xlabel="LoRAs in the prompt", xticks=evaluate.COUNTS)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_ablation(measured, path):
    from matplotlib import pyplot as plt
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.4), constrained_layout=True)
    for patch in evaluate.PATCHES:
        for panel, key, factor in zip(panels, ("present", "distance"), (100, 1)):
            mean, low, high = factor * np.array([measured.interval(f"tau {t:g}, d {patch}", key) for t in evaluate.TEMPERATURES]).T
            panel.errorbar(evaluate.TEMPERATURES, mean, [mean - low, high - mean], marker="o", ms=4, capsize=2, label=f"patch size {patch}")
    mean, low, high = 100 * np.array([measured.interval(f"lambda {v:g}", "present") for v in evaluate.LAMBDAS]).T
    panels[2].errorbar(evaluate.LAMBDAS, mean, [mean - low, high - mean], marker="o", ms=4, capsize=2)
    for panel, title in zip(panels, ("asked skills present (%)", "patch distance", "asked skills present (%)")):
        panel.set(title=title, xlabel="temperature", xscale="log")
        panel.grid(alpha=0.3)
    panels[2].set(xlabel="lambda", xscale="linear")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _ablation(measured):
    rows = [[way, _share(measured.interval(way, "present")), _share(measured.interval(way, "complete")),
             _number(measured.interval(way, "distance"))] for way in evaluate.ablation() if way in measured.ways]
    return table(["dev captions", "skills present %", "all skills %", "patch distance"], rows)


def best(measured, ways):
    """The way with the most asked skills; among those within one point of it, the one with the smallest patch distance."""
    ways = [w for w in ways if w in measured.ways]
    most = max(measured.ways[w]["present"].mean() for w in ways)
    return min((w for w in ways if measured.ways[w]["present"].mean() > most - 0.01), key=lambda w: measured.ways[w]["distance"].mean())


def choices(records):
    """The best variant on dev of each kind: temperature with patch size, lambda, top-k with all LoRAs loaded."""
    dev = Measured(records, "dev")
    found = {kind: [way for way in dev.ways if way.startswith(kind)] for kind in ("tau", "lambda", "all loaded", "pool")}
    return {kind: best(dev, ways) for kind, ways in found.items() if ways}


def write(records, docs):
    """docs/evaluation.md and its plots."""
    import matplotlib
    matplotlib.use("Agg")
    test, dev = Measured(records, "test"), Measured(records, "dev")
    pictures = len(next(iter(test.ways.values()))["present"])
    plot_methods(test, docs / "evaluation-methods.png")
    plot_ablation(dev, docs / "evaluation-ablation.png")
    default, chosen = Settings(), choices(records)
    text = f"""# Evaluation in the tiny world

Written by `python -m lab.evaluate`; figures in brackets are 95% intervals (bootstrap over sets of LoRAs). The tiny world, its model,
its LoRAs and the detector are described in [the model card](../lab/MODEL_CARD.md). Real models may rank the methods differently.

{pictures} captions: {pictures // len(evaluate.COUNTS)} for each N, of {pictures // len(evaluate.COUNTS) // evaluate.CAPTIONS} random sets of N skills
with {evaluate.CAPTIONS} captions each; the same noise for every method; DDIM, {evaluate.STEPS} steps, CFG {evaluate.CFG:g}, every LoRA at strength 1.
LoRAtorio at its defaults: temperature {default.temperature:g}, patch size {default.patch_size}, lambda {default.lam:g};
with all {len(world.NAMES)} LoRAs loaded, top-k {evaluate.TOP_K}.

![methods](evaluation-methods.png)

## Asked skills present, in % (found by the detector)

{_by_count(test, "present", _share)}
## Pictures with all asked skills, in %

{_by_count(test, "complete", _share)}
## Skills shown that were not asked for, a picture

{_by_count(test, "others", _number)}
## Patch distance to ground-truth renders of the caption (lower is better)

Sliced Wasserstein distance between the 3 x 3-block patches of a picture and those of renders of the same caption. Figures may stand anywhere,
so no pixel-wise measure fits; the patches are the same wherever they stand. Unlike the detector's features it has seen no training, so blur,
wrong colours and half-drawn figures count as well. Between two renders of one caption it is {_number(floor())}.

{_by_count(test, "distance", _number)}
## LoRAtorio against each other method, caption by caption

{table(["", "more skills %", "as many %", "fewer %", "smaller patch distance %"],
       [[way, *(f"{100 * v:.0f}" for v in test.wins(REFERENCE, way)[:3]), _share(test.wins(REFERENCE, way)[3])] for way in test.ways if way != REFERENCE])}
## Cost

Model evaluations a step (rows of the UNet, guidance included), and seconds a picture with one thread, two processes at a time,
the loading of the LoRAs included.

{table(["", *(f"N = {n}" for n in evaluate.COUNTS), "s a picture"],
       [[way, *(test.evaluations(way, n) for n in evaluate.COUNTS), f"{test.ways[way]['seconds'].mean():.2f}"] for way in test.ways])}
## Choice of the defaults

On captions, sets and seeds that are not among those above ({len(next(iter(dev.ways.values()))['present'])} captions). Rule: most asked
skills; among the variants within one point of that, the smallest patch distance. Temperature and patch size: **{chosen["tau"]}**;
lambda at the defaults of these: **{chosen["lambda"]}**; top-k with all loaded: **{chosen["all loaded"]}**.

![ablation](evaluation-ablation.png)

{_ablation(dev)}"""
    (docs / "evaluation.md").write_text(text)
    print(f"{docs / 'evaluation.md'}: {pictures} captions, {len(test.ways)} ways")


def floor(count=60):
    """Patch distance of renders to other renders of their captions."""
    contents = [c for s in evaluate.skill_sets("test") for c in s.contents()[1]][:count]
    renders = np.stack([world.render(c, 10**7 + i) for i, c in enumerate(contents)])
    return measure.bootstrap(measure.patch_distance(renders, contents, 2 * 10**7), np.arange(len(contents)))
