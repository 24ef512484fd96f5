"""Draws the training losses: python -m lab.curves [--scratch DIR] -> lab/losses.png"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read(path: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of one training, each `[rows]`."""
    rows = list(csv.DictReader(path.open()))
    return [int(r["step"]) for r in rows], [float(r["loss"]) for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=Path.home() / ".cache" / "loratorio-lab")
    parser.add_argument("--out", default="lab/losses.png")
    args = parser.parse_args()
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    for panel, title, pattern in zip(
        panels,
        ("autoencoder (L1 + KL)", "base (weighted noise MSE)", "LoRAs (weighted noise MSE)"),
        ("ae", "base", "lora-*"),
    ):
        for path in sorted(args.scratch.glob(f"{pattern}.csv")):
            panel.plot(*read(path), label=path.stem.removeprefix("lora-"))
        panel.set(title=title, xlabel="step", yscale="log")
        panel.grid(alpha=0.3)
    if panels[2].lines:
        panels[2].legend(fontsize=6, ncols=2)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
