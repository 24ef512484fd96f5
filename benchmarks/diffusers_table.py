"""How exact composed calls of diffusers' pipelines are: a table of pipelines, schedulers and kinds of LoRAs.

Tiny random models of the real layouts, three LoRAs (with text encoders, with convolutions, with a negative strength),
two pictures. The error is the largest of every composed call, relative to the call's largest value, against a
calculation in float64 that evaluates one LoRA at a time by diffusers' own loading and has the method's equations in
numpy; of other kinds, whose weights diffusers does not know, that of the latents after the sampling, against weights
changed by the kind's equation in float64. Restored are the bytes of all weights that are afterwards what they were, and
the picture without composing is compared as well.

    PYTHONPATH=. python benchmarks/diffusers_table.py [--only FLUX]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "tests" / "diffusers"))

import kinds
import pipelines
import single_adapters
import tiny_pipelines as tiny

from lib_loratorio.hosts.diffusers import composed
from lib_loratorio.settings import Settings

SETTINGS = Settings(patch_size=2, temperature=0.05, lam=0.3)

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}


def state(pipe: Any) -> dict[str, bytes]:
    """The bytes of all weights."""
    return {
        f"{part}.{name}": value.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes()
        for part, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
        for name, value in model.state_dict().items()
    }


def restored(before: dict[str, bytes], after: dict[str, bytes]) -> str:
    same = sum(len(value) for name, value in before.items() if after.get(name) == value)
    of_all = sum(map(len, before.values()))
    return f"all {of_all:,}" if same == of_all and before.keys() == after.keys() else f"{same:,} of {of_all:,}"


def of_pipeline(name: str, case: pipelines.Case, folder: Path) -> str:
    """A pipeline's row of the table."""
    pipe = case.make()
    loras = pipelines.write_loras(pipe, folder)
    before, ordinary = state(pipe), pipelines.called(pipe, case)
    error, composition, _, _ = single_adapters.largest_error(
        pipe,
        loras,
        SETTINGS,
        lambda pipe: pipelines.called(pipe, case),
        pipelines.PROMPTS,
        pipelines.NEGATIVES,
        case.guided,
    )
    back = restored(before, state(pipe))
    same = "identical" if torch.equal(pipelines.called(pipe, case), ordinary) else "DIFFERENT"
    rows = composition.evaluations / composition.calls / len(pipelines.PROMPTS)
    scheduler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
    return f"| {name} | {scheduler} | {error:.1e} | {rows:g} | {back} | {same} |"


def of_kind(kind: str, folder: Path) -> str:
    """A kind's row of the table."""
    pipe = tiny.sd()
    strength, _, ends = kinds.EQUATIONS[kind]
    path, of_layers = kinds.written(pipe, folder, kind, ends)
    before, ordinary = state(pipe), kinds.latents(pipe)
    expected = kinds.expected(pipe, of_layers, kind)
    with composed(pipe, (path, strength), lam=0) as composition:
        found = kinds.latents(pipe)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    same = "identical" if torch.equal(kinds.latents(pipe), ordinary) else "DIFFERENT"
    rows = composition.evaluations / composition.calls
    return f"| {kind} | DDIM | {error:.1e} | {rows:g} | {restored(before, state(pipe))} | {same} |"


def rows(only: str) -> Iterator[Callable[[Path], str]]:
    """What makes the rows whose names have this text."""
    for name, case in pipelines.CASES.items():
        if only in name:
            yield lambda folder, name=name, case=case: of_pipeline(name, case, folder)
    for label, (scheduler, changes) in SCHEDULERS.items():
        for name, prediction in (("SD 1.x", "epsilon"), ("SD 2.x (v)", "v_prediction")):
            if only in f"{name}, {label}":
                make = pipelines.scheduled(lambda prediction=prediction: tiny.sd(prediction), scheduler, **changes)
                yield lambda folder, name=f"{name}, {label}", make=make: of_pipeline(name, pipelines.Case(make), folder)
    for kind in kinds.EQUATIONS:
        if only in kind:
            yield lambda folder, kind=kind: of_kind(kind, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names have this text")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    print("| pipeline or kind | scheduler | largest error | rows a step | bytes restored | ordinary picture |")
    print("|---|---|---|---|---|---|")
    for number, row in enumerate(rows(options.only)):
        with tempfile.TemporaryDirectory(prefix=f"row{number}_") as folder:
            print(row(Path(folder)), flush=True)


if __name__ == "__main__":
    main()
