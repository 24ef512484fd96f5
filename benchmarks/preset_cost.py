"""Seconds a picture by preset on a running WebUI, beside its ordinary merge: medians of requests in alternation.

python benchmarks/preset_cost.py --webui-url http://127.0.0.1:7860 --loras a,b,c,d,e --counts 3 5
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from cost_ratio import seconds

from lib_loratorio.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui-url", default="http://127.0.0.1:7860")
    parser.add_argument("--loras", required=True, help="names, as many as the largest count")
    parser.add_argument("--counts", type=int, nargs="+", default=(3, 5))
    parser.add_argument("--size", type=int, default=128, help="edge of the picture in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    print(f"| LoRAs | {' | '.join(('merge', *PRESETS))} |")
    print("|---|" + "---|" * (len(PRESETS) + 1))
    for count in options.counts:
        tags = " ".join(f"<lora:{name}:0.7>" for name in options.loras.split(",")[:count])
        plain = {"prompt": f"a cat {tags}", "steps": options.steps, "width": options.size, "height": options.size}
        plain |= {"seed": 1, "sampler_name": "Euler"}
        ways: dict[str, dict[str, Any]] = {"merge": plain}
        for name, values in PRESETS.items():
            settings = {"enabled": True, **values}
            ways[name] = {**plain, "alwayson_scripts": {"LoRAtorio": {"args": [settings]}}}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, request in ways.items():
                one = seconds(options.webui_url, request)
                if number:  # the first round loads files
                    taken[name].append(one)
        print(f"| {count} | {' | '.join(f'{statistics.median(of):.2f}' for of in taken.values())} |", flush=True)


if __name__ == "__main__":
    main()
