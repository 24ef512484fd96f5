"""Time of one sampling step of a UNet with random weights, by how LoRAs are evaluated: medians of runs in alternation.

    PYTHONPATH=.:benchmarks python benchmarks/step_cost.py [--model sd15] [--kinds attention-16 ...] [--loras 1 3 5]
        [--sizes 128 256] [--repeats 7]

"plain" is a step without LoRAs: a prompt's row and a negative prompt's. "rows" has as many rows without LoRAs as the
composed step has with them. "composed" evaluates each LoRA alone (lambda 1: N + 2 rows; 2 with one LoRA); "every 3rd"
does so in every third step, and is the mean over three. "weight swap" merges each LoRA into the weights and takes it
out again, and "set_adapters" switches among peft's adapters, each with one row a call. Columns are multiples of
"plain"; "a row" is composed / rows, by pair.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel
from measuring import seconds
from peft import LoraConfig
from torch import nn

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.engine.evaluation import Evaluator
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.planner import Planner
from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.engine.sampler_call import UNCONDITIONAL, SamplerCall
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.tag import LOCAL
from lib_loratorio.settings import Settings

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
KINDS = {"attention-16": (True, 16), "attention-128": (True, 128), "every-32": (False, 32), "dense": (True, 0)}
"""Whether a LoRA changes the attention's layers only, and its rank; 0 is a delta of the layers' full shape."""

EVERY = 3
MODELS = {
    "sd15": {"cross_attention_dim": 768},
    "sdxl": {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
    },
    "tiny": {
        "cross_attention_dim": 16,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    },
}
"""UNets of diffusers in the shapes of these models; SDXL without its additional embeddings, which cost next to nothing.
"""


def unet(name: str, device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    torch.manual_seed(0)
    with torch.device(device):
        return UNet2DConditionModel(**MODELS[name]).to(dtype).eval()


def layers_of(model: nn.Module, attention_only: bool) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and (not attention_only or name.endswith(ATTENTION))
    }


def lora(layers: Mapping[str, nn.Module], rank: int, dtype: torch.dtype) -> dict[str, LowRank]:
    """Random factors for each layer, in host memory: down `[rank, in, ...]`, up `[out, rank]`."""
    deltas = {}
    for name, layer in layers.items():
        outputs, inputs, *kernel = layer.weight.shape
        down, up = torch.randn(rank, inputs, *kernel) / inputs, torch.randn(outputs, rank)
        deltas[name] = LowRank(down.to(dtype), up.to(dtype), 0.1)
    return deltas


def adapter_of(layers: Mapping[str, nn.Module], rank: int, dtype: torch.dtype) -> dict[str, LowRank | Dense]:
    """Random deltas of these layers."""
    if rank:
        return lora(layers, rank, dtype)

    def dense(layer: nn.Module) -> Dense:
        delta = torch.randn_like(layer.weight) * 1e-3
        return Dense(lambda: (delta, None))

    return {name: dense(layer) for name, layer in layers.items()}


class Step:
    """One picture's sampling steps on a model.

    rows: evaluated so far. prediction: the last step's composed one, conditional.
    """

    def __init__(self, model: UNet2DConditionModel, size: int):
        self.model, self.rows, self.prediction = model, 0, None
        own = {"device": model.device, "dtype": model.dtype}
        generator = torch.Generator(model.device).manual_seed(1)
        self.latent = torch.randn(1, 4, size // 8, size // 8, generator=generator, **own)
        self.text = torch.randn(2, 77, model.config.cross_attention_dim, generator=generator, **own)

    def run(self, rows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.rows += len(rows[0])
        return self.model(rows[0], 500, rows[1]).sample

    @torch.no_grad()
    def plain(self, rows: int = 2) -> torch.Tensor:
        return self.run((self.latent.expand(rows, -1, -1, -1), self.text[:1].expand(rows, -1, -1)))

    def planner(self, settings: Settings, count: int) -> Planner:
        adapters = [Adapter(str(n), "", 1.0, 1.0, False, True, None) for n in range(count)]
        return Planner(settings, adapters)

    @torch.no_grad()
    def composed(self, planner: Planner, bank: AdapterBank, step: int) -> None:
        """The step of this number, by the engine."""
        planned = planner.step(0.0, step)
        image_of = torch.zeros(1, dtype=torch.long, device=self.model.device)
        runner = SimpleNamespace(apart=False, predict=Evaluator(self.run, bank), verify=lambda *_: None)
        call = SamplerCall(planned, image_of, runner)
        latent = self.latent.expand(2, -1, -1, -1)
        call.evaluate([0, UNCONDITIONAL], lambda model, rows: (latent[rows], self.text[rows]))
        composed = planned.method.combine(call.predictions(NoiseSpace.noise()))
        planner.learn([n for n in call.adapters if n in planner.competing], composed)
        self.prediction = composed.conditional

    @torch.no_grad()
    def swapped(self, layers: Mapping[str, nn.Module], adapters: list[dict]) -> None:
        """Each adapter merged into the weights for a row of its own, after the base's two."""
        self.plain()
        for deltas in adapters:
            before = {name: layers[name].weight.data for name in deltas}
            for name, delta in deltas.items():
                weight = layers[name].weight
                if isinstance(delta, LowRank):
                    down, up = (part.to(weight) for part in (delta.down, delta.up))
                    changed = (up @ down.flatten(1)).reshape(weight.shape) * delta.scale
                else:
                    changed = delta.compute()[0]
                weight.data = weight.data + changed
            self.plain(1)
            for name, weight in before.items():
                layers[name].weight.data = weight

    @torch.no_grad()
    def switched(self, count: int) -> None:
        """peft's adapters, one row of each after the base's two."""
        self.model.disable_adapters()
        self.plain()
        self.model.enable_adapters()
        for number in range(count):
            self.model.set_adapters([f"lora{number}"])
            self.plain(1)


@contextmanager
def in_peft(model: UNet2DConditionModel, layers: Mapping[str, nn.Module], rank: int, count: int) -> Iterator[None]:
    """Within the block the model has so many of peft's LoRAs, with random factors."""
    for number in range(count):
        model.add_adapter(LoraConfig(r=rank, target_modules=list(layers), init_lora_weights=False), f"lora{number}")
    try:
        yield
    finally:
        model.unload_lora()


def alternated(ways: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that does not count."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(repeats + 1):
        for way, run in ways.items():
            taken = seconds(run)
            if number:
                found[way].append(taken)
    return found


def measure(model: UNet2DConditionModel, kind: str, count: int, size: int, repeats: int) -> dict[str, float]:
    """Medians, in multiples of a plain step; `a row` is composed / rows; `plain ms` is the step's time."""
    attention_only, rank = KINDS[kind]
    layers = layers_of(model, attention_only)
    adapters = [adapter_of(layers, rank, model.dtype) for _ in range(count)]
    bank, step = AdapterBank(layers, adapters, 2**40), Step(model, size)
    alone = step.planner(Settings(lam=1.0), count)
    every = step.planner(Settings(lam=1.0, refresh_every=EVERY), count)

    def by_bank(planner: Planner, steps: int) -> Callable[[], None]:
        def run() -> None:
            with bank.attached():
                for number in range(steps):
                    step.composed(planner, bank, number)

        return run

    rows = int(evaluations_per_step(Settings(lam=1.0), [LOCAL] * count))
    ways = {
        "plain": step.plain,
        "rows": lambda: step.plain(rows),
        "composed": by_bank(alone, 1),
        "every 3rd": by_bank(every, EVERY),
        "weight swap": lambda: step.swapped(layers, adapters),
    }
    found = alternated(ways, repeats)
    if rank:
        with in_peft(model, layers, rank, count):
            again = alternated({"plain": step.plain, "set_adapters": lambda: step.switched(count)}, repeats)
        # With peft's layers in place a plain step has them switched on: the time is set against the one without.
        found["set_adapters"] = again["set_adapters"]
    plain = statistics.median(found["plain"])
    result = {way: statistics.median(taken) / plain for way, taken in found.items()}
    result["every 3rd"] /= EVERY
    result["a row"] = statistics.median(one / other for one, other in zip(found["composed"], found["rows"]))
    return {**result, "plain ms": plain * 1000}


COLUMNS = ("rows", "composed", "a row", "every 3rd", "weight swap", "set_adapters")


def table(model: UNet2DConditionModel, kinds: list[str], loras: list[int], sizes: list[int], repeats: int) -> None:
    print(f"| LoRAs | N | px | plain, ms | {' | '.join(COLUMNS)} |")
    print("|---|" + "---|" * (len(COLUMNS) + 3))
    for kind in kinds:
        for count in loras:
            for size in sizes:
                found = measure(model, kind, count, size, repeats)
                cells = (f"{found[column]:.2f}" if column in found else "" for column in COLUMNS)
                print(f"| {kind} | {count} | {size} | {found['plain ms']:.1f} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="sd15")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--loras", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    print(f"torch {torch.__version__}, {options.device}, {dtype}, shape of {options.model}, random weights\n")
    table(unet(options.model, options.device, dtype), options.kinds, options.loras, options.sizes, options.repeats)


if __name__ == "__main__":
    main()
