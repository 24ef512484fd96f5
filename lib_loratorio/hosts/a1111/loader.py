"""The networks as the host's loader has them, all of a prompt or some alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any
from weakref import ref

import networks
from modules import shared

from lib_loratorio.hosts.webui.failures import matches_nothing
from lib_loratorio.hosts.webui.pool import pooled
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.hosts.webui.suited import is_for_another_model
from lib_loratorio.hosts.webui.tags import is_available, names, requested, requested_in_hires, require, tags_by_name
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.block_weights import BlockWeights
from lib_loratorio.loras.kinds import KOHYA
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts
from lib_loratorio.settings import Settings

UNET = "diffusion_model"
"""How the names begin that the host gives the UNet's layers; all others are the text encoders'."""

LAYOUTS = (KOHYA,)
"""The layouts of files that the host reads; others it leaves out without a word."""


def name_of(network) -> str:
    """What the prompt calls a network: LoRA Block Weight gives those that it has changed another name."""
    return getattr(network, "mentioned_name", None) or network.name


def adapter_of(network, tag: LoraTag = LOCAL, pooled: bool = False, changed: Hashable = None) -> Adapter:
    """A Network object of the host, which holds its strengths, as an adapter, whose `source` it is.

    `changed` tells it apart from a network of the same file whose contents are others.
    """
    te, unet = network.te_multiplier, network.unet_multiplier
    of_unet = [name.startswith(UNET) for name in network.modules]
    return Adapter(
        name=name_of(network),
        path=network.network_on_disk.filename,
        text_strength=te,
        denoiser_strength=unet,
        changes_text=bool(network.bundle_embeddings) or (not all(of_unet) and te != 0),
        changes_denoiser=any(of_unet) and unet != 0,
        source=network,
        version=(network.mtime, network.dyn_dim, changed),
        tag=tag,
        pooled=pooled,
    )


def adapters_of(p, settings: Settings) -> list[Adapter]:
    """The adapters of this pass, the prompt's and the pool's. Raises LoratorioError."""
    adapters = requested_adapters(p)
    if not settings.pool:
        return adapters
    with loaded(()):
        return adapters + pooled(p, settings, adapters, lambda name, strength: _of_pool(p, name, strength))


def requested_adapters(p) -> list[Adapter]:
    """The prompt's adapters, without those of strength 0. Raises LoratorioError for a missing one."""
    requests, later = requested(p), requested_in_hires(p)
    loaded = {name_of(network) for network in networks.loaded_networks}
    require(names(requests), lambda name: name in loaded, LAYOUTS)
    require(names(later), is_available, LAYOUTS)
    tags, without_tag = tags_by_name(requests), iter(())
    found = [(network, next(tags.get(name_of(network), without_tag), LOCAL)) for network in networks.loaded_networks]
    found = [(network, tag) for network, tag in found if acts(network.te_multiplier, network.unet_multiplier)]
    for network, _ in found:
        if not network.modules and not network.bundle_embeddings:
            raise matches_nothing(name_of(network), network.network_on_disk.filename, LAYOUTS)
    adapters = [_tagged(network, tag) for network, tag in found]
    return [adapter for adapter in adapters if adapter.changes_denoiser or adapter.changes_text]


def _tagged(network, tag: LoraTag) -> Adapter:
    """A network of the prompt with its tag's block weights. Raises SettingsError where these are another model's."""
    if network.name != name_of(network):
        # LoRA Block Weight has multiplied what it holds. It also changes its strengths, in the middle of the sampling.
        return adapter_of(_copy(network), replace(tag, blocks=None, elements=""), changed=ref(network))
    if tag.blocks is None:
        return adapter_of(network, tag)
    of_unet = [name for name in network.modules if name.startswith(UNET)]
    tag.blocks.require_suited(of_unet, name_of(network))
    weighted = _weighted(network, tag.blocks)
    return replace(adapter_of(weighted, tag), switched_off=len(set(of_unet) - weighted.modules.keys()))


def _weighted(network, weights: BlockWeights) -> Any:
    """A copy of a Network whose modules have a strength each, without those of strength 0.

    The host knows by a network's name whether the weights have it already.
    """
    own = _copy(network)
    own.name = f"{network.name}:lbw={weights.listed}"
    factors = {name: weights.factor(name) for name in own.modules}
    own.modules = {name: module for name, module in own.modules.items() if factors[name]}
    for name, module in own.modules.items():
        module.multiplier = _multiplied(module.multiplier, factors[name])
    return own


def source_of(adapter: Adapter) -> Any:
    """An adapter's Network, at the strength that it has in the step at hand: the host knows others by their names."""
    if adapter.factor == 1:
        return adapter.source
    own = _copy(adapter.source)
    own.name = f"{own.name}:ltw={adapter.factor!r}"
    for module in own.modules.values():
        module.multiplier = _multiplied(module.multiplier, adapter.factor)
    return own


def _multiplied(multiplier: Callable[[], float], factor: float) -> Callable[[], float]:
    return lambda: multiplier() * factor


def _of_pool(p, name: str, strength: float) -> Adapter:
    """One of the pool's adapters, loaded once a request and model; the caller puts back what is loaded."""
    known, key = state_of(p).adapters, (shared.sd_model.sd_checkpoint_info, name, strength)
    if key not in known:
        on_disk = networks.available_networks[name]
        if is_for_another_model(on_disk, shared.sd_model):
            raise matches_nothing(name, on_disk.filename, LAYOUTS)
        networks.load_networks([name], [strength], [strength], [None])
        require([name], lambda name: networks.loaded_networks, LAYOUTS)
        adapter = adapter_of(_copy(networks.loaded_networks[0]), pooled=True)
        if not (adapter.changes_denoiser or adapter.changes_text):
            raise matches_nothing(name, on_disk.filename, LAYOUTS)
        known[key] = adapter
    return known[key]


def _copy(network) -> Any:
    """A Network with modules of its own, of the same tensors: a later prompt sets the strengths of the host's."""
    own = copy(network)
    own.modules = {name: copy(module) for name, module in network.modules.items()}
    for module in own.modules.values():
        module.network = own
    return own


@contextmanager
def loaded(adapters: Sequence[Adapter]) -> Iterator[None]:
    """The given networks loaded by the host's own loader for the time of the block, then the former ones."""
    former = [adapter_of(network) for network in networks.loaded_networks]
    try:
        _load(adapters)
        yield
    finally:
        _load(former)


def _load(adapters: Sequence[Adapter]) -> None:
    # The loader reads a file anew unless the network is in its memory, whose default size is 0.
    memory = dict(networks.networks_in_memory)
    networks.networks_in_memory.update({adapter.name: adapter.source for adapter in adapters})
    try:
        networks.load_networks(
            [adapter.name for adapter in adapters],
            [adapter.text_strength for adapter in adapters],
            [adapter.denoiser_strength for adapter in adapters],
            [adapter.version[1] for adapter in adapters],
        )
        # The loader prefers what is loaded by these names already, which can be a network without our block weights.
        networks.loaded_networks[:] = [adapter.source for adapter in adapters]
    finally:
        networks.networks_in_memory.clear()
        networks.networks_in_memory.update(memory)


def restore_base() -> None:
    """Takes a former request's merge out of the weights, by the host's own rule, for every layer."""
    loaded = list(networks.loaded_networks)
    networks.loaded_networks.clear()
    try:
        for layer in shared.sd_model.network_layer_mapping.values():
            networks.network_apply_weights(layer)
    finally:
        networks.loaded_networks[:] = loaded
