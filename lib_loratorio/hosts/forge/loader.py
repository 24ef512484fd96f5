"""The prompt's networks, each loaded alone by the host's own loader."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import networks

from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.errors import told
from lib_loratorio.hosts.forge.backend import Patches, this_backend
from lib_loratorio.hosts.webui.pool import is_available, pooled
from lib_loratorio.hosts.webui.request import extra_network_data, matches_nothing, names, require
from lib_loratorio.loras.tag import LOCAL, Part, part
from lib_loratorio.settings import Settings

backend = this_backend()


@dataclass(frozen=True)
class Adapter:
    """A network as the prompt asks for it: `unet` and `clip` are the host's, with this network and no other."""

    name: str
    filename: str
    mtime: float
    te: float
    unet_strength: float
    dyn: int | None
    unet: Any
    clip: Any
    patches: Patches
    changes_text: bool
    part: Part = LOCAL
    pooled: bool = False

    @property
    def key(self) -> tuple:
        return self.name, self.filename, self.mtime, self.te, self.unet_strength, self.dyn


def adapters_of(p, settings: Settings) -> list[Adapter]:
    """The adapters of this pass, the prompt's and the pool's. Raises LoratorioError and SettingsError."""
    adapters = requested_adapters(p)
    if not settings.pool:
        return adapters
    with _loader(p.sd_model):
        return adapters + pooled(
            p,
            settings,
            adapters,
            lambda name, strength: replace(_adapter(p, LOCAL, name, strength, strength, None), pooled=True),
        )


def requested_adapters(p) -> list[Adapter]:
    """The prompt's adapters, without those of strength 0. Raises LoratorioError for a missing one."""
    data = extra_network_data(p)
    require(names(data), is_available)
    if not p.is_hr_pass:
        require(names(getattr(p, "hr_extra_network_data", None) or {}), is_available)
    wanted = [_tag(params) for kind in ("lora", "lyco") for params in data.get(kind, []) if params.positional]
    with _loader(p.sd_model):
        adapters = [_adapter(p, part, name, te, unet, dyn) for name, te, unet, dyn, part in wanted if te or unet]
    return [adapter for adapter in adapters if adapter.patches or adapter.changes_text]


def _tag(params) -> tuple[str, float, float, int | None, Part]:
    """Name, text encoder's and UNet's strength, and rank, as the host reads a tag, and how the adapter takes part."""
    positional, named = params.positional, params.named
    te = float(named.get("te", positional[1] if len(positional) > 1 else 1.0))
    unet = float(named.get("unet", positional[2] if len(positional) > 2 else te))
    dyn = named.get("dyn", positional[3] if len(positional) > 3 else None)
    return positional[0], te, unet, None if dyn is None else int(dyn), part(named, positional[0])


def _adapter(p, part: Part, *tag) -> Adapter:
    """A tag's adapter, loaded once a request and model: the batches of a request prepare their samplings anew."""
    kept, key = p.loratorio.adapters, (id(p.sd_model), tag)
    if key not in kept:
        kept[key] = _loaded_alone(p.sd_model, *tag)
    return replace(kept[key], part=part)


def _loaded_alone(sd_model, name: str, te: float, unet: float, dyn: int | None) -> Adapter:
    original = sd_model.forge_objects_original
    require([name], lambda name: _is_loaded(name, te, unet, dyn))
    (network,) = networks.loaded_networks
    alone = sd_model.forge_objects
    patches = backend.patches(alone.unet, original.unet)
    text = backend.patches(alone.clip.patcher, original.clip.patcher)
    if not patches and not text:
        raise matches_nothing(name)
    filename = network.network_on_disk.filename
    return Adapter(
        name,
        filename,
        network.mtime,
        te,
        unet,
        dyn,
        alone.unet,
        alone.clip,
        patches if unet else {},
        bool(text) and te != 0,
    )


def _is_loaded(name: str, te: float, unet: float, dyn: int | None) -> bool:
    """Has the host load a network, and tells whether it could read the file."""
    try:
        networks.load_networks([name], [te], [unet])  # these hosts read a rank in a tag, and do nothing with it
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logging.warning(told(f"LoRA {name}: {type(error).__name__}: {error}"))
        return False
    return bool(networks.loaded_networks)


@contextmanager
def _loader(sd_model) -> Iterator[None]:
    """The host's loader at our disposal: afterwards it has loaded what it had before."""
    former = list(networks.loaded_networks)
    kept = {
        name: getattr(sd_model, name)
        for name in ("forge_objects", "forge_objects_after_applying_lora", "current_lora_hash")
    }
    sd_model.forge_objects = sd_model.forge_objects.shallow_copy()
    sd_model.current_lora_hash = (
        None  # else what the host has loaded already would come with the changes of other extensions
    )
    try:
        yield
    finally:
        networks.loaded_networks[:] = former
        for name, value in kept.items():
            setattr(sd_model, name, value)


@contextmanager
def text_encoder_of(sd_model, adapters: Sequence[Adapter]) -> Iterator[None]:
    """The host encodes prompts with these adapters' text encoder for the time of the block."""
    former, original = sd_model.forge_objects, sd_model.forge_objects_original.clip
    clip = original.clone() if adapters else original
    for adapter in adapters:
        clip.patcher = backend.with_patches(clip.patcher, adapter.clip.patcher, original.patcher)
    sd_model.forge_objects = former.shallow_copy()
    sd_model.forge_objects.clip = clip
    try:
        with backend.merging(clip.patcher):
            yield
    finally:
        sd_model.forge_objects = former
