"""The model at hand, in whichever WebUI: its parts, its weights without LoRAs, and what its prompts are encoded to.

A1111 merges LoRAs in each layer's forward and leaves them in the weights until another set is asked for; of a layer
that holds a merge it keeps the former weight. The Forge family merges when a model is loaded for a sampling, and keeps
the former weights beside its patcher. So the weights without LoRAs can be read at any time without a change to
anything, which is what `weights` does: a request's merge stays in place for the next one to find, as it would without
this test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from modules import devices, processing, prompt_parser, shared

Cache = tuple[str, Any]


def is_forge() -> bool:
    return hasattr(shared.sd_model, "forge_objects_original")


def is_loaded() -> bool:
    """The Forge family has no model before its first picture."""
    return is_forge() or hasattr(shared.sd_model, "network_layer_mapping")


def unet() -> torch.nn.Module:
    """The network that predicts, which is called once a batch."""
    model = shared.sd_model
    return (model.forge_objects_original.unet.model if is_forge() else model.model).diffusion_model


def text_encoders() -> torch.nn.Module:
    model = shared.sd_model
    return model.forge_objects_original.clip.cond_stage_model if is_forge() else model.cond_stage_model


def text_encoder() -> torch.nn.Module:
    """The first network that reads prompts."""
    named = [module for module in text_encoders().modules() if type(module).__name__.startswith("CLIPText")]
    return named[0] if named else text_encoders()


def roots() -> list[torch.nn.Module]:
    """The modules below which all of the model lies."""
    if not is_forge():
        return [shared.sd_model]
    objects = shared.sd_model.forge_objects_original
    return [objects.unet.model, objects.clip.cond_stage_model]


def checkpoint() -> str:
    return shared.sd_model.sd_checkpoint_info.title


# Weights


def weights() -> str:
    """A hash of all weights of the model as they are without LoRAs."""
    digest = hashlib.sha256()
    for name, tensor in _without_merges():
        digest.update(name.encode())
        if tensor is not None:
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def weights_by_layer() -> dict[str, str]:
    """The same, one by one."""
    return {
        name: "" if tensor is None else hashlib.sha256(_bytes(tensor)).hexdigest()[:16]
        for name, tensor in _without_merges()
    }


def _bytes(tensor: torch.Tensor) -> Any:
    plain = tensor.detach().to("cpu").contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def _without_merges() -> Iterator[tuple[str, torch.Tensor | None]]:
    if is_forge():
        objects = shared.sd_model.forge_objects_original
        for part, patcher in (("unet", objects.unet), ("clip", objects.clip.patcher)):
            kept = _kept_by_forge(patcher)
            for name, tensor in patcher.model.state_dict().items():
                if name != "predictor.log_sigmas":  # after Zero Terminal SNR Forge puts them back from rounded sigmas
                    yield f"{part}.{name}", kept.get(name, tensor)
        return
    kept = _kept_by_a1111()
    for name, tensor in shared.sd_model.state_dict().items():
        if name != "alphas_cumprod":  # A1111 computes it anew for every request, by an option
            yield name, kept.get(name, tensor)


def _kept_by_forge(patcher: Any) -> dict[str, torch.Tensor]:
    """The former weights of what holds a merge."""
    loader = getattr(patcher, "lora_loader", None)
    backup = loader.backup if loader else patcher.backup
    return {name: kept if isinstance(kept, torch.Tensor) else kept.weight for name, kept in backup.items()}


def _kept_by_a1111() -> dict[str, torch.Tensor | None]:
    kept = {}
    for name, module in shared.sd_model.named_modules():
        if not getattr(module, "network_current_names", ()):
            continue
        weight, bias = getattr(module, "network_weights_backup", None), getattr(module, "network_bias_backup", None)
        if isinstance(module, torch.nn.MultiheadAttention):
            kept[f"{name}.in_proj_weight"], kept[f"{name}.out_proj.weight"] = weight
            kept[f"{name}.out_proj.bias"] = bias
        else:
            kept[f"{name}.weight"], kept[f"{name}.bias"] = weight, bias
    return kept


# Conditions


def caches() -> list[Cache]:
    """The host's caches of conditions that hold something: where, and `(key, conditions)`."""
    classes = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    names = dict.fromkeys(name for of in classes for name in vars(of) if name.startswith("cached_"))
    found = [(name, getattr(classes[1], name)) for name in names]
    return [(name, cache) for name, cache in found if isinstance(cache, list) and cache[0] is not None]


def wrong_conditions(networks: Any) -> tuple[int, list[str]]:
    """How many of the host's cached conditions were encoded anew, and where they are not what the host encodes now.

    `networks` are the parsed tags that the host has last loaded LoRAs for. Only conditions that belong to these, and to
    the model and the options at hand, can be encoded anew without a change to what is loaded.
    """
    checked, wrong = 0, []
    for name, (key, cached, *_) in caches():
        function = prompt_parser.get_learned_conditioning
        if not name.endswith("uc"):
            function = prompt_parser.get_multicond_learned_conditioning
        at = next(place for place, part in enumerate(key) if isinstance(part, bool))  # whether it uses old scheduling
        steps, hires_steps, old_scheduling, skip = key[at - 2 : at + 2]
        data = next((part for part in key if isinstance(part, dict)), {})
        model = shared.sd_model.sd_checkpoint_info
        if data != networks or skip != shared.opts.CLIP_stop_at_last_layers or not any(part is model for part in key):
            continue
        with torch.inference_mode() if is_forge() else torch.no_grad(), devices.autocast():
            if is_forge() and hasattr(shared.sd_model, "set_clip_skip"):
                shared.sd_model.set_clip_skip(int(skip))
            own = function(shared.sd_model, key[0], steps, hires_steps, old_scheduling)
        checked += 1
        some, others = list(_tensors(cached)), list(_tensors(own))
        if len(some) != len(others) or not all(_same(one, other) for one, other in zip(some, others)):
            wrong.append(f"{name} of {list(key[0])}")
    return checked, wrong


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit by bit; a LoRA of infinite strength makes values that are no numbers."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from _tensors(part)
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif hasattr(tree, "__dict__"):
        yield from _tensors(vars(tree))
