"""Cost of composing against the host's plain rows, on a running WebUI.

Times a picture with 3 LoRAs, composed, and a plain batch of 4 (the same number of model rows) in
alternation, and prints the median of the ratios pair by pair: of whole requests, and of the sampling
alone (the difference between requests of two step counts, which takes out text encoding and decoding).
With --naive also against swapping the host's own LoRA set for each LoRA in each step, which is what Verify does besides
composing: its sampling time less that of composing alone.

    python benchmarks/cost_ratio.py --webui-url http://127.0.0.1:7860 --loras a,b,te --size 256
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import requests


def seconds(url: str, request: dict[str, Any]) -> float:
    """How long the WebUI takes for a txt2img request."""
    start = time.perf_counter()
    requests.post(f"{url}/sdapi/v1/txt2img", json=request, timeout=1800).raise_for_status()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui-url", default="http://127.0.0.1:7860")
    parser.add_argument("--loras", default="a,b,te", help="three LoRA names")
    parser.add_argument("--size", type=int, default=256, help="edge of the picture in pixels")
    parser.add_argument("--steps", type=int, nargs=2, default=(2, 6), metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--naive", action="store_true", help="also against swapping LoRAs within each step (slow)")
    options = parser.parse_args()

    few, many = options.steps
    loras = options.loras.split(",")
    size = {"width": options.size, "height": options.size, "seed": 1, "sampler_name": "Euler", "do_not_save_grid": True}
    tags = " ".join(f"<lora:{name}:0.7>" for name in loras)
    composed = {**size, "prompt": f"a cat {tags}", "alwayson_scripts": {"LoRAtorio": {"args": [{"enabled": True}]}}}
    verified = {**composed, "alwayson_scripts": {"LoRAtorio": {"args": [{"enabled": True, "verify": True}]}}}
    plain = {**size, "prompt": "a cat", "batch_size": len(loras) + 1}

    for request in (composed, plain):
        seconds(options.webui_url, {**request, "steps": few})
    whole, sampling, naive = [], [], []
    for _ in range(options.rounds):
        times = [
            seconds(options.webui_url, {**request, "steps": steps})
            for steps in (many, few)
            for request in (composed, plain)
        ]
        whole.append(times[0] / times[1])
        sampling.append((times[0] - times[2]) / (times[1] - times[3]))
        if options.naive:
            more, less = (seconds(options.webui_url, {**verified, "steps": steps}) for steps in (many, few))
            naive.append((times[0] - times[2]) / (more - less - (times[0] - times[2])))
    for name, other, ratios in (
        ("whole request", "the plain rows", whole),
        ("sampling", "the plain rows", sampling),
        ("sampling", "swapping LoRAs", naive),
    ):
        if ratios:
            print(
                f"{options.size} px, {len(loras)} LoRAs, {name}: {statistics.median(ratios):.3f} of {other} "
                f"(min {min(ratios):.3f}, max {max(ratios):.3f}, {options.rounds} rounds)"
            )


if __name__ == "__main__":
    main()
