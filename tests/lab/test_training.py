"""The training loop, on a module of six weights."""

from dataclasses import replace

import pytest
import torch

from lab.training import Stage, Training

STAGE = Stage(steps=50, batch=4, rate=1e-2, scenes=0, seed=3)


def _trained(scratch, stage=STAGE):
    """A training that has reached the stage's last step, and its module."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)
    training = Training("stage", stage, {"only": module}, scratch, averaged=True)

    def loss_at(generator):
        return (module(torch.randn(4, 2, generator=generator)) - 1).square().mean()

    training.run(loss_at)
    return training, module


def test_a_stage_that_was_done_is_not_trained_again(tmp_path):
    training, module = _trained(tmp_path)
    table = training.table.read_text()
    assert [row.split(",")[0] for row in table.splitlines()] == ["step", "20", "40", "50"]
    again, other = _trained(tmp_path)
    assert again.step == 50 and again.table.read_text() == table
    assert torch.equal(module.weight, other.weight)


def test_an_interrupted_stage_goes_on_from_its_checkpoint_on_the_same_data(tmp_path):
    class InterruptionError(Exception):
        pass

    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    whole.mkdir()
    interrupted.mkdir()
    training, module = _trained(whole)

    torch.manual_seed(0)
    first = torch.nn.Linear(2, 2)
    begun = Training("stage", STAGE, {"only": first}, interrupted, averaged=True)

    def loss_at(generator):
        if begun.step == 30:
            begun._save()
        if begun.step == 45:
            raise InterruptionError
        return (first(torch.randn(4, 2, generator=generator)) - 1).square().mean()

    with pytest.raises(InterruptionError):
        begun.run(loss_at)
    assert [row.split(",")[0] for row in begun.table.read_text().splitlines()] == ["step", "20", "40"]

    resumed, second = _trained(interrupted)
    assert torch.equal(second.weight, module.weight) and not torch.equal(second.weight, first.weight)
    assert torch.equal(resumed.average["only"]["weight"], training.average["only"]["weight"])
    assert [row.split(",")[0] for row in resumed.table.read_text().splitlines()] == ["step", "20", "40", "50"]


def test_the_average_lags_behind_the_weights(tmp_path):
    training, module = _trained(tmp_path, replace(STAGE, steps=5))
    assert training.average["only"]["weight"].shape == module.weight.shape
    assert not torch.equal(training.average["only"]["weight"], module.weight)
