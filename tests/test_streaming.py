"""Factors of many adapters: on the device for the calls that need them only, and on their way ahead where a device can
do both.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lib_loratorio.deltas import bank as bank_module
from lib_loratorio.deltas.bank import RESIDENT, AdapterBank
from lib_loratorio.deltas.low_rank import LowRank, LowRankLayer
from lib_loratorio.engine.evaluation import AT_A_TIME, Evaluation, Evaluator

COUNT = 3 * AT_A_TIME + 2


class Model(nn.Module):
    """Two layers; `calls` holds, for each call, the adapters whose factors are there while it computes, by layer."""

    def __init__(self, bank_of):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.bank = bank_of({"first": self.first, "second": self.second})
        self.calls = []

    def forward(self, x):
        output = self.second(torch.relu(self.first(x)))
        self.calls.append(
            [
                sorted(adapter for stack in rows.low_rank.stacks.values() for adapter in stack.adapters)
                for _, rows in self.bank._layers
            ]
        )
        return output


@pytest.fixture
def factors():
    """Per adapter its deltas; the last one touches the second layer only."""
    torch.manual_seed(0)
    every = [
        {
            "first": LowRank(torch.randn(2, 4), torch.randn(5, 2)),
            "second": LowRank(torch.randn(2, 5), torch.randn(3, 2)),
        }
        for _ in range(COUNT)
    ]
    del every[-1]["first"]
    return every


def model_of(factors, numbers):
    torch.manual_seed(1)
    return Model(lambda layers: AdapterBank(layers, [factors[number] for number in numbers], 0))


def requests(x, numbers):
    return [Evaluation((), 1, x), *(Evaluation((number,), 1, x) for number in numbers)]


@torch.no_grad()
def evaluated(model, numbers, x):
    with model.bank.attached():
        return Evaluator(model, model.bank)(requests(x, numbers))


@torch.no_grad()
def one_by_one(factors, x):
    """The base's prediction and each adapter's, of banks that hold one adapter."""
    base = evaluated(model_of(factors, [0]), [], x)
    return base + [evaluated(model_of(factors, [number]), [0], x)[1] for number in range(COUNT)]


def test_a_large_bank_has_the_factors_of_one_call_at_a_time(factors):
    x = torch.randn(1, 4)
    model = model_of(factors, range(COUNT))
    predictions = evaluated(model, range(COUNT), x)
    assert torch.stack(predictions).allclose(torch.stack(one_by_one(factors, x)), atol=1e-6)
    assert len(model.calls) > 1 and max(len(adapters) for call in model.calls for adapters in call) == AT_A_TIME
    assert sorted(member for call in model.calls for member in call[1]) == list(range(COUNT))


def test_a_bank_that_stays_is_evaluated_at_once(factors):
    model = model_of(factors, range(RESIDENT))
    evaluated(model, range(RESIDENT), torch.randn(1, 4))
    assert model.calls == [[list(range(RESIDENT))] * 2]


def test_all_of_a_large_bank_in_one_row_are_brought_a_group_at_a_time(factors, monkeypatch):
    """As the merged model has them; it shares its call with others."""
    made, make = [], LowRankLayer._stacked

    def stacked(self, adapters, *placed):
        made.append(sum(len(stack.adapters) for stack in self.stacks.values()) + len(adapters))
        return make(self, adapters, *placed)

    monkeypatch.setattr(LowRankLayer, "_stacked", stacked)
    x = torch.randn(1, 4)
    model = model_of(factors, range(COUNT))
    with torch.no_grad(), model.bank.attached():
        everyone = Evaluation(tuple(range(COUNT)), 1, x)
        base, merged, *alone = Evaluator(model, model.bank)(
            [Evaluation((), 1, x), everyone, *requests(x, range(COUNT))[1:]]
        )
    assert max(made) == RESIDENT
    assert all(not stacks for call in model.calls[-1:] for stacks in call)
    for name, layer in (("first", model.first), ("second", model.second)):
        deltas = [of[name] for of in factors if name in of]
        with torch.no_grad():
            layer.weight += sum(delta.up @ delta.down for delta in deltas)
    torch.testing.assert_close(merged, model(x), rtol=1e-5, atol=1e-5)
    assert torch.stack([base, *alone]).allclose(torch.stack(one_by_one(factors, x)), atol=1e-6)


class Beside:
    """In place of a CUDA stream: what is made within `work`, and the tensors of each `join`."""

    def __init__(self):
        self.working, self.joined = False, []

    @contextmanager
    def work(self):
        self.working = True
        try:
            yield
        finally:
            self.working = False

    def join(self, tensors):
        self.joined.append(list(tensors))


def test_the_next_calls_factors_are_brought_beside_the_computation(factors, monkeypatch):
    beside, made = Beside(), []
    make = LowRankLayer._stacked

    def stacked(self, adapters, *placed):
        made.append((beside.working, adapters))
        return make(self, adapters, *placed)

    monkeypatch.setattr(bank_module, "side_stream", lambda device: beside)
    monkeypatch.setattr(LowRankLayer, "_stacked", stacked)
    x = torch.randn(1, 4)
    model = model_of(factors, range(COUNT))
    predictions = evaluated(model, range(COUNT), x)
    assert torch.stack(predictions).allclose(torch.stack(one_by_one(factors, x)), atol=1e-6)

    last = tuple(range(COUNT - AT_A_TIME, COUNT))
    assert [adapters for working, adapters in made if not working][:2] == [
        last,
        last,
    ]  # the first call's, one for each layer
    # Each later call finds what it needs, and what it waits for is what it computes with.
    assert len(model.calls) == 4 and len(beside.joined) == 3
    assert [len(tensors) for tensors in beside.joined] == [4, 4, 4]
    assert all(working for working, adapters in made[2:8]) and len(made[2:8]) == 6
    assert max(len(adapters) for call in model.calls for adapters in call) == AT_A_TIME


@pytest.mark.parametrize("limit", [0, 2])
def test_few_adapters_of_a_large_bank_stay_over_the_steps(factors, monkeypatch, limit):
    """As between a pool's scoutings."""
    made, few = [], (1, 3, 5, 6, 7)
    make = LowRankLayer._stacked
    monkeypatch.setattr(LowRankLayer, "_stacked", lambda self, *args: made.append(args[0]) or make(self, *args))
    x, model = torch.randn(1, 4), model_of(factors, range(COUNT))
    with torch.no_grad(), model.bank.attached():
        evaluator = Evaluator(model, model.bank, limit)
        for _ in range(3):
            predictions = evaluator(requests(x, few))
    assert made == [few] * 2 and len(model.calls) == (9 if limit else 3)
    expected = one_by_one(factors, x)
    assert torch.stack(predictions).allclose(
        torch.stack([expected[0], *(expected[1 + number] for number in few)]), atol=1e-6
    )


@pytest.mark.parametrize("limit, calls", [(0, 4), (1, COUNT + 1)])
def test_calls_go_on_where_memory_is_too_short_to_fetch_ahead(factors, monkeypatch, limit, calls):
    beside, make = Beside(), LowRankLayer._stacked

    def stacked(self, *args):
        if beside.working:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return make(self, *args)

    monkeypatch.setattr(bank_module, "side_stream", lambda device: beside)
    monkeypatch.setattr(LowRankLayer, "_stacked", stacked)
    x, model = torch.randn(1, 4), model_of(factors, range(COUNT))
    with torch.no_grad(), model.bank.attached():
        evaluator = Evaluator(model, model.bank, limit)
        predictions = evaluator(requests(x, range(COUNT)))
    assert len(model.calls) == calls and evaluator.limit == limit
    assert torch.stack(predictions).allclose(torch.stack(one_by_one(factors, x)), atol=1e-6)


def test_a_call_with_the_same_adapters_keeps_their_factors(factors, monkeypatch):
    made = []
    make = LowRankLayer._stacked
    monkeypatch.setattr(LowRankLayer, "_stacked", lambda self, *args: made.append(args[0]) or make(self, *args))
    model = model_of(factors, range(COUNT))
    with torch.no_grad(), model.bank.attached():
        evaluator = Evaluator(model, model.bank)
        for _ in range(3):
            evaluator(requests(torch.randn(1, 4), (1, 3)))
    assert made == [(1, 3)] * 2
