"""Networks in the Forge family: loading them puts clones of the model's patchers, with their patches, into
`forge_objects`.
"""

from types import SimpleNamespace

from modules import shared

__all__ = ["available_network_aliases", "available_networks", "forbidden_network_aliases", "loaded_networks"]

available_networks: dict = {}
available_network_aliases: dict = {}
forbidden_network_aliases: dict = {}
loaded_networks: list = []


def load(names, te_multipliers, unet_multipliers, add, *more):
    """`add(objects, entry, unet, te)` puts a network's patches into clones of the patchers; `more` is what the host
    knows a set of networks by, besides their files and strengths.
    """
    model = shared.sd_model
    loaded_networks.clear()
    on_disk = [available_network_aliases.get(name) for name in names]
    for name, entry in zip(names, on_disk):
        loaded_networks.append(
            SimpleNamespace(name=name, mentioned_name=name, mtime=entry.mtime, network_on_disk=entry)
        )
    wanted = [(entry, unet, te) for entry, unet, te in zip(on_disk, unet_multipliers or [], te_multipliers or [])]
    identity = str([[entry.filename, *strengths, *more] for entry, *strengths in wanted])
    if model.current_lora_hash == identity:
        return
    model.current_lora_hash = identity
    original = model.forge_objects_original
    model.forge_objects.unet, model.forge_objects.clip = original.unet, original.clip
    for entry, unet, te in wanted:
        add(model.forge_objects, entry, unet, te)
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


def contents(entry, as_patch):
    """A file's patches in the host's form. Raises OSError for one that is not whole."""
    if entry.patches is None:
        raise OSError("the file is incomplete")
    return {key: as_patch(*patch) for key, patch in entry.patches.items()}


def of(part, patches):
    """Those of the patches that change the `part` of the model."""
    return {
        key: patch for key, patch in patches.items() if (key if isinstance(key, str) else key[0]).startswith(f"{part}.")
    }
