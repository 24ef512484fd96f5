"""What weight maps cost on a running WebUI: sampling with them against sampling without.

Takes the two in alternation, of two step counts each; the difference between the step counts is the sampling alone.
Prints the median of the ratios pair by pair. With --server-pid (Linux) it takes the server's processor time, which
other programs on the machine disturb less than the clock.

    python benchmarks/maps_cost.py --webui-url http://127.0.0.1:7860 --loras a,b,te --size 256
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import requests


def clock(pid: int | None) -> float:
    """Seconds so far: of the clock, or with `pid`, of processor time that this process took."""
    if pid is None:
        return time.perf_counter()
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui-url", default="http://127.0.0.1:7860")
    parser.add_argument("--server-pid", type=int)
    parser.add_argument("--loras", default="a,b,te", help="LoRA names")
    parser.add_argument("--size", type=int, default=256, help="edge of the picture in pixels")
    parser.add_argument("--steps", type=int, nargs=2, default=(2, 12), metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    tags = " ".join(f"<lora:{name}:0.7>" for name in options.loras.split(","))

    def seconds(maps: bool, steps: int) -> float:
        request = {
            "prompt": f"a cat {tags}",
            "width": options.size,
            "height": options.size,
            "seed": 1,
            "sampler_name": "Euler",
            "steps": steps,
            "do_not_save_grid": True,
            "alwayson_scripts": {"LoRAtorio": {"args": [{"enabled": True, "maps": maps}]}},
        }
        start = clock(options.server_pid)
        requests.post(f"{options.webui_url}/sdapi/v1/txt2img", json=request, timeout=1800).raise_for_status()
        return clock(options.server_pid) - start

    seconds(True, options.steps[0])
    ratios = []
    for number in range(options.rounds):
        times = {
            (maps, steps): seconds(maps, steps)
            for steps in options.steps
            for maps in ((True, False) if number % 2 else (False, True))
        }
        few, many = options.steps
        ratios.append((times[True, many] - times[True, few]) / (times[False, many] - times[False, few]))
    print(
        f"{options.size} px, {options.loras}: sampling with maps takes {statistics.median(ratios):.3f} of the "
        "time without "
        f"(min {min(ratios):.3f}, max {max(ratios):.3f}, {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
