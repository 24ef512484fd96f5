"""Peak memory of one composed step with pools of LoRAs, on a UNet of Stable Diffusion 1.5's size with random weights.

The factors lie in host memory, as WebUIs keep them; what counts is what the step takes on the device: the model, its
activations, and the factors that are brought there. On CUDA the allocator's own peak and a step's time with and without
the transfer beside the computation; on the CPU, where nothing is brought ahead of its call, the peak that torch's
profiler sees.

    PYTHONPATH=. python benchmarks/pool_memory.py --pools 8 64 --rank 32 --size 512
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel
from torch.profiler import ProfilerActivity, profile

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.engine.evaluation import Evaluator
from lib_loratorio.engine.methods import METHODS
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Step
from lib_loratorio.engine.sampler_call import UNCONDITIONAL, SamplerCall
from lib_loratorio.settings import Settings

MB = 1e6


def unet(device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """A UNet of Stable Diffusion 1.5's size with random weights: diffusers' defaults but for the text's width."""
    with torch.device(device):
        return UNet2DConditionModel(cross_attention_dim=768).to(dtype).eval()


def lora(layers: dict[str, torch.nn.Module], rank: int, dtype: torch.dtype) -> dict[str, LowRank]:
    """Random factors for each layer, in host memory: down `[rank, in, ...]`, up `[out, rank]`."""
    deltas = {}
    for name, layer in layers.items():
        outputs, inputs, *kernel = layer.weight.shape
        down, up = torch.randn(rank, inputs, *kernel) / inputs, torch.randn(outputs, rank)
        deltas[name] = LowRank(down.to(dtype), up.to(dtype), 0.1)
    return deltas


def size_of(deltas: dict[str, LowRank]) -> int:
    """Bytes that the factors of one LoRA take."""
    return sum(tensor.numel() * tensor.element_size() for delta in deltas.values() for tensor in (delta.down, delta.up))


@torch.no_grad()
def step(model: UNet2DConditionModel, bank: AdapterBank, count: int, size: int) -> None:
    """One sampler call of a picture of `size` pixels along its edge, for which `count` LoRAs compete, two in each
    place.
    """
    method = METHODS["loratorio"](Settings(enabled=True, top_k=2))
    own = {"device": model.device, "dtype": model.dtype}
    latent, text = torch.randn(2, 4, size // 8, size // 8, **own), torch.randn(2, 77, 768, **own)
    evaluator = Evaluator(lambda rows: model(rows[0], 500, rows[1]).sample, bank)
    image_of = torch.zeros(1, dtype=torch.long, device=model.device)
    runner = SimpleNamespace(apart=False, predict=evaluator, verify=lambda *_: None)
    call = SamplerCall(Step(method, method.plan(range(count), 0)), image_of, runner)
    call.evaluate([0, UNCONDITIONAL], lambda number, rows: (latent[rows], text[rows]))
    method.combine(call.predictions(NoiseSpace.noise()))


def peak(run: Callable[[], None], cuda: bool) -> int:
    """Bytes that `run()` has on the device at its peak, beside what was there before."""
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return max(accumulate(size for _, size in events))


def seconds(run: Callable[[], None]) -> float:
    """How long `run()` takes, on the GPU too."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=(8, 64))
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--size", type=int, default=512, help="edge of the picture in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    cuda = options.device == "cuda"
    dtype = torch.float16 if cuda else torch.float32
    model = unet(options.device, dtype)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if "attentions" in name and isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    }
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loras = [lora(layers, options.rank, torch.float16) for _ in range(max(options.pools))]
    print(
        f"torch {torch.__version__}, {options.device}, {dtype}: model {weights / MB:.0f} MB, "
        f"each LoRA of rank {options.rank} {size_of(loras[0]) / MB:.0f} MB in host memory"
    )
    for count in options.pools:
        bank = AdapterBank(layers, loras[:count], budget=0)

        def run() -> None:
            step(model, bank, count, options.size)  # noqa: B023

        with bank.attached():
            beside = peak(run, cuda)
            timed = ""
            if cuda:
                overlapped = min(seconds(run) for _ in range(3))
                bank.prefetch = lambda adapters: None
                timed = (
                    f"; a step {overlapped:.2f} s, {min(seconds(run) for _ in range(3)):.2f} s without the transfer "
                    "beside the computation"
                )
        print(
            f"{options.size} px, pool of {count}: peak {(weights + beside) / MB:.0f} MB, {beside / MB:.0f} of "
            f"them beside the model{timed}"
        )


if __name__ == "__main__":
    main()
