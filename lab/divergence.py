"""How far each LoRA diverges from the base with its word in the caption and without it.

    python -m lab.divergence                            the shipped LoRAs
    python -m lab.divergence --loras regularised=DIR    another folder of LoRAs, under a name of its own

Prints a table and keeps what was measured in --results, beside what other names have there; `python -m lab.evaluate
--only pools --report` plots it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from lab import model, world
from lab.evaluation import divergence
from lab.evaluation.captions import skill_sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loras", default=f"shipped={model.WEIGHTS / 'loras'}", metavar="NAME=DIR")
    parser.add_argument("--results", type=Path, default=Path("lab/results/divergence.jsonl"))
    parser.add_argument("--each", type=int, default=4, help="scenes of every skill")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name, _, folder = args.loras.partition("=")
    pipe, seen = model.load(model.WEIGHTS / "model"), divergence.looks(args.each, skill_sets("dev"))
    kept = divergence.lines(name, divergence.measure(pipe, Path(folder), seen), seen)
    several = divergence.looks_at(skill_sets("pool", 4), divergence.SEVERAL)
    both = several + [divergence.without_caption(look) for look in several]
    weighed = divergence.weighing_lines(name, divergence.measure(pipe, Path(folder), both, 5), several)
    others = [line for line in divergence.read(args.results) if line["loras"] != name] if args.results.exists() else []
    divergence.write(args.results, others + kept + weighed)
    print(f"{name}: 1 - cos, in thousandths".ljust(12), *(f"{kind:>22s}" for kind in divergence.KINDS))
    by_lora = {(line["lora"], line["captions"]): np.mean(line["divergence"]) for line in kept if "lora" in line}
    for lora in world.NAMES:
        print(lora.ljust(12), *(f"{1000 * by_lora.get((lora, kind), np.nan):22.2f}" for kind in divergence.KINDS))
    print(f"places that asked LoRAs win: {np.mean(list(kept[-1]['won'].values())):.1%}")


if __name__ == "__main__":
    main()
