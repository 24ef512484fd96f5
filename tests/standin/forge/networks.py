"""The host's networks: loading them puts clones of the model's patchers, with their patches, into `forge_objects`."""

from types import SimpleNamespace

from backend.args import dynamic_args
from backend.patcher.lora import as_patch
from modules import shared

available_networks: dict = {}
available_network_aliases: dict = {}
forbidden_network_aliases: dict = {}
loaded_networks: list = []


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    model = shared.sd_model
    loaded_networks.clear()
    on_disk = [available_network_aliases.get(name) for name in names]
    for name, entry in zip(names, on_disk):
        loaded_networks.append(
            SimpleNamespace(name=name, mentioned_name=name, mtime=entry.mtime, network_on_disk=entry)
        )
    online = dynamic_args["online_lora"] and not model.forge_objects.unet.model.storage_dtype.is_floating_point
    wanted = [
        [entry.filename, unet, te, online]
        for entry, unet, te in zip(on_disk, unet_multipliers or [], te_multipliers or [])
    ]
    if model.current_lora_hash == str(wanted):
        return
    model.current_lora_hash = str(wanted)
    model.forge_objects.unet, model.forge_objects.clip = (
        model.forge_objects_original.unet,
        model.forge_objects_original.clip,
    )
    for entry, (filename, unet, te, online) in zip(on_disk, wanted):
        patches = _read(entry)
        of_unet = {key: patch for key, patch in patches.items() if _name(key).startswith("diffusion_model.")}
        of_text = {key: patch for key, patch in patches.items() if _name(key).startswith("transformer.")}
        if of_unet:
            model.forge_objects.unet = model.forge_objects.unet.clone()
            model.forge_objects.unet.add_patches(
                filename=filename, patches=of_unet, strength_patch=unet, online_mode=online
            )
        if of_text:
            model.forge_objects.clip = model.forge_objects.clip.clone()
            model.forge_objects.clip.patcher.add_patches(
                filename=filename, patches=of_text, strength_patch=te, online_mode=online
            )
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


def _read(entry):
    if entry.patches is None:
        raise OSError("the file is incomplete")
    return {key: as_patch(*patch) for key, patch in entry.patches.items()}


def _name(key):
    return key if isinstance(key, str) else key[0]
