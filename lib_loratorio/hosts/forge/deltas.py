"""The networks' patches in the engine's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import DeltaError, Dense, PartialDeltaError, misfit_left_out
from lib_loratorio.deltas.layers import weight_shape
from lib_loratorio.deltas.low_rank import LowRank, fits_low_rank
from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.deltas.precision import FLOATS, in_full
from lib_loratorio.hosts.forge.backend import Factors, Patches, weighted_patches
from lib_loratorio.hosts.forge.loader import LAYOUTS, backend
from lib_loratorio.hosts.webui import banks
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.block_weights import Evenly

PROPORTIONAL = {"diff", "lora", "loha", "lokr", "glora"}
"""Kinds that change a weight in proportion to their strength, with DoRA's scale too; OFT, BOFT and "set" do not."""


def bank_of(p, model: torch.nn.Module, adapters: Sequence[Adapter]) -> AdapterBank:
    """The adapters' deltas, kept for its further batches. The model's weights must be the base's.

    Raises as `banks.bank_of`.
    """
    return banks.bank_of(p, id(model), lambda: dict(model.named_modules()), adapters, _deltas, LAYOUTS)


def _deltas(
    adapter: Adapter, below: Sequence[Adapter], layers: Mapping[str, torch.nn.Module]
) -> dict[str, LowRank | Dense]:
    """An adapter's deltas on top of those adapters `below`, with which it is always merged."""
    under = [other.source.patches for other in below]
    by_layer: dict[str, dict[str, list]] = {}
    for key, of_weight in adapter.source.patches.items():
        layer, _, parameter = key.rpartition(".")
        by_layer.setdefault(layer, {})[parameter] = of_weight
    return {name: _delta(layers[name], name, of_layer, under) for name, of_layer in by_layer.items()}


def _delta(layer: torch.nn.Module, name: str, of_layer: dict[str, list], below: Sequence[Patches]) -> LowRank | Dense:
    if of_layer.keys() == {"weight"}:
        factors = [backend.factors(patch) for patch in of_layer["weight"]]
        if None not in factors:
            low_rank = _low_rank(layer, factors)
            if low_rank and fits_low_rank(layer, low_rank):
                return low_rank

    def at(factor: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _differences(layer, name, weighted_patches(of_layer, Evenly(factor)), below)

    proportional = all(_kind(patch) in PROPORTIONAL for patches in of_layer.values() for patch in patches)
    return Dense(lambda: _differences(layer, name, of_layer, below), None if proportional else at)


def _kind(patch) -> str | None:
    """What the host calls a patch's kind; None for what has no name."""
    value = patch[1]
    if isinstance(value, tuple):
        return "diff" if len(value) == 1 else value[0]
    return getattr(value, "name", None)


def _low_rank(layer: torch.nn.Module, patches: Sequence[Factors]) -> LowRank | None:
    """The patches of one weight as one: their ranks side by side, each where in the weight it belongs."""
    try:
        outputs, inputs, *kernel = weight_shape(layer)
    except (RuntimeError, ValueError):
        return None
    downs, ups = [], []
    for factors in patches:
        down, up = factors.down, factors.up.flatten(1)
        if factors.mid is not None:
            down = torch.einsum("nm...,mj->nj...", in_full(factors.mid), in_full(down).flatten(1))
        down = down.reshape(*down.shape[:2], *kernel) if down[0, 0].numel() == torch.Size(kernel).numel() else down
        scale = factors.strength * (1.0 if factors.alpha is None else factors.alpha / factors.down.shape[0])
        if factors.offset is not None:
            dim, start, length = factors.offset
            if dim == 0:
                up = _placed(up, 0, start, length, outputs)
            else:
                down = _placed(down, 1, start, length, inputs)
        if len(patches) == 1:
            return LowRank(down, up, scale)
        downs.append(in_full(down))
        ups.append(in_full(up) * scale)
    if any(down.shape[1:] != downs[0].shape[1:] for down in downs) or any(up.shape[0] != outputs for up in ups):
        return None
    return LowRank(torch.cat(downs), torch.cat(ups, 1))


def _placed(part: torch.Tensor, dim: int, start: int, length: int, size: int) -> torch.Tensor:
    """Zeros around `part` in `dim`."""
    shape = list(part.shape)
    shape[dim] = size
    whole = part.new_zeros(shape)
    whole.narrow(dim, start, length).copy_(part)
    return whole


def _differences(
    layer: torch.nn.Module, name: str, of_layer: dict[str, list], below: Sequence[Patches]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Those of weight and bias. The hosts merge the one also where the other does not fit, which is raised as
    PartialDeltaError.
    """
    found, misfits = {}, []
    for parameter in ("weight", "bias"):
        try:
            found[parameter] = _difference(layer, name, of_layer, parameter, below)
        except DeltaError:
            raise
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            misfits.append(error)
            found[parameter] = _difference(layer, name, {}, parameter, below)
    if len(misfits) == len(of_layer):
        raise misfits[0]
    rest = found["weight"], found["bias"]
    if misfits:
        raise PartialDeltaError(str(misfits[0]), rest) from misfits[0]
    return rest


def _difference(
    layer: torch.nn.Module, name: str, of_layer: dict[str, list], parameter: str, below: Sequence[Patches]
) -> torch.Tensor | None:
    """What the host's merge would change, its rounding to the model's precision included; None for no bias."""
    if parameter not in of_layer:
        return torch.zeros(weight_shape(layer)) if parameter == "weight" else None
    weight = backend.base_weight(layer, parameter)
    key = f"{name}.{parameter}"

    def merged(patches: list) -> torch.Tensor:
        changed = backend.merged(patches, weight, key)
        return (changed.to(weight.dtype) if weight.dtype in FLOATS else changed).float()

    under, base = [], weight.float()
    for patch in (patch for patches in below for patch in patches.get(key, ())):
        with misfit_left_out():
            base = merged([*under, patch])
            under.append(patch)
    return merged([*under, *of_layer[parameter]]) - base
