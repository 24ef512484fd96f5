"""reForge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ldm_patched.modules import model_management, samplers
from ldm_patched.modules.conds import CONDRegular as Condition
from ldm_patched.modules.lora import calculate_weight
from ldm_patched.modules.samplers import cond_cat, get_area_and_mult
from ldm_patched.modules.weight_adapter import LoRAAdapter
from modules import shared
from modules_forge import forge_sampler

from lib_loratorio.deltas.dense import DeltaError
from lib_loratorio.deltas.precision import in_full
from lib_loratorio.hosts.forge import flat_patches
from lib_loratorio.hosts.forge.backend import QUANTISED, Factors, declined
from lib_loratorio.hosts.forge.flat_patches import merging, patches, weighted, with_patches, without_networks

__all__ = ["Condition", "cond_cat", "declined", "merging", "patches", "weighted", "with_patches", "without_networks"]

area_and_mult = get_area_and_mult


def compile_conditions(cond: Any) -> list[dict]:
    return forge_sampler.cond_from_a1111_to_patched_ldm(cond)


def compile_weighted_conditions(cond: Any, weights: Any) -> list[dict]:
    return forge_sampler.cond_from_a1111_to_patched_ldm_weighted(cond, weights)


def apply(patcher: Any) -> None:
    model_management.load_models_gpu([patcher])


def factors(patch: Any) -> Factors | None:
    return flat_patches.factors(patch, LoRAAdapter)


def merged(patches: list, weight: torch.Tensor, key: str) -> torch.Tensor:
    with flat_patches.complaints_raised(key, logging.getLogger()):
        return calculate_weight(patches, weight.to(torch.float32, copy=True), key)


def base_weight(layer: torch.nn.Module, parameter: str) -> torch.Tensor:
    weight = getattr(layer, parameter)
    if not weight.dtype.is_floating_point:
        raise DeltaError(QUANTISED)
    convert = getattr(layer, f"convert_{parameter}", None)  # of layers that store it divided by a scale
    return convert(in_full(weight)) if convert else weight


def fits(model: torch.nn.Module, shape: Sequence[int], device: torch.device) -> bool:
    return model.memory_required(list(shape)) * 1.5 < model_management.get_free_memory(
        device
    )  # as the host's sampler asks it


def install(patcher: Any, calc: Callable) -> None:
    former = patcher.model_options.get("sampler_calc_cond_batch_function")

    def original(model, cond, uncond, x, sigma, model_options):
        if former:
            return former(
                {"conds": [cond, uncond], "input": x, "sigma": sigma, "model": model, "model_options": model_options}
            )
        return samplers.calc_cond_batch(model, [cond, uncond], x, sigma, model_options)

    def bracketed(args):
        cond, uncond = args["conds"]
        return list(calc(original, args["model"], cond, uncond, args["input"], args["sigma"], args["model_options"]))

    patcher.model_options["sampler_calc_cond_batch_function"] = bracketed
    patcher.set_model_unet_function_wrapper(_with_controlnets(patcher.model_options["model_function_wrapper"]))


class _ControlNets:
    """The host's chain of ControlNets as Forge has it: they know the batch that they are asked for by an attribute."""

    previous_controlnet = None

    def __init__(self, chain: Any):
        self.chain, self.transformer_options = chain, {}

    def get_control(self, x: torch.Tensor, timestep: torch.Tensor, c: dict, chunks: int) -> Any:
        return self.chain.get_control(x, timestep, c, chunks, self.transformer_options)


def _with_controlnets(wrapper: Callable) -> Callable:
    """Hands the wrapper the ControlNets that a batch has control of, which this host does not, and the model not."""

    def with_controlnets(apply_model: Callable, args: dict) -> torch.Tensor:
        chain = shared.sd_model.forge_objects.unet.controlnet_linked_list
        if chain is None or args["c"].get("control") is None:
            return wrapper(apply_model, args)

        def without(x: torch.Tensor, timestep: torch.Tensor, control_model: Any = None, **c) -> torch.Tensor:
            return apply_model(x, timestep, **c)

        return wrapper(without, {**args, "c": {**args["c"], "control_model": _ControlNets(chain)}})

    return with_controlnets


@contextmanager
def bracket(calc: Callable) -> Iterator[None]:
    """Nothing to do: `install` has used the host's own slot."""
    yield
