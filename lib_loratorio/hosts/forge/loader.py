"""The prompt's networks, each loaded alone by the host's own loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import networks

from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.hosts.forge.backend import Patches, this_backend
from lib_loratorio.hosts.webui.failures import matches_nothing
from lib_loratorio.hosts.webui.pool import pooled
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.hosts.webui.tags import Wanted, is_available, names, requested, requested_in_hires, require
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.block_weights import BlockWeights
from lib_loratorio.loras.kinds import DIFFUSERS, KOHYA, PEFT
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts
from lib_loratorio.settings import Settings

backend = this_backend()

LAYOUTS = (KOHYA, DIFFUSERS, PEFT)
"""The layouts of files that the host reads."""


class Network(NamedTuple):
    """An adapter's `source`: the host's UNet patcher and CLIP with this network alone, and the UNet's patches."""

    unet: Any
    clip: Any
    patches: Patches


def adapters_of(p, settings: Settings) -> list[Adapter]:
    """The adapters of this pass, the prompt's and the pool's. Raises LoratorioError."""
    adapters = requested_adapters(p)
    if not settings.pool:
        return adapters

    def of_pool(name: str, strength: float) -> Adapter:
        return replace(_adapter(p, Wanted(name, strength, strength), LOCAL), pooled=True)

    with _loader(p.sd_model):
        return adapters + pooled(p, settings, adapters, of_pool)


def requested_adapters(p) -> list[Adapter]:
    """The prompt's adapters, without those of strength 0. Raises LoratorioError for a missing one."""
    requests = requested(p)
    require(names(requests), is_available, LAYOUTS)
    require(names(requested_in_hires(p)), is_available, LAYOUTS)
    with _loader(p.sd_model):
        adapters = [_adapter(p, wanted, tag) for wanted, tag in requests if acts(wanted.te, wanted.unet)]
    return [adapter for adapter in adapters if adapter.changes_denoiser or adapter.changes_text]


def _adapter(p, wanted: Wanted, tag: LoraTag) -> Adapter:
    """An adapter, loaded once a request and model: the batches of a request prepare their samplings anew."""
    known, key = state_of(p).adapters, (id(p.sd_model), wanted, tag.blocks)
    if key not in known:
        known[key] = _loaded_alone(p.sd_model, wanted, tag.blocks)
    return replace(known[key], tag=tag)


def _loaded_alone(sd_model, wanted: Wanted, weights: BlockWeights | None = None) -> Adapter:
    """Raises LoratorioError for a network that is missing or for another model, and for another model's weights."""
    original = sd_model.forge_objects_original
    _load(wanted)
    (network,) = networks.loaded_networks
    unet, clip = sd_model.forge_objects.unet, sd_model.forge_objects.clip
    patches = backend.patches(unet, original.unet)
    text = backend.patches(clip.patcher, original.clip.patcher)
    path = network.network_on_disk.filename
    if not patches and not text:
        if acts(wanted.te) and acts(wanted.unet):
            raise matches_nothing(wanted.name, path, LAYOUTS)
        # reForge does not read what has a strength of 0, so that this may be all there is.
        _loaded_alone(sd_model, wanted._replace(te=1.0, unet=1.0))
    of_denoiser = len(patches)
    if weights:
        weights.require_suited(patches, wanted.name)
        unet = backend.weighted(unet, original.unet, weights)
        clip = clip.clone()
        clip.patcher = backend.weighted(clip.patcher, original.clip.patcher, weights)
        patches = backend.patches(unet, original.unet)
        text = backend.patches(clip.patcher, original.clip.patcher)
    return Adapter(
        name=wanted.name,
        path=path,
        text_strength=wanted.te,
        denoiser_strength=wanted.unet,
        changes_text=bool(text) and wanted.te != 0,
        changes_denoiser=bool(patches) and wanted.unet != 0,
        source=Network(unet, clip, patches if wanted.unet else {}),
        version=(network.mtime, wanted.rank),
        switched_off=of_denoiser - len(patches),
    )


def _load(wanted: Wanted) -> None:
    """Has the host load one network. Raises LoratorioError, with the reason where the host raises one."""
    reason = ""
    try:
        networks.load_networks([wanted.name], [wanted.te], [wanted.unet])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        networks.loaded_networks.clear()
        reason = f"{type(error).__name__}: {error}"
    require([wanted.name], lambda name: bool(networks.loaded_networks), LAYOUTS, reason)


@contextmanager
def _loader(sd_model) -> Iterator[None]:
    """The host's loader at our disposal: afterwards it has loaded what it had before."""
    former = list(networks.loaded_networks)
    before = {
        name: getattr(sd_model, name)
        for name in ("forge_objects", "forge_objects_after_applying_lora", "current_lora_hash")
    }
    sd_model.forge_objects = sd_model.forge_objects.shallow_copy()
    # Else what the host has loaded already would come with the changes of other extensions.
    sd_model.current_lora_hash = None
    try:
        yield
    finally:
        networks.loaded_networks[:] = former
        for name, value in before.items():
            setattr(sd_model, name, value)


@contextmanager
def text_encoder_of(sd_model, adapters: Sequence[Adapter]) -> Iterator[None]:
    """The host encodes prompts with these adapters' text encoder for the time of the block."""
    former, original = sd_model.forge_objects, sd_model.forge_objects_original.clip
    clip = original.clone() if adapters else original
    for adapter in adapters:
        clip.patcher = backend.with_patches(clip.patcher, adapter.source.clip.patcher, original.patcher)
    sd_model.forge_objects = former.shallow_copy()
    sd_model.forge_objects.clip = clip
    try:
        with backend.merging(clip.patcher):
            yield
    finally:
        sd_model.forge_objects = former
