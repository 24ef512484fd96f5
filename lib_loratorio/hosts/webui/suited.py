"""Whether a LoRA is there, and is made for the kind of model at hand, as far as the host tells without loading it."""

from __future__ import annotations

from typing import Any

import networks
from modules import sd_models

from lib_loratorio.loras.metadata import user_metadata
from lib_loratorio.page.live import UNKNOWN, UNSUITED

MODELS = {"SD1": "is_sd1", "SD2": "is_sd2", "SDXL": "is_sdxl"}
"""The host's names for the kinds of models that networks are made for, and how a model tells that it is one."""

TRAINED_ON = {"ss_base_model_version", "ss_v2"}
"""What trainers write into a file of the model that they started from."""


def is_for_another_model(network_on_disk: Any, model: Any) -> bool:
    """Whether a file is for another kind of model, as far as the user's notes or else the file tell the host.

    Layers do not tell: many of one kind's have the names, and some the shapes, of another's. What the host takes for
    SD1's has any metadata and no sign of the other kinds, and may be theirs, unless the trainer has told. A model that
    does not tell its kind is taken for the right one.
    """
    version = getattr(network_on_disk, "sd_version", None)  # Neo has none
    kind = user_metadata(network_on_disk.filename).get("sd version") or getattr(version, "name", "")
    if kind == "SD1" and TRAINED_ON.isdisjoint(network_on_disk.metadata):
        return False
    return kind in MODELS and getattr(model, MODELS[kind], None) is False


def problem_of(name: str) -> str:
    """What is wrong with the LoRA of this name in a prompt; empty where nothing is, or the host cannot tell."""
    on_disk = networks.available_network_aliases.get(name) or networks.available_networks.get(name)
    if on_disk is None:
        return UNKNOWN
    # `shared.sd_model` would load it, and the page may ask before anybody has made a picture.
    return UNSUITED if is_for_another_model(on_disk, sd_models.model_data.sd_model) else ""
