"""What LoRAtorio may have left in the WebUI after a request."""

from __future__ import annotations

import functools
import gc
import sys
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import networks
from modules import shared

from loratorio_soak import model

OURS = "lib_loratorio"
HOSTS = ("modules", "modules_forge", "backend", "ldm_patched", "ldm", "sgm", "k_diffusion", "networks", "network")
"""Packages and modules of the WebUIs, in which nothing of ours may be."""


def origin(function: Any) -> str:
    """Where a function was written; of a method, its class."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def of_ours(function: Any) -> bool:
    return origin(function).startswith(OURS) or type(function).__module__.startswith(OURS)


# Hooks and overrides of the model's layers


def hooks() -> Counter[str]:
    """The hooks and overridden methods of the model's modules, by kind of module and by where they were written."""
    found: Counter[str] = Counter()
    for root in model.roots():
        for module in root.modules():
            for name, value in vars(module).items():
                kind = type(module).__name__
                if name.endswith("_hooks") and value:
                    found.update(f"{kind}.{name} {origin(hook)}" for hook in value.values())
                elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
                    found[f"{kind}.{name} {origin(value)}"] += 1
    return found


# Everything else that is known to be changed for the time of a sampling


def left() -> list[str]:
    """Traces of ours that should be gone, described."""
    found = [f"hook {name}" for name in hooks() if f" {OURS}" in name]
    found += [f"{where} is {origin(value)}" for where, value in _in_hosts_modules() if of_ours(value)]
    found += [f"{where} is {origin(value)}" for where, value in _in_options() if of_ours(value)]
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{OURS}.hosts.") and getattr(module, "_current", None) is not None:
            found.append(f"{name}._current is {module._current}")
    return found + _left_in_requests()


def _in_hosts_modules() -> Iterator[tuple[str, Any]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in HOSTS and name != "modules.scripts":
            for attribute, value in list(vars(module).items()):
                if isinstance(value, (types.FunctionType, types.MethodType)):
                    yield f"{name}.{attribute}", value


def _in_options() -> Iterator[tuple[str, Any]]:
    """The functions in the patchers' options."""
    if not model.is_forge():
        return
    for name in ("forge_objects", "forge_objects_original", "forge_objects_after_applying_lora"):
        objects = getattr(shared.sd_model, name)
        for part, patcher in (("unet", objects.unet), ("clip", objects.clip.patcher)):
            for path, value in _functions(patcher.model_options):
                yield f"{name}.{part}.model_options{path}", value


def _functions(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from _functions(part, f"[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for place, part in enumerate(tree):
            yield from _functions(part, f"{path}[{place}]")
    elif callable(tree):
        yield path, tree


# Requests

_requests: list[weakref.ref] = []


def watch(p: Any) -> None:
    """A request begins."""
    _requests[:] = [known for known in _requests if known() is not None]
    _requests.append(weakref.ref(p))


def _left_in_requests() -> list[str]:
    """What requests that are over, and still in memory, hold of ours."""
    from lib_loratorio.hosts.webui.state import known_state  # of an extension that may be loaded after this one

    found = []
    for p in filter(None, (known() for known in _requests)):
        found += [f"p.{name} of a request is {origin(value)}" for name, value in vars(p).items() if of_ours(value)]
        if known_state(p) is not None:
            found.append("the state of a request that is over is held")
        sampler = getattr(p, "sampler", None)
        if sampler is not None and "launch_sampling" in vars(sampler):
            found.append(f"a request that is over has a sampler with {origin(vars(sampler)['launch_sampling'])}")
    return found


def instances() -> Counter[str]:
    """How many objects of ours are in memory, by class."""
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if getattr(kind, "__module__", "").__class__ is str and kind.__module__.startswith(OURS):
            found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return found


# The host's own LoRAs

_at_sampling: dict[str, Any] = {}
"""What was loaded where the last sampling began; empty where a request has ended before."""


def loaded() -> dict[str, Any]:
    """The LoRAs that the host has loaded, and what the Forge family remembers of them."""
    strengths = [
        [network.name, *(getattr(network, name, None) for name in ("te_multiplier", "unet_multiplier", "dyn_dim"))]
        for network in networks.loaded_networks
    ]
    found = {"networks": strengths}
    if model.is_forge():
        objects = shared.sd_model.forge_objects_after_applying_lora
        found["hash"] = str(getattr(shared.sd_model, "current_lora_hash", None))
        for part, patcher in (("unet", objects.unet), ("clip", objects.clip.patcher)):
            found[part] = [
                str(key) for key in (patcher.lora_patches if hasattr(patcher, "lora_patches") else patcher.patches)
            ]
    return found


def forget_sampling() -> None:
    _at_sampling.clear()


def remember_sampling(p: Any) -> None:
    """A sampling is about to begin: the host has loaded its LoRAs, and LoRAtorio has done nothing yet."""
    data = p.hr_extra_network_data if getattr(p, "is_hr_pass", False) else p.extra_network_data
    _at_sampling.update(loaded=loaded(), data=data, model=weakref.ref(shared.sd_model))


def tags_at_sampling() -> Any:
    return _at_sampling.get("data")


def changed_networks() -> list[str]:
    """How what is loaded differs from what was loaded where the last sampling began, with the same model."""
    before, now = _at_sampling.get("loaded"), loaded()
    if before is None or before == now or _at_sampling["model"]() is not shared.sd_model:
        return []
    return [f"{name} was {before[name]}, is {now[name]}" for name in now if before.get(name) != now[name]]


def collect(function: Callable[[], Any] = gc.collect) -> None:
    """Frees what nobody holds, and gives the memory back to the system, so that what is resident is what is held."""
    function()
    try:
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        pass


def resident() -> int:
    """Bytes of this process that are in memory."""
    import psutil

    return psutil.Process().memory_info().rss
