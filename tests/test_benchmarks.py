"""The benchmarks in small: what they count is checked, not what they time."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import pool_memory
import step_cost


def rows_of(text, title):
    """The rows of a table below a title, as lists of cells without the header."""
    table = text.partition(title)[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_step_cost(capsys):
    arguments = ["--model", "tiny", "--loras", "2", "--sizes", "32", "--repeats", "1", "--device", "cpu"]
    step_cost.main(arguments)
    rows = rows_of(capsys.readouterr().out, "random weights")
    assert [row[:3] for row in rows] == [[kind, "2", "32"] for kind in step_cost.KINDS]
    assert all(float(cell) > 0 for row in rows for cell in row[3:9])
    assert [row[9] == "" for row in rows] == [False, False, False, True]  # peft has no dense kind


def test_steps_evaluate_what_they_say():
    model = step_cost.unet("tiny", "cpu", step_cost.torch.float32)
    layers = step_cost.layers_of(model, True)
    adapters = [step_cost.adapter_of(layers, 4, model.dtype) for _ in range(3)]
    bank, step = step_cost.AdapterBank(layers, adapters, 2**30), step_cost.Step(model, 32)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    planner = step.planner(step_cost.Settings(lam=1.0, refresh_every=3), 3)
    evaluated = []
    with bank.attached():
        for number in range(4):
            step.rows = 0
            step.composed(planner, bank, number)
            evaluated.append(step.rows)
    assert evaluated == [6, 2, 2, 6]
    step.rows = 0
    step.swapped(layers, adapters)
    assert step.rows == 5 and all(step_cost.torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    with step_cost.in_peft(model, layers, 4, 3):
        step.rows = 0
        step.switched(3)
    assert step.rows == 5 and step_cost.layers_of(model, True).keys() == layers.keys()


def test_gpu_in_small(capsys):
    gpu.main(["--small"])
    text = capsys.readouterr().out
    assert [row[0] for row in rows_of(text, "## A step")] == ["attention-16", "every-32"]
    errors = {row[1]: [float(cell) for cell in row[2:]] for row in rows_of(text, "## Largest relative error")}
    assert 0 < errors["fp16"][0] < 5e-3 and 0 < errors["bf16"][0] < 5e-2
    pictures = {row[1]: row for row in rows_of(text, "## A picture")}
    # Four steps with three LoRAs: alone in every step, in every second, in the first and the last.
    assert {name: int(row[3]) for name, row in pictures.items()} == {
        "merge": 8,
        "quality": 20,
        "balanced": 16,
        "fast": 16,
        "paper": 32,
    }
    assert all(float(row[4]) > 0 for row in pictures.values())
    assert [row[1:3] for row in rows_of(text, "## A pool")] == [["2", "1"], ["2", "3"], ["12", "1"], ["12", "3"]]


def test_a_large_pool_takes_no_more_than_a_small_one(capsys):
    """Of 16 LoRAs fewer factors are on the device at a time than 8 have, in steps between as well."""
    arguments = ["--model", "tiny", "--rank", "16", "--size", "32", "--device", "cpu"]
    pool_memory.main([*arguments, "--pools", "8", "16", "--every", "3"])
    lines = capsys.readouterr().out.splitlines()
    each = float(lines[0].partition("rank 16 ")[2].split()[0])
    small, large = (float(line.rpartition(" MB, ")[2].split()[0]) for line in lines[1:])
    assert large < small + 4 * each
