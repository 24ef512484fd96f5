"""Adapters on a half-precision model under autocast, where a layer's input and output may differ in dtype."""

import pytest
import torch
from torch import nn

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.deltas.row_layout import Block, Layout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_equal_the_merged_weights_to_half_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.LayerNorm(16), nn.Linear(16, 24), nn.Unflatten(1, (6, 2, 2)), nn.Conv2d(6, 5, 3, padding=1)
    ).to(dtype)
    linear, convolution, norm = model[1], model[3], model[0]
    down, up = torch.randn(4, 16), torch.randn(24, 4) * 0.1
    kernel_down, kernel_up = torch.randn(2, 6, 3, 3), torch.randn(5, 2) * 0.1
    full, bias = torch.randn(16) * 0.5, torch.randn(16) * 0.5
    deltas = {
        "linear": LowRank(down, up),
        "convolution": LowRank(kernel_down, kernel_up),
        "norm": Dense(lambda: (full, bias)),
    }
    bank = AdapterBank({"linear": linear, "convolution": convolution, "norm": norm}, [deltas], budget=2**20)
    x = torch.randn(4, 16).to(dtype)
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype),
        bank.attached(),
        bank.rows(Layout((Block((), 2), Block((0,), 2)))),
    ):
        output = model(torch.cat([x[:2], x[:2]]))
    with torch.no_grad():
        base = model.float()(x[:2].float())
        norm.weight += full
        norm.bias += bias
        linear.weight += up @ down
        convolution.weight += (kernel_up @ kernel_down.flatten(1)).view_as(convolution.weight)
        merged = model(x[:2].float())
    tolerance = 4 * torch.finfo(dtype).eps * merged.abs().max()
    assert output.dtype == dtype
    assert (output[:2].float() - base).abs().max() < tolerance
    assert (output[2:].float() - merged).abs().max() < tolerance
    assert (merged - base).abs().max() > 20 * tolerance
