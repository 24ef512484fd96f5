"""What no CPU can tell, in one run: step times, errors in half precision, peak memory, a pool's streaming, and seconds
a picture by preset, on UNets with random weights in the shapes of Stable Diffusion 1.5 and SDXL.

    PYTHONPATH=.:benchmarks python benchmarks/gpu.py

Made for a GPU, under nine minutes on a large one. `--small` does the same with tiny shapes, on a CPU too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measuring import MB, peak, seconds
from step_cost import KINDS, Step, adapter_of, layers_of, table, unet

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.presets import PRESETS
from lib_loratorio.settings import Settings

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SIZES = {"sd15": 512, "sdxl": 1024, "tiny": 64}
COUNT = 3


def half_precision(name: str, device: str, kind: str = "attention-16") -> dict[str, tuple[float, float]]:
    """By precision the largest error of a composed prediction and of the plain model's, against float32 and relative to
    the largest value.
    """
    predictions = {}
    for precision, dtype in {"fp32": torch.float32, **HALVES}.items():
        model = unet(name, device, torch.float32)
        layers = layers_of(model, KINDS[kind][0])
        torch.manual_seed(2)
        adapters = [adapter_of(layers, KINDS[kind][1], torch.float32) for _ in range(COUNT)]
        step = Step(model, SIZES[name])
        model.to(dtype)
        step.latent, step.text = step.latent.to(dtype), step.text.to(dtype)
        bank = AdapterBank(layers, adapters, 2**40)
        with bank.attached():
            step.composed(step.planner(Settings(lam=1.0), COUNT), bank, 0)
        predictions[precision] = step.prediction.float(), step.plain().float()[:1]
    found = {}
    for precision in HALVES:
        found[precision] = tuple(
            ((half - full).abs().max() / full.abs().max()).item()
            for half, full in zip(predictions[precision], predictions["fp32"])
        )
    return found


def picture(name: str, device: str, dtype: torch.dtype, steps: int) -> dict[str, tuple[float, float, float]]:
    """By preset seconds and model evaluations of a picture, and the peak beside the model in MB; `merge` is the plain
    model's.
    """
    model = unet(name, device, dtype)
    layers = layers_of(model, True)
    bank = AdapterBank(layers, [adapter_of(layers, 16, dtype) for _ in range(COUNT)], 2**40)
    step, found = Step(model, SIZES[name]), {}

    def run_of(values: dict | None) -> Callable[[], None]:
        def run() -> None:
            planner = None if values is None else step.planner(Settings(**values), COUNT)
            with bank.attached():
                for number in range(steps):
                    step.plain() if planner is None else step.composed(planner, bank, number)

        return run

    for preset, values in {"merge": None, **PRESETS}.items():
        run = run_of(values)
        memory = peak(run, device == "cuda")  # the first run, which does not count for the time
        step.rows = 0
        taken = seconds(run)
        found[preset] = taken, step.rows, memory / MB
    return found


def streaming(name: str, device: str, dtype: torch.dtype, pool: int, refresh_every: int) -> tuple[float, float, float]:
    """Of a step with a pool, the mean over a period: seconds with what is brought beside the computation, seconds
    without, and the peak beside the model in MB.
    """
    model = unet(name, device, dtype)
    layers = layers_of(model, True)
    bank = AdapterBank(layers, [adapter_of(layers, 16, torch.float16) for _ in range(pool)], 0)
    step = Step(model, SIZES[name])

    def run() -> None:
        planner = step.planner(Settings(lam=1.0, top_k=2, refresh_every=refresh_every), pool)
        with bank.attached():
            for number in range(refresh_every):
                step.composed(planner, bank, number)

    memory = peak(run, device == "cuda")
    beside = seconds(run) / refresh_every
    bank.prefetch = lambda adapters: None
    return beside, seconds(run) / refresh_every, memory / MB


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names, pools, steps = (("tiny",), (2, 12), 4) if options.small else (("sd15", "sdxl"), (8, 64), 20)
    dtype = torch.float16 if device == "cuda" else torch.float32
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, {dtype}\n")
    start = time.perf_counter()

    print("## A step, in multiples of a plain one\n")
    for name in names:
        print(f"{name}, {SIZES[name]} px\n")
        table(
            unet(name, device, dtype), ["attention-16", "every-32"], [COUNT], [SIZES[name]], 2 if options.small else 5
        )
        print()
    print("## Largest relative error against float32\n\n| shape | precision | composed | plain |\n|---|---|---|---|")
    for name in names:
        for precision, (composed, plain) in half_precision(name, device).items():
            print(f"| {name} | {precision} | {composed:.1e} | {plain:.1e} |", flush=True)
    print(f"\n## A picture of {steps} steps, {COUNT} LoRAs\n")
    print("| shape | preset | s | model evaluations | peak beside the model, MB |\n|---|---|---|---|---|")
    for name in names:
        for preset, (taken, rows, memory) in picture(name, device, dtype, steps).items():
            print(f"| {name} | {preset} | {taken:.2f} | {rows} | {memory:.1f} |", flush=True)
    print("\n## A pool, a step\n")
    print("| shape | LoRAs | alone every | s | s, nothing brought ahead | peak beside the model, MB |")
    print("|---|---|---|---|---|---|")
    for name in names[:1]:
        for pool in pools:
            for every in (1, 3):
                beside, without, memory = streaming(name, device, dtype, pool, every)
                print(f"| {name} | {pool} | {every} | {beside:.3f} | {without:.3f} | {memory:.1f} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
