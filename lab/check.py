"""Does every LoRA show its skill? 64 pictures a skill, made with that LoRA alone as diffusers' own loader reads it.

    python -m lab.check [NAME ...] [--count 64] [--sheet outputs/skills.png] [--plain]

Prints, per skill, the share of pictures in which the detector finds it, and how often it finds it without the LoRA
(which should be never). Prompts are captions of held-out scenes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from lab import detector, model, world
from lab.model import WEIGHTS

SEED = 800_000


def pictures(
    pipe: StableDiffusionPipeline, name: str, count: int, steps: int, cfg: float, batch: int = 16
) -> np.ndarray:
    """Pictures for held-out captions of one skill, `[count, SIZE, SIZE, 3]` uint8."""
    captions = world.batch(lambda rng: (name,), count, SEED + world.NAMES.index(name))[1]
    return np.concatenate(
        [model.sample(pipe, captions[i : i + batch], SEED + i, steps, cfg) for i in range(0, count, batch)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--model", default=WEIGHTS / "model")
    parser.add_argument("--loras", type=Path, default=WEIGHTS / "loras")
    parser.add_argument("--detector", default=WEIGHTS / "detector.safetensors")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="also write the first eight pictures of each skill here")
    parser.add_argument("--plain", action="store_true", help="also without the LoRA")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, judge, rows, worst = model.load(args.model), detector.load(args.detector), [], 1.0
    for name in args.names or world.NAMES:
        column = world.NAMES.index(name)
        line = f"{name:10s}"
        if args.plain:
            found = detector.detect(judge, pictures(pipe, name, args.count, args.steps, args.cfg))
            line += f"  without LoRA {found[:, column].mean():6.1%}"
        start = time.time()
        pipe.load_lora_weights(args.loras, weight_name=f"{name}.safetensors", adapter_name=name)
        images = pictures(pipe, name, args.count, args.steps, args.cfg)
        pipe.unload_lora_weights()
        found = detector.detect(judge, images)
        others = np.delete(found, column, 1).any(1).mean()
        worst = min(worst, found[:, column].mean())
        print(
            f"{line}  with LoRA {found[:, column].mean():6.1%}  other skills in {others:6.1%}  "
            f"{time.time() - start:.0f} s",
            flush=True,
        )
        rows.append(np.concatenate(images[:8], 1))
    print(f"lowest: {worst:.1%} of {args.count}")
    if args.sheet:
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(args.sheet)


if __name__ == "__main__":
    main()
