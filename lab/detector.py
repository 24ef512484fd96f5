"""The skill detector: which of the world's skills a picture shows.

    python -m lab.detector --out lab/weights/detector.safetensors

A small CNN with one logit per skill, trained on ground-truth renders of 0 to 5 skills, blurred, shifted in colour and
noised, because a generator's pictures are never as clean as the renders. Its accuracy is measured on renders of another
seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lab import world

HELD_OUT_SEED = 900_000  # training seeds stay below


class Detector(nn.Module):
    """Pictures `[B, 3, SIZE, SIZE]` in 0..1 -> logits `[B, skills]`."""

    def __init__(self, width: int = 32):
        super().__init__()
        w = width
        self.body = nn.Sequential(
            nn.Conv2d(3, w, 4, stride=2, padding=1),
            nn.GroupNorm(4, w),
            nn.ReLU(),
            nn.Conv2d(w, 2 * w, 4, stride=2, padding=1),
            nn.GroupNorm(4, 2 * w),
            nn.ReLU(),
            nn.Conv2d(2 * w, 2 * w, 3, padding=1),
            nn.GroupNorm(4, 2 * w),
            nn.ReLU(),
            nn.Conv2d(2 * w, 3 * w, 4, stride=2, padding=1),
            nn.GroupNorm(4, 3 * w),
            nn.ReLU(),
            nn.Conv2d(3 * w, 3 * w, 3, padding=1),
            nn.GroupNorm(4, 3 * w),
            nn.ReLU(),
        )
        # Figures are somewhere (maximum), styles and grounds everywhere (mean).
        self.head = nn.Linear(6 * w, len(world.NAMES))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.body(pictures * 2 - 1)
        return self.head(torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1))


def to_pictures(images: np.ndarray) -> torch.Tensor:
    """Pictures `[B, H, W, 3]` uint8 -> `[B, 3, H, W]` float32 in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def degrade(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures `[B, 3, H, W]` in 0..1 with what separates a generated one from a render: some blur, a colour cast,
    noise; in 0..1.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    n = len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.lerp(pictures, blurred, uniform(n, 1, 1, 1))
    pictures = pictures * uniform(n, 3, 1, 1, low=0.85, high=1.15) + uniform(n, 3, 1, 1, low=-0.06, high=0.06)
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures + noise * uniform(n, 1, 1, 1, high=0.06)).clamp(0, 1)


def random_scene(rng: np.random.Generator) -> tuple[str, ...]:
    """The skills of a scene of 0 to 5."""
    count = int(rng.integers(0, 6))
    return world.random_skills(rng, count) if count else ()


def load(path: Path | str, device: str = "cpu") -> Detector:
    with safe_open(path, "pt") as file:
        detector = Detector(int(file.metadata()["width"]))
        detector.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})
    return detector.to(device).eval()


@torch.no_grad()
def detect(detector: Detector, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Pictures `[B, H, W, 3]` uint8 -> which skills each shows, `[B, skills]` bool."""
    return torch.cat(
        [detector(to_pictures(part)) > 0 for part in np.array_split(images, -(-len(images) // batch))]
    ).numpy()


def accuracy(detector: Detector, count: int = 2000, degraded: bool = False) -> dict[str, Any]:
    """On `count` held-out scenes: share of right answers for each skill and for all, and share of scenes with every
    answer right.
    """
    images, _, targets = world.batch(random_scene, count, HELD_OUT_SEED)
    if degraded:
        pictures = degrade(to_pictures(images), torch.Generator().manual_seed(HELD_OUT_SEED))
        images = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    right = detect(detector, images) == (targets > 0.5)
    return {
        "per_skill": {n: round(float(r), 4) for n, r in zip(world.NAMES, right.mean(0))},
        "labels": round(float(right.mean()), 4),
        "scenes": round(float(right.all(1).mean()), 4),
        "count": count,
    }


def train(steps: int = 500, batch: int = 32, seed: int = 0, width: int = 24) -> Detector:
    """A detector trained on `steps` batches of `batch` scenes each."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    detector = Detector(width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    start = time.time()
    for step in range(steps):
        images, _, targets = world.batch(random_scene, batch, seed * 100_000 + step)
        pictures = degrade(to_pictures(images), generator).contiguous(memory_format=torch.channels_last)
        loss = F.binary_cross_entropy_with_logits(detector(pictures), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}  {time.time() - start:.0f} s", flush=True)
    return detector.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="lab/weights/detector.safetensors")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    width = 24
    detector = train(args.steps, width=width)
    weights = {k: v.half().contiguous() for k, v in detector.state_dict().items()}
    detector.load_state_dict({k: v.float() for k, v in weights.items()})  # measured as it is shipped
    report = {"clean": accuracy(detector), "degraded": accuracy(detector, degraded=True)}
    save_file(weights, args.out, {"width": str(width), "held_out": json.dumps(report)})
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
