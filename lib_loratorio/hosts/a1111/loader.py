"""The networks as the host's loader has them, all of a prompt or some alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import networks
from modules import shared

from lib_loratorio.hosts.webui.pool import is_available, pooled
from lib_loratorio.hosts.webui.request import extra_network_data, matches_nothing, names, parts_by_name, require
from lib_loratorio.loras.metadata import notes
from lib_loratorio.loras.tag import LOCAL, Part
from lib_loratorio.settings import Settings

UNET = "diffusion_model"
"""How the names begin that the host gives the UNet's layers; all others are the text encoders'."""

KINDS = {"SD1": "is_sd1", "SD2": "is_sd2", "SDXL": "is_sdxl"}
"""The host's names for the kinds of models that networks are made for, and how a model tells that it is one."""

TRAINED_ON = {"ss_base_model_version", "ss_v2"}
"""What trainers write into a file of the model that they started from."""


@dataclass(frozen=True)
class Adapter:
    """A network as the prompt or the pool asks for it. Its Network object holds the strengths; a pool's is a copy of
    the host's.
    """

    network: Any
    name: str
    te: float
    unet: float
    dyn: int | None
    part: Part = LOCAL
    pooled: bool = False

    @classmethod
    def of(cls, network, part: Part = LOCAL, pooled: bool = False) -> Adapter:
        return cls(network, network.name, network.te_multiplier, network.unet_multiplier, network.dyn_dim, part, pooled)

    @property
    def filename(self) -> str:
        return self.network.network_on_disk.filename

    @property
    def key(self) -> tuple:
        return self.name, self.filename, self.network.mtime, self.te, self.unet, self.dyn

    @property
    def changes_text(self) -> bool:
        layers = any(not name.startswith(UNET) for name in self.network.modules)
        return bool(self.network.bundle_embeddings) or (layers and self.te != 0)

    @property
    def changes_unet(self) -> bool:
        return self.unet != 0 and any(name.startswith(UNET) for name in self.network.modules)


def adapters_of(p, settings: Settings) -> list[Adapter]:
    """The adapters of this pass, the prompt's and the pool's. Raises LoratorioError and SettingsError."""
    adapters = requested_adapters(p)
    if not settings.pool:
        return adapters
    with loaded(()):
        return adapters + pooled(p, settings, adapters, lambda name, strength: _of_pool(p, name, strength))


def _of_pool(p, name: str, strength: float) -> Adapter:
    """One of the pool's adapters, loaded once a request and model; the caller puts back what is loaded."""
    kept, key = p.loratorio.adapters, (shared.sd_model.sd_checkpoint_info, name, strength)
    if key not in kept:
        if _is_for_another_kind(networks.available_networks[name]):
            raise matches_nothing(name)
        networks.load_networks([name], [strength], [strength], [None])
        require([name], lambda name: networks.loaded_networks)
        adapter = Adapter.of(_copy(networks.loaded_networks[0]), pooled=True)
        if not (adapter.changes_unet or adapter.changes_text):
            raise matches_nothing(name)
        kept[key] = adapter
    return kept[key]


def _is_for_another_kind(network_on_disk) -> bool:
    """Whether a file is for another kind of model, as far as the user's notes or else the file tell the host.

    Layers do not tell: many of one kind's have the names, and some the shapes, of another's. What the host takes for
    SD1's has any metadata and no sign of the other kinds, and may be theirs, unless the trainer has told.
    """
    kind = notes(network_on_disk.filename).get("sd version") or network_on_disk.sd_version.name
    if kind == "SD1" and TRAINED_ON.isdisjoint(network_on_disk.metadata):
        return False
    return kind in KINDS and not getattr(shared.sd_model, KINDS[kind])


def _copy(network) -> Any:
    """A Network with modules of its own, of the same tensors: a later prompt that has it too sets the strengths of the
    host's.
    """
    own = copy(network)
    own.modules = {name: copy(module) for name, module in network.modules.items()}
    for module in own.modules.values():
        module.network = own
    return own


def requested_adapters(p) -> list[Adapter]:
    """The prompt's adapters, without those of strength 0. Raises LoratorioError for a missing one."""
    loaded = {network.name for network in networks.loaded_networks}
    require(names(extra_network_data(p)), lambda name: name in loaded)
    if not p.is_hr_pass:
        require(names(getattr(p, "hr_extra_network_data", None) or {}), is_available)
    parts = parts_by_name(extra_network_data(p))
    without_tag = iter(())  # has what the host loads by its setting "Add network to prompt"
    adapters = [
        Adapter.of(network, next(parts.get(network.name, without_tag), LOCAL)) for network in networks.loaded_networks
    ]
    adapters = [adapter for adapter in adapters if adapter.te != 0 or adapter.unet != 0]
    for adapter in adapters:
        if not adapter.network.modules and not adapter.network.bundle_embeddings:
            raise matches_nothing(adapter.name)
    return [adapter for adapter in adapters if adapter.changes_unet or adapter.changes_text]


@contextmanager
def loaded(adapters: Sequence[Adapter]) -> Iterator[None]:
    """The given networks loaded by the host's own loader for the time of the block, then the former ones."""
    former = [Adapter.of(network) for network in networks.loaded_networks]
    try:
        _load(adapters)
        yield
    finally:
        _load(former)


def _load(adapters: Sequence[Adapter]) -> None:
    # The loader reads a file anew unless the network is in its memory, whose default size is 0.
    memory = dict(networks.networks_in_memory)
    networks.networks_in_memory.update({adapter.name: adapter.network for adapter in adapters})
    try:
        networks.load_networks(
            [adapter.name for adapter in adapters],
            [adapter.te for adapter in adapters],
            [adapter.unet for adapter in adapters],
            [adapter.dyn for adapter in adapters],
        )
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
