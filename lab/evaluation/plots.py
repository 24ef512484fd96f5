"""What was measured, as plots with 95% intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.evaluation.captions import COUNTS
from lab.evaluation.measurements import Interval, Measured
from lab.evaluation.ways import COMPARED, LAMBDAS, METHODS, PATCHES, TEMPERATURES, recentred, tempered

FACTORS = {"present": 100, "complete": 100, "distance": 1}
"""What each plotted quantity is multiplied with."""

PRESENT, DISTANCE = "asked skills present (%)", "patch distance to renders (lower is better)"


def methods(measured: Measured, path: Path) -> None:
    """Quality by the number of LoRAs, of the ways of `COMPARED`."""
    figure, panels = _panels(3, (13, 3.8))
    for i, way in enumerate(way for way in COMPARED if way in measured.ways):
        for panel, key in zip(panels, ("present", "complete", "distance")):
            intervals = [measured.interval(way, key, n) for n in COUNTS]
            _draw(panel, np.array(COUNTS) + (i - 3) * 0.06, intervals, key, label=way)
    for panel, title in zip(panels, (PRESENT, "pictures with all asked skills (%)", DISTANCE)):
        panel.set(title=title, xlabel="LoRAs in the prompt", xticks=COUNTS)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)


def cost(measured: Measured, path: Path) -> None:
    """Quality against model evaluations a picture: filled, the asked LoRAs alone; hollow, all of them loaded."""
    figure, panels = _against_evaluations(measured, METHODS, {way for way, made in METHODS.items() if made.everything})
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xticks([40, 60, 100, 200, 400], ["40", "60", "100", "200", "400"])
        panel.set_xticks([], minor=True)
    figure.savefig(path, dpi=100)


def price(measured: Measured, ours: Sequence[str], merges: Sequence[str], path: Path) -> None:
    """Quality against model evaluations a picture: filled, LoRAtorio; hollow, Merge at several strengths."""
    figure, _ = _against_evaluations(measured, (*ours, *merges), merges)
    figure.savefig(path, dpi=100)


def _against_evaluations(
    measured: Measured, ways: Iterable[str], hollow: Collection[str]
) -> tuple[Figure, Sequence[Axes]]:
    """Both qualities of these ways, of which some have hollow marks."""
    figure, panels = _panels(2, (13, 4.6))
    colours = matplotlib.colormaps["tab20"].colors
    for i, way in enumerate(way for way in ways if way in measured.ways):
        marker = {"marker": "s", "mfc": "white"} if way in hollow else {}
        for panel, key in zip(panels, ("present", "distance")):
            _draw(
                panel,
                [measured.evaluations(way)],
                [measured.interval(way, key)],
                key,
                **{"ms": 6, "color": colours[i], "linestyle": "none", "label": way, **marker},
            )
    for panel, title in zip(panels, (PRESENT, DISTANCE)):
        panel.set(title=title, xlabel="model evaluations a picture (20 steps)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure, panels


def ablation(measured: Measured, path: Path) -> None:
    """Quality by temperature for each patch size, and by lambda."""
    figure, panels = _panels(3, (13, 3.4))
    for patch in PATCHES:
        for panel, key in zip(panels, ("present", "distance")):
            intervals = [measured.interval(tempered(t, patch), key) for t in TEMPERATURES]
            _draw(panel, TEMPERATURES, intervals, key, label=f"patch size {patch}")
    _draw(panels[2], LAMBDAS, [measured.interval(recentred(v), "present") for v in LAMBDAS], "present")
    for panel, title in zip(panels, (PRESENT, "patch distance", PRESENT)):
        panel.set(title=title, xlabel="temperature", xscale="log")
    panels[2].set(xlabel="lambda", xscale="linear")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)


def divergence(of: Mapping[str, Mapping[str, Sequence[float]]], timesteps: Sequence[int], path: Path) -> None:
    """How far LoRAs diverge at each timestep, a panel for each training: by its name, and by the kind of caption, the
    divergence at each timestep.
    """
    figure, panels = _panels(len(of), (6.5 * len(of), 3.8))
    for panel, (name, kinds) in zip(panels, of.items()):
        for kind, values in kinds.items():
            panel.plot(timesteps, values, marker="o", ms=4, label=kind)
        panel.set(title=name, xlabel="timestep (noise on the left)", ylabel="1 - cos", yscale="log")
        panel.invert_xaxis()
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def _panels(count: int, inches: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure with this many panels beside each other, `[count]`."""
    figure = Figure(inches, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


def _draw(panel: Axes, x: Sequence[float] | np.ndarray, intervals: Sequence[Interval], key: str, **style: Any) -> None:
    """One way's points with their intervals, of the quantity `key`; `style` as matplotlib names it."""
    mean, low, high = FACTORS[key] * np.array(intervals).T
    panel.errorbar(x, mean, np.stack([mean - low, high - mean]), **{"marker": "o", "ms": 4, "capsize": 2, **style})
