"""The networks' deltas in the engine's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from modules import devices, shared

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import Dense, misfit_left_out
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank
from lib_loratorio.deltas.precision import in_full
from lib_loratorio.hosts.a1111.loader import LAYOUTS, UNET, restore_base
from lib_loratorio.hosts.webui import banks
from lib_loratorio.loras.adapter import Adapter


def bank_of(p, adapters: Sequence[Adapter]) -> AdapterBank:
    """The adapters' deltas for the model at hand, kept for its further batches. Raises as `banks.bank_of`."""

    def layers() -> Mapping[str, torch.nn.Module]:
        restore_base()
        return shared.sd_model.network_layer_mapping

    model = shared.sd_model.sd_checkpoint_info, id(shared.sd_model.network_layer_mapping)
    return banks.bank_of(p, model, layers, adapters, _deltas, LAYOUTS)


def _deltas(
    adapter: Adapter, below: Sequence[Adapter], layers: Mapping[str, torch.nn.Module]
) -> dict[str, LowRank | Dense]:
    """An adapter's deltas on top of those adapters `below`, with which it is always merged."""
    if not adapter.changes_denoiser:
        return {}
    modules = adapter.source.modules
    # In functional mode the host adds what each changes of the layer's own weight, and merges none upon another.
    merges = [] if shared.opts.lora_functional else below
    under = [other.source.modules for other in merges if other.changes_denoiser]
    return {
        name: _delta(module, layers[name], [others[name] for others in under if name in others])
        for name, module in modules.items()
        if name.startswith(UNET) and name in layers
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
        down = torch.einsum("nm...,mj->nj...", in_full(module.mid_model.weight.detach()), in_full(down).flatten(1))
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
        with misfit_left_out():
            changed, _ = _merged(other, layer, weight)
            base = weight = changed.to(base.dtype).expand(base.shape)
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
