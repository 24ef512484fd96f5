"""The bank of a pass's adapters, kept for the further batches of its request."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from torch import nn

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.hosts.webui.failures import report_failures
from lib_loratorio.hosts.webui.options import dense_budget
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.loras.adapter import Adapter, merged_below

Deltas = Mapping[str, LowRank | Dense]


def bank_of(
    p,
    model: Hashable,
    layers: Callable[[], Mapping[str, nn.Module]],
    adapters: Sequence[Adapter],
    deltas_of: Callable[[Adapter, Sequence[Adapter], Mapping[str, nn.Module]], Deltas],
    layouts: Sequence[str],
) -> AdapterBank:
    """The adapters' deltas for the model at hand.

    Args:
        model: tells whether it is still the model of the batch before.
        layers: gives the model's layers by name; called only where the bank is made anew, with the weights the base's.
        deltas_of: `deltas_of(adapter, below, layers)` gives an adapter's deltas on top of the adapters `below`, with
            which it is always merged.
        layouts: of files that the host reads.

    Raises LeftOutError, and LoratorioError for a LoRA that cannot be applied.
    """
    budget, state = dense_budget(), state_of(p)
    key = (model, tuple((*adapter.key, adapter.is_global) for adapter in adapters), budget)
    if state.bank is None or state.bank_key != key:
        named = layers()
        deltas = [deltas_of(adapter, below, named) for adapter, below in zip(adapters, merged_below(adapters))]
        bank = AdapterBank(named, deltas, budget)
        report_failures(p, adapters, bank, layouts)
        state.bank_key, state.bank = key, bank
    return state.bank
