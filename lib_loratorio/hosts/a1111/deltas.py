"""The networks' deltas in the engine's terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from modules import devices, shared

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank
from lib_loratorio.hosts.a1111.loader import UNET, Adapter, restore_base
from lib_loratorio.hosts.webui.options import dense_budget
from lib_loratorio.hosts.webui.request import report_failures
from lib_loratorio.loras.tag import merged_below


def _deltas(adapter: Adapter, below: Sequence[Adapter]) -> dict[str, LowRank | Dense]:
    """An adapter's deltas on top of those adapters `below`, with which it is always merged."""
    layers = shared.sd_model.network_layer_mapping
    if not adapter.changes_unet:
        return {}
    modules = {
        name: module for name, module in adapter.network.modules.items() if name.startswith(UNET) and name in layers
    }
    under = [other.network.modules for other in below if other.changes_unet]
    return {
        name: _delta(module, layers[name], [others[name] for others in under if name in others])
        for name, module in modules.items()
    }


def _delta(module, layer: torch.nn.Module, below: Sequence = ()) -> LowRank | Dense:
    if hasattr(module, "up_model") and module.bias is None and module.dora_scale is None:
        low_rank = _low_rank(module, layer)
        if fits_low_rank(layer, low_rank):
            return low_rank
    return Dense(lambda: _updown(module, layer, below))


def _low_rank(module, layer: torch.nn.Module) -> LowRank:
    down, up = module.down_model.weight.detach(), module.up_model.weight.detach().flatten(1)
    if module.mid_model is not None:
        dtype = torch.promote_types(down.dtype, torch.float32)
        down = torch.einsum("nm...,mj->nj...", module.mid_model.weight.detach().to(dtype), down.flatten(1).to(dtype))
    elif module.network.dyn_dim is not None:
        down, up = down[: module.network.dyn_dim], up[:, : module.network.dyn_dim]
    return LowRank(_for_inpainting(down, layer), up, module.calc_scale() * module.multiplier())


def _updown(module, layer: torch.nn.Module, below: Sequence) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the host's merge would change, its rounding to the file's and the model's precision included."""
    # The host merges on the device that computes, where a model kept in CPU memory is only during its forward.
    base = layer.weight.to(devices.device)
    precise = getattr(layer, "fp16_weight", None)  # fp8 models keep a copy of better precision for this
    weight = base if precise is None else precise.to(devices.device)
    for other in below:
        weight, _ = _merged(other, layer, weight)
        base = weight = weight.to(base.dtype)
    merged, bias = _merged(module, layer, weight)
    dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
    return merged.to(base.dtype).to(dtype) - base.to(dtype), bias


def _merged(module, layer: torch.nn.Module, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    delta, bias = module.calc_updown(weight)
    return weight.to(delta.dtype) + _for_inpainting(delta, layer), bias


def _for_inpainting(delta: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """Zeros for the mask and image channels that an inpainting model's first layer has more.

    The host adds them to every delta of such a layer: one that has all 9 channels already then fits no
    more, and the host leaves it out.
    """
    if layer.weight.dim() == 4 and layer.weight.shape[1] == 9:
        return F.pad(delta, (0, 0, 0, 0, 0, 5))
    return delta


def bank_of(p, adapters: Sequence[Adapter]) -> AdapterBank:
    """The adapters' deltas for the model at hand, kept on `p` for its further batches."""
    budget = dense_budget()
    layers = shared.sd_model.network_layer_mapping
    key = (shared.sd_model.sd_checkpoint_info, tuple((*adapter.key, adapter.part.role) for adapter in adapters), budget)
    kept = p.loratorio
    if kept.bank and kept.bank_key == key and kept.bank.layers is layers:
        return kept.bank
    restore_base()
    bank = AdapterBank(
        layers, [_deltas(adapter, below) for adapter, below in zip(adapters, merged_below(adapters))], budget
    )
    report_failures(p, adapters, bank)
    kept.bank_key, kept.bank = key, bank
    return bank
