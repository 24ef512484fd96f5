"""The AdapterBank: a batch's rows, each with its own adapter, against forwards with weights merged by hand."""

import copy
from types import SimpleNamespace

import pytest
import standin
import torch
import torch.nn.functional as F
from standin.weights import KINDS, RANK, random_weights
from torch import nn

from lib_loratorio.deltas.bank import AdapterBank, RowsError
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.factors import Factors
from lib_loratorio.deltas.layers import weight_shape
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank
from lib_loratorio.deltas.row_layout import Block, Layout, Run
from lib_loratorio.engine.methods import BASE

BUDGET = 2**20
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
LAYERS = {
    "linear": lambda: (nn.Linear(6, 8), (5, 6)),
    "conv1": lambda: (nn.Conv2d(6, 8, 1), (6, 4, 5)),
    "conv3": lambda: (nn.Conv2d(6, 8, 3, padding=1), (6, 5, 6)),
    "conv3_stride2": lambda: (nn.Conv2d(6, 8, 3, stride=2, padding=1), (6, 5, 6)),
    "conv1_stride2": lambda: (nn.Conv2d(6, 8, 1, stride=2), (6, 5, 6)),
    "circular": lambda: (nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (6, 5, 6)),
    "group_norm": lambda: (nn.GroupNorm(2, 8), (8, 4, 5)),
    "layer_norm": lambda: (nn.LayerNorm(8), (5, 8)),
    "inpainting": lambda: (nn.Conv2d(9, 8, 3, padding=1), (9, 5, 6)),
}
KINDS_OF = {
    "linear": KINDS["linear"],
    "conv1": KINDS["conv1"],
    "conv3": KINDS["conv3"],
    "conv3_stride2": KINDS["conv3"],
    "conv1_stride2": ("lora", "dora"),
    "circular": ("lora", "mid", "full_bias"),
    "group_norm": KINDS["norm"],
    "layer_norm": KINDS["norm"],
    "inpainting": ("lora", "mid", "lokr_4", "full_4"),
}
EVERY_KIND = [(name, kind) for name, kinds in KINDS_OF.items() for kind in kinds]


@pytest.fixture(scope="module")
def host():
    with standin.installed() as host:
        yield host


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def make_layer(name, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer, shape = LAYERS[name]()
        return layer.to(dtype).requires_grad_(False), shape


def merge_by_hand(kind, w, weight, strength, dyn=None):
    """`(weight delta, bias delta)` of one network, written out from the definition of its kind."""
    flat = weight.reshape(weight.shape[0], -1)
    scale = 0.75 if "alpha" in w and kind != "glora" else 1.0
    bias = None
    if kind in ("lora", "dyn", "lora_bias", "dora"):
        up, down = w["lora_up.weight"].flatten(1), w["lora_down.weight"].flatten(1)
        kept = up.shape[1] if dyn is None else dyn
        delta = sum(torch.outer(up[:, rank], down[rank]) for rank in range(kept))
        if kind == "lora_bias":
            delta = delta + w["bias"]
        delta = delta.reshape(weight.shape[0], -1, *weight.shape[2:]) * scale
    elif kind in ("mid", "mid_dyn"):
        up, mid, down = w["lora_up.weight"][..., 0, 0], w["lora_mid.weight"], w["lora_down.weight"][..., 0, 0]
        delta = (
            torch.stack([torch.stack([up @ mid[:, :, y, x] @ down for x in range(3)], -1) for y in range(3)], -2)
            * scale
        )
    elif kind in ("loha", "loha_conv"):
        delta = (w["hada_w1_a"] @ w["hada_w1_b"]).mul(w["hada_w2_a"] @ w["hada_w2_b"]) * scale
    elif kind == "lokr":
        left, right = w["lokr_w1"], w["lokr_w2"]
        delta = torch.cat([torch.cat([left[i, j] * right for j in range(2)], 1) for i in range(2)], 0)
    elif kind in ("full", "full_bias"):
        delta, bias = w["diff"], w.get("diff_b")
    elif kind == "norm":
        delta, bias = w["w_norm"], w["b_norm"]
    elif kind == "ia3_in":
        delta = weight * w["weight"][None, :]
    elif kind == "ia3_out":
        delta = (w["weight"].diag() @ flat).reshape(weight.shape)
    elif kind == "glora":
        delta = w["b2.weight"] @ w["b1.weight"] + weight @ w["a2.weight"] @ w["a1.weight"]
    elif kind == "oft":
        skew = w["oft_blocks"] - w["oft_blocks"].transpose(1, 2)
        one = torch.eye(skew.shape[-1], dtype=skew.dtype)
        turned = torch.block_diag(*[(one + q) @ torch.linalg.inv(one - q) for q in skew]).T @ flat
        delta = turned.reshape(weight.shape) - weight
    if kind == "dora":
        merged = weight + delta.reshape(weight.shape)
        norms = torch.stack([merged[:, column].norm() for column in range(merged.shape[1])])
        shape = (1, -1, *[1] * (weight.dim() - 2))
        delta = merged / norms.reshape(shape) * w["dora_scale"] - weight
    if delta.dim() == 4 and delta.shape[1] == 4 and weight.shape[1] == 9:
        padded = torch.zeros_like(weight)
        padded[:, :4] = delta
        delta = padded
    return delta.reshape(weight.shape) * strength, None if bias is None else bias * strength


def with_weights(layer, x, delta=None, bias=None):
    """The layer's forward with changed weights, through a copy that knows nothing of the bank."""
    parameters = {name: value.clone() for name, value in layer.named_parameters()}
    if delta is not None:
        parameters["weight"] += delta
    if bias is not None:
        parameters["bias"] += bias
    changed = copy.deepcopy(layer)
    changed.load_state_dict(parameters)
    return changed(x)


def run(bank, layer, x, blocks):
    with (
        bank.attached(),
        bank.rows(Layout(tuple(Block(adapters_of(model), rows) for model, rows in blocks))),
    ):
        return layer(x)


def assert_close(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1, expected.abs().max())


def state(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def unchanged(layer, before):
    return (
        not layer._forward_hooks
        and "forward" not in vars(layer)
        and all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    )


# Each kind


def contents(kind, layer, generator, rank=RANK):
    if kind.endswith("_4"):  # a delta for the 4 channels of the model that the inpainting model was made from
        plain = nn.Conv2d(4, layer.out_channels, 3).to(layer.weight.dtype)
        return random_weights(kind[:-2], plain, generator)
    return random_weights(kind, layer, generator, rank=rank)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "kind"), EVERY_KIND)
def test_rows_equal_forwards_with_merged_weights(host, generator, name, kind, dtype):
    layer, shape = make_layer(name, dtype)
    before = state(layer)
    dyn = 1 if "dyn" in kind else None
    strengths = (0.8, -1.3)
    files = [contents(kind, layer, generator) for _ in strengths]
    modules = [host.module(kind, layer, w, strength, dyn) for w, strength in zip(files, strengths)]
    bank = AdapterBank({"x": layer}, [{"x": host.a1111.deltas._delta(module, layer)} for module in modules], BUDGET)
    x = torch.randn((6, *shape), generator=generator, dtype=dtype)

    output = run(bank, layer, x, [(BASE, 2), (0, 2), (1, 2)])

    plain = kind.removesuffix("_4")
    expected = [layer(x[:2])]
    for w, strength, rows in zip(files, strengths, (x[2:4], x[4:])):
        expected.append(
            with_weights(
                layer, rows, *merge_by_hand(plain, w, layer.weight, strength, None if kind == "mid_dyn" else dyn)
            )
        )
    assert bank.failures == [{}, {}]
    assert bank.counts == [1, 1]
    assert_close(output, torch.cat(expected), TOLERANCE[dtype])
    assert (expected[1] - layer(x[2:4])).abs().max() > 0.01, "an adapter that changes nothing tests nothing"
    assert unchanged(layer, before)


@pytest.mark.parametrize(
    ("name", "kind", "compact"),
    [
        ("linear", "lora", True),
        ("linear", "dyn", True),
        ("conv1", "lora", True),
        ("conv3", "lora", True),
        ("conv3_stride2", "mid", True),
        ("inpainting", "lora", True),
        ("linear", "lora_bias", False),
        ("linear", "dora", False),
        ("linear", "loha", False),
        ("group_norm", "norm", False),
    ],
)
def test_kinds_with_factors_are_kept_as_factors(host, generator, name, kind, compact):
    layer, _ = make_layer(name)
    delta = host.a1111.deltas._delta(
        host.module(kind, layer, contents(kind, layer, generator), dyn=1 if kind == "dyn" else None), layer
    )
    assert isinstance(delta, LowRank if compact else Dense)
    if kind == "dyn":
        assert delta.down.shape[0] == delta.up.shape[1] == 1


def test_a_linear_file_for_a_pointwise_convolution(host, generator):
    layer, shape = make_layer("conv1")
    w = {
        name: value.flatten(1) if value.dim() == 4 else value
        for name, value in random_weights("lora", layer, generator).items()
    }
    bank = AdapterBank({"x": layer}, [{"x": host.a1111.deltas._delta(host.module("lora", layer, w), layer)}], BUDGET)
    x = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    delta, _ = merge_by_hand("lora", w, layer.weight, 1.0)
    assert_close(run(bank, layer, x, [(0, 2)]), with_weights(layer, x, delta))


def test_half_precision_stays_half_and_close(generator):
    layer, shape = make_layer("linear", torch.bfloat16)
    w = random_weights("lora", make_layer("linear", torch.float32)[0], generator)
    delta = LowRank(w["lora_down.weight"], w["lora_up.weight"])
    x = torch.randn((2, *shape), generator=generator).bfloat16()
    output = run(AdapterBank({"x": layer}, [{"x": delta}], BUDGET), layer, x, [(0, 2)])
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), with_weights(layer.float(), x.float(), delta.up @ delta.down), 0.05)


# Several adapters at a layer


def low_rank(layer, generator, rank=RANK):
    down = torch.randn((rank, *layer.weight.shape[1:]), generator=generator, dtype=torch.float64) * 0.4
    return LowRank(down, torch.randn((layer.weight.shape[0], rank), generator=generator, dtype=torch.float64))


def dense(delta, bias=None):
    return Dense(lambda: (delta, bias))


def full_delta(delta):
    return (delta.up @ delta.down.flatten(1)).reshape(delta.up.shape[0], *delta.down.shape[1:])


def adapters_of(model):
    """A model of a layout: the base, an adapter, or several adapters at once."""
    return model if isinstance(model, tuple) else () if model == BASE else (model,)


def expected_rows(layer, x, blocks, deltas):
    """`deltas`: by adapter `(weight delta, bias delta)`; adapters without an entry do nothing."""
    parts, start = [], 0
    for model, rows in blocks:
        found = [deltas[adapter] for adapter in adapters_of(model) if adapter in deltas]
        weight = sum(delta for delta, _ in found)
        bias = sum(shift for _, shift in found if shift is not None)
        parts.append(with_weights(layer, x[start : start + rows], weight, bias))
        start += rows
    return torch.cat(parts)


LAYOUTS = {
    "equal": [(BASE, 2), (0, 2), (1, 2), (2, 2), (3, 2)],
    "base last": [(0, 2), (1, 2), (2, 2), (3, 2), (BASE, 2)],
    "unequal": [(BASE, 2), (0, 1), (1, 3), (2, 3), (3, 1)],
    "out of order": [(3, 1), (1, 1), (2, 1), (0, 1)],
    "one missing in the middle": [(0, 2), (1, 2), (3, 2)],
    "base in the middle": [(0, 1), (1, 1), (BASE, 1), (2, 1), (3, 1)],
    "one twice": [(0, 1), (1, 1), (0, 1), (1, 1), (2, 1)],
    "one of the stack missing": [(0, 2), (3, 2)],
    "one alone": [(2, 3)],
    "all at once": [(BASE, 1), ((0, 1, 2, 3), 2)],
    "all at once beside each": [((0, 1, 3), 1), (BASE, 1), (0, 1), (1, 1), (3, 1), ((0, 1, 3), 1)],
    "one in every model": [(0, 1), ((0, 1), 1), ((0, 2), 2), ((0, 3), 1)],
    "base alone": [(BASE, 3)],
}


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("name", "channels_last"),
    [
        ("linear", False),
        ("conv1", False),
        ("conv3", False),
        ("conv3_stride2", False),
        ("circular", False),
        ("conv1", True),
        ("conv3_stride2", True),
    ],
)
def test_every_layout(generator, name, blocks, channels_last):
    layer, shape = make_layer(name)
    factors = {0: low_rank(layer, generator, 1), 1: low_rank(layer, generator, 3), 3: low_rank(layer, generator, 2)}
    changed = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    shift = torch.randn(8, generator=generator, dtype=torch.float64)
    adapters = [{"x": factors[0]}, {"x": factors[1]}, {"x": dense(changed, shift)}, {"x": factors[3]}]
    bank = AdapterBank({"x": layer}, adapters, BUDGET)
    x = torch.randn((sum(rows for _, rows in blocks), *shape), generator=generator, dtype=torch.float64)
    deltas = {number: (full_delta(delta), None) for number, delta in factors.items()} | {2: (changed, shift)}
    expected = expected_rows(layer, x, blocks, deltas)
    if channels_last:
        x, layer.weight.data = (
            x.contiguous(memory_format=torch.channels_last),
            layer.weight.data.contiguous(memory_format=torch.channels_last),
        )
        assert len(x) == 1 or not layer(x).is_contiguous()
    assert_close(run(bank, layer, x, blocks), expected)


@pytest.mark.parametrize("name", ["linear", "conv1", "conv3"])
def test_a_change_of_the_precision_in_which_the_model_computes(generator, name):
    """As autocast makes it, or another extension. The factors are taken from the file, not from what was rounded."""
    layer, shape = make_layer(name)
    factors = {number: low_rank(layer, generator) for number in range(2)}
    bank = AdapterBank({"x": layer}, [{"x": factor} for factor in factors.values()], BUDGET)
    x = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    blocks = [(BASE, 1), (0, 1), (1, 1)]
    deltas = {number: (full_delta(delta), None) for number, delta in factors.items()}
    expected = expected_rows(layer, x, blocks, deltas)
    for dtype in (torch.float64, torch.float32, torch.float64):
        output = run(bank, layer.to(dtype), x.to(dtype), blocks)
        assert output.dtype == dtype
        assert_close(output.double(), expected, TOLERANCE[dtype])


def test_a_row_does_not_depend_on_the_others(generator):
    layer, shape = make_layer("conv3")
    bank = AdapterBank({"x": layer}, [{"x": low_rank(layer, generator)} for _ in range(3)], BUDGET)
    x = torch.randn((1, *shape), generator=generator, dtype=torch.float64)
    together = run(bank, layer, x.repeat(3, 1, 1, 1), [(0, 1), (1, 1), (2, 1)])
    for number in range(3):
        assert_close(together[number : number + 1], run(bank, layer, x, [(number, 1)]), 1e-12)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_adapters_that_touch_different_layers(generator):
    first, _ = make_layer("linear")
    second, _ = make_layer("layer_norm")
    third = nn.Linear(8, 4).double().requires_grad_(False)
    untouched = nn.Linear(4, 4).double().requires_grad_(False)
    layers = {"first": first, "second": second, "third": third, "untouched": untouched}
    model = nn.Sequential(*layers.values())
    a, c = low_rank(first, generator), low_rank(third, generator)
    b = torch.randn(8, generator=generator, dtype=torch.float64)
    bank = AdapterBank(layers, [{"first": a}, {"second": dense(b, b)}, {"first": a, "third": c}, {}], BUDGET)
    assert bank.counts == [1, 1, 2, 0]
    x = torch.randn((5, 3, 6), generator=generator, dtype=torch.float64)
    with bank.attached():
        assert [bool(layer._forward_hooks) for layer in layers.values()] == [True, True, True, False]
    blocks = [(BASE, 1), (0, 1), (1, 1), (2, 1), (3, 1)]
    output = run(bank, model, x, blocks)
    h = expected_rows(first, x, blocks, {0: (full_delta(a), None), 2: (full_delta(a), None)})
    h = expected_rows(second, h, blocks, {1: (b, b)})
    h = expected_rows(third, h, blocks, {2: (full_delta(c), None)})
    assert_close(output, untouched(h))
    assert torch.equal(output[0], model(x)[0])


def adapters_of_two_kinds(layer, name, generator):
    """Two adapters for a layer, and their deltas."""
    if name == "layer_norm":
        shifts = [torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2)]
        return [{"x": dense(shift, None)} for shift in shifts], {n: (shift, None) for n, shift in enumerate(shifts)}
    factors = [low_rank(layer, generator, 1 + number) for number in range(2)]
    return [{"x": factor} for factor in factors], {n: (full_delta(factor), None) for n, factor in enumerate(factors)}


KINDS_OF_LAYERS = pytest.mark.parametrize("name", ["linear", "conv1", "conv3", "layer_norm"])


@KINDS_OF_LAYERS
def test_rows_that_are_repeated_in_their_place(generator, name):
    """Some extensions fold tiles of the picture into the batch: `[rows * tiles, ...]`, a row's tiles together."""
    layer, shape = make_layer(name)
    tiles, blocks = 3, [(1, 1), (BASE, 2), (0, 2)]
    adapters, deltas = adapters_of_two_kinds(layer, name, generator)
    x = torch.randn((5 * tiles, *shape), generator=generator, dtype=torch.float64)
    bank = AdapterBank({"x": layer}, adapters, BUDGET)
    bank.rows_repeat_in_place = True
    output = run(bank, layer, x, blocks)
    assert_close(output, expected_rows(layer, x, [(adapter, rows * tiles) for adapter, rows in blocks], deltas))


@KINDS_OF_LAYERS
@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_a_batch_of_one_models_rows_may_reach_a_layer_as_any_number(generator, name, rows):
    layer, shape = make_layer(name)
    adapters, deltas = adapters_of_two_kinds(layer, name, generator)
    x = torch.randn((rows, *shape), generator=generator, dtype=torch.float64)
    output = run(AdapterBank({"x": layer}, adapters, BUDGET), layer, x, [(1, 2)])
    assert_close(output, expected_rows(layer, x, [(1, rows)], deltas))


@pytest.mark.parametrize(("rows", "in_place"), [(1, False), (4, False), (5, False), (1, True), (5, True)])
def test_other_rows_of_a_batch_that_several_models_share_are_an_error(generator, rows, in_place):
    """A multiple as well: whose rows they are is not known."""
    layer, shape = make_layer("linear")
    bank = AdapterBank({"x": layer}, [{"x": low_rank(layer, generator)}], BUDGET)
    bank.rows_repeat_in_place = in_place
    before = state(layer)
    with pytest.raises(RowsError, match=f"{rows} rows of a batch of 2"):
        run(bank, layer, torch.zeros((rows, *shape), dtype=torch.float64), [(0, 1), (BASE, 1)])
    assert unchanged(layer, before)


def test_hooks_of_others_find_what_the_layer_gives_with_its_adapters(generator):
    layer, shape = make_layer("linear")
    factor = low_rank(layer, generator)
    bank = AdapterBank({"x": layer}, [{"x": factor}], BUDGET)
    handle = layer.register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    output = run(bank, layer, x, [(0, 2)])
    handle.remove()
    assert_close(output, 2 * expected_rows(layer, x, [(0, 2)], {0: (full_delta(factor), None)}))


# Memory


def test_budget_changes_no_result_and_is_kept(generator):
    layer, shape = make_layer("linear")
    calls = [0, 0, 0]
    deltas = [torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in calls]

    def counted(number):
        def compute():
            calls[number] += 1
            return deltas[number], None

        return Dense(compute)

    size = 8 * 6 * 8
    x = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    blocks = [(0, 1), (1, 1), (2, 1)]
    expected = expected_rows(layer, x, blocks, {number: (delta, None) for number, delta in enumerate(deltas)})
    for budget, cached in [(0, 0), (size - 1, 0), (size, 1), (2 * size + 5, 2), (BUDGET, 3)]:
        calls[:] = [0, 0, 0]
        bank = AdapterBank({"x": layer}, [{"x": counted(number)} for number in range(3)], budget)
        for _ in range(2):
            assert_close(run(bank, layer, x, blocks), expected)
        assert sorted(calls) == [1] * cached + [3] * (3 - cached), f"budget {budget}"


# Errors


def test_a_rule_that_fails_is_reported_and_left_out(generator):
    layer, shape = make_layer("linear")
    good, before = low_rank(layer, generator), state(layer)

    def broken():
        raise RuntimeError("the size of tensor a must match")

    bank = AdapterBank(
        {"x": layer, "y": layer}, [{"x": Dense(broken)}, {"x": good}, {"y": dense(torch.zeros(3, 3))}], BUDGET
    )
    assert {name: str(error) for name, error in bank.failures[0].items()} == {"x": "the size of tensor a must match"}
    kept = bank.failures[0]["x"]
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None), "frames hold the whole request"
    assert bank.failures[1] == {}
    assert list(bank.failures[2]) == ["y"]
    assert bank.counts == [0, 1, 0]
    x = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    blocks = [(0, 1), (1, 1)]
    assert_close(run(bank, layer, x, blocks), expected_rows(layer, x, blocks, {1: (full_delta(good), None)}))
    assert unchanged(layer, before)


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_is_no_broken_rule(error):
    layer, _ = make_layer("linear")

    def hungry():
        raise error

    with pytest.raises(type(error)) as raised:
        AdapterBank({"x": layer}, [{"x": Dense(hungry)}], BUDGET)
    assert raised.value is error


def test_other_errors_are_not_hidden():
    layer, _ = make_layer("linear")

    def wrong():
        raise AttributeError("no such thing")

    with pytest.raises(AttributeError, match="no such thing"):
        AdapterBank({"x": layer}, [{"x": Dense(wrong)}], BUDGET)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_nothing_is_left_when_the_forward_raises(generator, error):
    layer, shape = make_layer("linear")
    before = state(layer)
    bank = AdapterBank({"x": layer}, [{"x": low_rank(layer, generator)}], BUDGET)
    x = torch.randn((1, *shape), generator=generator, dtype=torch.float64)
    with pytest.raises(error), bank.attached(), bank.rows(Layout((Block((0,), 1),))):
        layer(x)
        raise error
    assert unchanged(layer, before)
    assert bank.layout is None


def test_hooks_act_only_within_rows(generator):
    layer, shape = make_layer("linear")
    x = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    plain = layer(x)
    bank = AdapterBank({"x": layer}, [{"x": low_rank(layer, generator)}], BUDGET)
    with bank.attached():
        assert torch.equal(layer(x), plain)
        with bank.rows(Layout((Block((0,), 3),))):
            assert (layer(x) - plain).abs().max() > 0.1
        assert torch.equal(layer(x), plain)
        with bank.rows(Layout((Block((), 2),))):  # whatever is called here, none of it is an adapter's
            assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


def test_a_compiled_model_gets_every_adapter(generator):
    """It knows nothing of hooks that come after its compilation, and is the compiled one again afterwards."""
    layer, shape = make_layer("linear")
    model, x = nn.Sequential(layer, nn.ReLU()), torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    graphs = []
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward, dynamic=False)
    bare = compiled(x)
    for _ in range(2):
        delta = low_rank(layer, generator)
        bank = AdapterBank({"x": layer}, [{"x": delta}], BUDGET)
        with bank.attached(), bank.rows(Layout((Block((), 1), Block((0,), 1)))):
            rows = compiled(x)
        assert torch.equal(rows[:1], bare[:1])
        assert (rows[1] - model[1](with_weights(layer, x[1], delta.up @ delta.down))).abs().max() < 1e-9
        assert (rows[1] - bare[1]).abs().max() > 0.1
    assert torch.equal(compiled(x), bare) and len(graphs) == 1


def test_a_model_that_runs_without_its_layers_is_an_error(generator):
    layer, shape = make_layer("linear")
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    bank, layout = (
        AdapterBank({"x": layer}, [{"x": low_rank(layer, generator)}], BUDGET),
        Layout((Block((), 1), Block((0,), 1))),
    )
    with bank.attached(), pytest.raises(RuntimeError, match="without its layers"), bank.rows(layout):
        F.linear(x, layer.weight, layer.bias)
    with bank.attached():
        with bank.rows(layout):
            layer(x)
        with bank.rows(layout):  # an extension may keep what an earlier call has made
            F.linear(x, layer.weight, layer.bias)
    assert bank.layout is None


def test_factors_of_another_shape_do_not_fit():
    layer, _ = make_layer("conv3")
    right = LowRank(torch.zeros(2, 6, 3, 3), torch.zeros(8, 2))
    assert fits_low_rank(layer, right)
    for down, up in [
        ((2, 6, 1, 1), (8, 2)),
        ((2, 5, 3, 3), (8, 2)),
        ((2, 6, 3, 3), (7, 2)),
        ((2, 6, 3, 3), (8, 3)),
        ((2, 54), (8, 2)),
    ]:
        assert not fits_low_rank(layer, LowRank(torch.zeros(down), torch.zeros(up)))
    assert not fits_low_rank(nn.Conv2d(6, 6, 3, groups=2), LowRank(torch.zeros(2, 3, 3, 3), torch.zeros(6, 2)))
    assert not fits_low_rank(nn.LayerNorm(8), LowRank(torch.zeros(2), torch.zeros(8, 2)))


@pytest.mark.parametrize("packed", [True, False])
def test_quantised_linear_layers_without_sizes_take_factors(generator, packed):
    """As bitsandbytes keeps them: packed bytes, whose true shape is in their `quant_state`."""
    weight = torch.randn(6, 8, generator=generator)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8) if packed else weight, requires_grad=False)
            self.weight.quant_state = SimpleNamespace(shape=torch.Size((6, 8))) if packed else None

        def forward(self, x):
            return F.linear(x, weight)

    layer = Linear()
    delta = LowRank(torch.randn(2, 8, generator=generator), torch.randn(6, 2, generator=generator))
    assert weight_shape(layer) == (6, 8) and fits_low_rank(layer, delta)
    bank, x = AdapterBank({"layer": layer}, [{"layer": delta}], 0), torch.randn(3, 5, 8, generator=generator)
    with bank.attached(), bank.rows(Layout((Block((), 1), Block((0,), 2)))):
        y = layer(x)
    torch.testing.assert_close(y[:1], F.linear(x[:1], weight))
    torch.testing.assert_close(y[1:], F.linear(x[1:], weight + delta.up @ delta.down))


def test_spans_of_an_adapter_that_touch_are_one_and_others_are_not():
    layout = Layout((Block((0,), 1), Block((0, 1), 2), Block((1,), 1), Block((), 1), Block((0, 1), 1)))
    assert layout.runs((0,)) == [Run(0, 3, first=0), Run(5, 1, first=0)]
    assert layout.runs((1,)) == [Run(1, 3, first=0), Run(5, 1, first=0)]


def test_runs_are_of_equal_rows_that_touch_and_of_adapters_beside_each_other_in_the_stack():
    one_each = Layout((Block((0,), 2), Block((1,), 2), Block((2,), 2), Block((3,), 1)))
    assert one_each.runs((0, 1, 2, 3)) == [Run(0, 2, first=0, count=3), Run(6, 1, first=3)]
    assert one_each.runs((0, 2)) == [Run(0, 2, first=0), Run(4, 2, first=1)]
    without_1 = Layout((Block((0,), 2), Block((2,), 2)))
    assert without_1.runs((0, 1, 2)) == [Run(0, 2, first=0), Run(2, 2, first=2)]


def test_adapters_of_one_model_are_one_run_where_they_are_beside_each_other_in_the_stack():
    merged = Layout((Block((), 1), Block((0, 1, 2), 2)))
    assert merged.runs((0, 1, 2)) == [Run(1, 2, first=0, together=3)]
    assert merged.runs((0, 2)) == [Run(1, 2, first=0, together=2)]
    assert Layout((Block((0, 2, 3), 1),)).runs((0, 1, 2, 3)) == [Run(0, 1, first=0), Run(0, 1, first=2, together=2)]


def test_a_row_of_all_adapters_beside_a_row_of_each_takes_two_runs():
    each, everyone = [Block((adapter,), 1) for adapter in range(3)], Block((0, 1, 2), 1)
    assert Layout((Block((), 1), *each, everyone)).runs((0, 1, 2)) == [
        Run(1, 1, first=0, count=3),
        Run(4, 1, first=0, together=3),
    ]


def test_an_adapter_that_every_model_has_is_one_run():
    models = [Block((0,), 1), Block((0, 1), 1), Block((0, 2), 1), Block((0, 3), 1)]
    assert Layout(tuple(models)).runs((0, 1, 2, 3)) == [Run(0, 4, first=0), Run(1, 1, first=1, count=3)]


def test_layouts_count_their_rows():
    layout = Layout((Block((), 2), Block((0,), 3), Block((1,), 3)))
    assert layout.rows == 8
    assert layout.runs((0, 1)) == [Run(2, 3, first=0, count=2)]
    assert layout.runs((1,)) == [Run(5, 3, first=0)]
    assert layout.runs((4,)) == []


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["linear", "conv1", "conv3"])
def test_strengths_for_a_while(generator, name, blocks):
    """Deltas of adapters times their factors, and by its own rule what is not in proportion to a strength."""
    layer, shape = make_layer(name)
    low_ranks = {0: low_rank(layer, generator, 1), 1: low_rank(layer, generator, 3)}
    changed = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    shift = torch.randn(8, generator=generator, dtype=torch.float64)
    squared = Dense(lambda: (changed, None), lambda factor: (factor**2 * changed, None))
    bank = AdapterBank(
        {"x": layer},
        [*({"x": delta} for delta in low_ranks.values()), {"x": dense(changed, shift)}, {"x": squared}],
        BUDGET,
    )
    x = torch.randn((sum(rows for _, rows in blocks), *shape), generator=generator, dtype=torch.float64)
    for by_adapter in ({}, {0: 0.5}, {0: -0.5, 1: 2.0, 2: 0.25, 3: 0.5}, {}):
        f = {number: by_adapter.get(number, 1) for number in range(4)}
        deltas = {number: (f[number] * full_delta(delta), None) for number, delta in low_ranks.items()}
        deltas |= {2: (f[2] * changed, f[2] * shift), 3: (f[3] ** 2 * changed, None)}
        layout = Layout(tuple(Block(adapters_of(model), rows) for model, rows in blocks))
        with bank.attached(), bank.rows(layout, factors=Factors(by_adapter)):
            found = layer(x)
        assert_close(found, expected_rows(layer, x, blocks, deltas))
