"""The Evaluator: which requests share a model call, and what happens when memory runs out."""

import pytest
import torch
from torch import nn

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.row_layout import Block
from lib_loratorio.engine.evaluation import Evaluation, Evaluator
from lib_loratorio.engine.methods import BASE
from lib_loratorio.engine.trees import map_tensors, take_rows

OUT_OF_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory")


class Model:
    """Sums its inputs per row; remembers each call's rows and layout; fails beyond `capacity` rows."""

    def __init__(self, capacity=None, error=OUT_OF_MEMORY):
        self.bank = AdapterBank({"x": nn.Linear(1, 1)}, [{}] * 8, 0)
        self.capacity, self.error = capacity, error
        self.calls, self.failed = [], []

    def __call__(self, inputs):
        x, rest = inputs
        blocks = self.bank.layout.blocks if self.bank.layout else None
        if self.capacity is not None and len(x) > self.capacity:
            self.failed.append(len(x))
            raise self.error
        self.calls.append((len(x), blocks))
        return x + rest["text"].sum((1, 2)).unsqueeze(1)

    @property
    def rows(self):
        return [rows for rows, _ in self.calls]


def request(adapter, rows=2, tokens=3):
    first = 100.0 * (adapter + 2)
    x = torch.arange(rows).unsqueeze(1) + first
    return Evaluation(
        () if adapter == BASE else (adapter,),
        rows,
        (x, {"text": torch.full((rows, tokens, 2), float(tokens)), "name": "same for all"}),
    )


def expected(wanted):
    return [wanted.inputs[0] + 2 * wanted.inputs[1]["text"].shape[1] ** 2 for wanted in wanted]


def check(results, wanted):
    assert len(results) == len(wanted)
    for result, right in zip(results, expected(wanted)):
        assert torch.equal(result, right)


@pytest.mark.parametrize(("limit", "rows"), [(0, [10]), (1, [2, 2, 2, 2, 2]), (2, [4, 4, 2]), (4, [8, 2]), (9, [10])])
def test_limit_is_the_number_of_requests_a_call(limit, rows):
    model = Model()
    wanted = [request(adapter) for adapter in (BASE, 0, 1, 2, 3)]
    check(Evaluator(model, model.bank, limit)(wanted), wanted)
    assert model.rows == rows


def test_the_bank_is_told_whose_rows_they_are():
    model = Model()
    wanted = [request(BASE, 1), request(0, 3), request(4, 2)]
    Evaluator(model, model.bank)(wanted)
    assert model.calls == [(6, (Block((), 1), Block((0,), 3), Block((4,), 2)))]
    assert model.bank.layout is None
    Evaluator(model, model.bank)([request(BASE)])
    assert model.calls[-1] == (2, None)


def test_halves_when_memory_runs_out_and_remembers():
    model = Model(capacity=4)
    evaluator = Evaluator(model, model.bank)
    wanted = [request(adapter) for adapter in (BASE, 0, 1, 2, 3)]
    check(evaluator(wanted), wanted)
    assert model.failed == [10]
    assert model.rows == [4, 4, 2]
    check(evaluator(wanted), wanted)
    assert model.failed == [10], "the next step does not try again what failed"
    assert model.rows == [4, 4, 2] * 2


def test_halves_down_to_one():
    model = Model(capacity=2)
    wanted = [request(adapter) for adapter in range(5)]
    check(Evaluator(model, model.bank)(wanted), wanted)
    assert model.failed == [10, 4]
    assert model.rows == [2] * 5


def test_gives_up_with_the_models_own_error():
    model = Model(capacity=1)
    evaluator = Evaluator(model, model.bank)
    with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
        evaluator([request(adapter) for adapter in range(4)])
    assert raised.value is OUT_OF_MEMORY
    assert model.failed == [8, 4, 2]
    assert model.bank.layout is None


def test_memory_of_the_cpu_counts_too():
    model = Model(
        capacity=2, error=RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    wanted = [request(0), request(1)]
    check(Evaluator(model, model.bank)(wanted), wanted)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("something else")]
)
def test_other_errors_are_not_tried_again(error):
    model = Model(capacity=2, error=error)
    with pytest.raises(type(error)) as raised:
        Evaluator(model, model.bank)([request(0), request(1)])
    assert raised.value is error
    assert model.failed == [4]


def test_inputs_of_unequal_length_run_apart_and_return_in_order():
    model = Model()
    wanted = [request(BASE, 2, 3), request(0, 2, 6), request(1, 3, 3), request(2, 1, 6), request(3, 2, 9)]
    check(Evaluator(model, model.bank)(wanted), wanted)
    assert model.calls == [
        (5, (Block((), 2), Block((1,), 3))),
        (3, (Block((0,), 2), Block((2,), 1))),
        (2, (Block((3,), 2),)),
    ]


def test_trees():
    x = torch.arange(6.0).reshape(3, 2)
    tree = (x, [x + 10, {"a": x + 20, "b": "text"}], None, 5)
    taken = take_rows(tree, slice(1, 3))
    assert isinstance(taken, tuple) and isinstance(taken[1], list) and isinstance(taken[1][1], dict)
    assert torch.equal(taken[0], x[1:])
    assert torch.equal(taken[1][0], x[1:] + 10)
    assert torch.equal(taken[1][1]["a"], x[1:] + 20)
    assert taken[1][1]["b"] == "text" and taken[2:] == (None, 5)
    assert torch.equal(tree[0], x) and len(tree[1][0]) == 3, "the tree itself stays"

    summed = map_tensors(lambda a, b: a + b, {"a": [x], "n": 1}, {"a": [x * 10], "n": 2})
    assert torch.equal(summed["a"][0], x * 11)
    assert summed["n"] == 1


def test_rows_taken_share_memory():
    x = torch.zeros(4, 2)
    take_rows([x], slice(1, 3))[0].fill_(1)
    assert x.sum(1).tolist() == [0, 2, 2, 0]
