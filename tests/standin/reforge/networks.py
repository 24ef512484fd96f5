"""The host's networks: of a file is read what has a strength other than 0."""

from bases.adapters import as_patch
from bases.forge_networks import *  # noqa: F403  (the host's lists)
from bases.forge_networks import contents, load, of


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    load(names, te_multipliers, unet_multipliers, _add)


def _add(objects, entry, unet, te):
    patches = _read(entry)
    known = {**(of("diffusion_model", patches) if unet else {}), **(of("transformer", patches) if te else {})}
    if unet or te:
        objects.unet, objects.clip = objects.unet.clone(), objects.clip.clone()
        objects.unet.add_patches(known, unet)
        objects.clip.patcher.add_patches(known, te)


def _read(entry):
    return contents(entry, as_patch)
