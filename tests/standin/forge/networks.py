"""The host's networks, which may be merged in each forward of a model in low bits."""

from backend.args import dynamic_args
from backend.patcher.lora import as_patch
from bases.forge_networks import *  # noqa: F403  (the host's lists)
from bases.forge_networks import contents, load, of
from modules import shared


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    unet = shared.sd_model.forge_objects.unet.model
    online = dynamic_args["online_lora"] and not unet.storage_dtype.is_floating_point

    def add(objects, entry, unet, te):
        patches = _read(entry)
        if of_unet := of("diffusion_model", patches):
            objects.unet = objects.unet.clone()
            objects.unet.add_patches(filename=entry.filename, patches=of_unet, strength_patch=unet, online_mode=online)
        if of_text := of("transformer", patches):
            objects.clip = objects.clip.clone()
            objects.clip.patcher.add_patches(
                filename=entry.filename, patches=of_text, strength_patch=te, online_mode=online
            )

    load(names, te_multipliers, unet_multipliers, add, online)


def _read(entry):
    return contents(entry, as_patch)
