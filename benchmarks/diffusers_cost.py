"""Time and peak memory of a step of one tiny SDXL: composed, and by `set_adapters` for each adapter in turn, which is
how the published code of Composite does it. Both average the same predictions, conditional and unconditional, of each
LoRA.

    PYTHONPATH=.:benchmarks python benchmarks/diffusers_cost.py [--loras 3 5] [--steps 10]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from measuring import MB, peak, seconds

sys.path.append(str(Path(__file__).parents[1] / "tests" / "diffusers"))

import tiny_pipelines as tiny

from lib_loratorio.hosts.diffusers import composed


@contextmanager
def by_set_adapters(pipe: Any, files: list[Path]) -> Iterator[None]:
    """Within the block each call of the UNet is the average of its calls with each adapter alone."""
    names = [f"adapter_{number}" for number in range(len(files))]
    for name, file in zip(names, files):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    forward = pipe.unet.forward

    def average(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        predictions = []
        for name in names:
            pipe.set_adapters([name], [1.0])
            predictions.append(forward(*args, **{**kwargs, "return_dict": False})[0])
        return (torch.stack(predictions).mean(0),)

    pipe.unet.forward = average
    try:
        yield
    finally:
        del pipe.unet.forward
        pipe.unload_lora_weights()


def sampling(pipe: Any, steps: int) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        size = {"height": tiny.SIZE, "width": tiny.SIZE, "output_type": "latent"}
        return pipe("a cat", num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **size).images

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loras", type=int, nargs="+", default=(3, 5))
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    pipe = tiny.sdxl()
    run = sampling(pipe, options.steps)
    print("| LoRAs | way | a step, ms | peak beside the model, MB | largest difference |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.loras:
            files = [tiny.write_lora(pipe, Path(folder) / f"{number}.safetensors", number) for number in range(count)]
            ways = {"set_adapters": by_set_adapters(pipe, files), "composed": composed(pipe, files, method="composite")}
            expected = None
            for way, block in ways.items():
                with block:
                    found = run()
                    timed = statistics.median(seconds(run) for _ in range(5)) / options.steps
                    memory = peak(run, False)
                expected = found if expected is None else expected
                difference = ((found - expected).abs().max() / expected.abs().max()).item()
                print(f"| {count} | {way} | {timed * 1000:.0f} | {memory / MB:.1f} | {difference:.0e} |", flush=True)


if __name__ == "__main__":
    main()
