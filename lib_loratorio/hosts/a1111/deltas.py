"""The networks' deltas in the engine's terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from modules import devices, shared

from lib_loratorio.adapters import AdapterBank, Dense, LowRank, fits_low_rank
from lib_loratorio.hosts.a1111.loader import UNET, Adapter, restore_base
from lib_loratorio.hosts.webui.options import dense_budget
from lib_loratorio.hosts.webui.request import report_failures


def _deltas(adapter: Adapter) -> dict[str, LowRank | Dense]:
    layers = shared.sd_model.network_layer_mapping
    if not adapter.changes_unet:
        return {}
    return {name: _delta(module, layers[name]) for name, module in adapter.network.modules.items() if name.startswith(UNET) and name in layers}


def _delta(module, layer: torch.nn.Module) -> LowRank | Dense:
    if hasattr(module, "up_model") and module.bias is None and module.dora_scale is None:
        low_rank = _low_rank(module, layer)
        if fits_low_rank(layer, low_rank):
            return low_rank
    return Dense(lambda: _updown(module, layer))


def _low_rank(module, layer: torch.nn.Module) -> LowRank:
    down, up = module.down_model.weight.detach(), module.up_model.weight.detach().flatten(1)
    dtype = torch.promote_types(down.dtype, torch.float32)
    down, up = down.to(dtype), up.to(dtype)
    if module.mid_model is not None:
        down = torch.einsum("nm...,mj->nj...", module.mid_model.weight.detach().to(dtype), down.flatten(1))
    elif module.network.dyn_dim is not None:
        down, up = down[: module.network.dyn_dim], up[:, : module.network.dyn_dim]
    return LowRank(_for_inpainting(down, layer), up * (module.calc_scale() * module.multiplier()))


def _updown(module, layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the host's merge would change, its rounding to the file's and the model's precision included."""
    # The host merges on the device that computes, where a model kept in CPU memory is only during its forward.
    base = layer.weight.to(devices.device)
    precise = getattr(layer, "fp16_weight", None)  # fp8 models keep a copy of better precision for this
    weight = base if precise is None else precise.to(devices.device)
    delta, bias = module.calc_updown(weight)
    merged = (weight.to(delta.dtype) + _for_inpainting(delta, layer)).to(base.dtype)
    dtype = torch.float64 if merged.dtype == torch.float64 else torch.float32
    return merged.to(dtype) - base.to(dtype), bias


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
    key = (shared.sd_model.sd_checkpoint_info, tuple(adapter.key for adapter in adapters), budget)
    kept = p.loratorio
    if kept.bank and kept.bank_key == key and kept.bank.layers is layers:
        return kept.bank
    restore_base()
    bank = AdapterBank(layers, [_deltas(adapter) for adapter in adapters], budget)
    for number, adapter in enumerate(adapters):
        report_failures(p, adapter.name, bank.failures[number], bank.counts[number], adapter.changes_text)
    kept.bank_key, kept.bank = key, bank
    return bank
