"""Peak memory of composed steps with pools of LoRAs, on a UNet of Stable Diffusion 1.5's size with random weights.

The factors lie in host memory, as WebUIs keep them; what counts is what a step takes on the device: the model, its
activations, and the factors that are brought there. On CUDA the allocator's own peak and a step's time with and without
the transfer beside the computation; on the CPU, where nothing is brought ahead of its call, the peak that torch's
profiler sees. `--every` is the setting `refresh_every`: the steps between have one row with all LoRAs.

    PYTHONPATH=.:benchmarks python benchmarks/pool_memory.py --pools 8 64 --rank 32 --size 512 --every 1 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from measuring import MB, peak, seconds
from step_cost import MODELS, Step, adapter_of, unet

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.settings import Settings


def size_of(deltas: Mapping[str, LowRank]) -> int:
    """Bytes that the factors of one LoRA take."""
    return sum(tensor.numel() * tensor.element_size() for delta in deltas.values() for tensor in (delta.down, delta.up))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="sd15")
    parser.add_argument("--pools", type=int, nargs="+", default=(8, 64))
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--size", type=int, default=512, help="edge of the picture in pixels")
    parser.add_argument("--every", type=int, nargs="+", default=(1, 3), help="each LoRA alone every so many steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    cuda = options.device == "cuda"
    dtype = torch.float16 if cuda else torch.float32
    model = unet(options.model, options.device, dtype)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if "attentions" in name and isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    }
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loras = [adapter_of(layers, options.rank, torch.float16) for _ in range(max(options.pools))]
    print(
        f"torch {torch.__version__}, {options.device}, {dtype}: model {weights / MB:.0f} MB, "
        f"each LoRA of rank {options.rank} {size_of(loras[0]) / MB:.1f} MB in host memory"
    )
    for count in options.pools:
        for every in options.every:
            bank, step = AdapterBank(layers, loras[:count], budget=0), Step(model, options.size)

            def run() -> None:
                planner = step.planner(Settings(lam=1.0, top_k=2, refresh_every=every), count)  # noqa: B023
                for number in range(every):  # noqa: B023
                    step.composed(planner, bank, number)  # noqa: B023

            with bank.attached():
                beside = peak(run, cuda)
                timed = ""
                if cuda:
                    overlapped = min(seconds(run) for _ in range(3)) / every
                    bank.prefetch = lambda adapters: None
                    without = min(seconds(run) for _ in range(3)) / every
                    timed = f"; a step {overlapped:.2f} s, {without:.2f} s without the transfer beside the computation"
            print(
                f"{options.size} px, pool of {count}, each alone every {every}: peak {(weights + beside) / MB:.1f} MB, "
                f"{beside / MB:.1f} of them beside the model{timed}",
                flush=True,
            )


if __name__ == "__main__":
    main()
