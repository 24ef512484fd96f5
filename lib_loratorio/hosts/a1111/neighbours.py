"""Other extensions that act on the model here: where they do, and what is known of them."""

from __future__ import annotations

from typing import Any

import torch
from modules import shared

from lib_loratorio.hosts.webui.neighbours import acting_on

IN_PLACE = frozenset({"hypertile"})
"""Those that make more rows of each row, in its place: several models may share what they act on."""

REGIONS_OF_LORAS = {
    "Regional Prompter": "its Latent mode gives each region its own LoRAs. Choose its Attention mode",
    "Tiled Diffusion": "its Region Prompt Control loads the LoRAs of each region within a model call. Switch it off",
}
"""By extension that sets LoRAs by region itself: what it does, and what to do."""


def acting(denoiser: Any) -> set[str]:
    """The extensions that act on rows between the sampler and the model's layers, by folder."""
    return acting_on(
        shared.sd_model.model.diffusion_model.modules(),
        [(owner, name) for _, owner, name in _places(denoiser)],
    )


def declined(denoiser: Any) -> str | None:
    """Which of them sets LoRAs itself, so that this pass cannot be composed, or None."""
    if torch.nn.Linear.forward.__module__ == "scripts.latent":
        return _declined("Regional Prompter")
    for _, owner, name in _places(denoiser):
        if getattr(getattr(vars(owner).get(name), "__self__", None), "enable_custom_bbox", False):
            return _declined("Tiled Diffusion")
    return None


def _places(denoiser: Any) -> tuple[tuple[str, Any, str], ...]:
    """What extensions replace besides the forward of layers, whose replacement lies on the object itself."""
    return (
        ("the sampler's model: MultiDiffusion, DemoFusion", denoiser.inner_model, "forward"),
        ("the checkpoint's model call: Mixture of Diffusers", shared.sd_model, "apply_model"),
    )


def _declined(name: str) -> str:
    return f"{name} is active, and {REGIONS_OF_LORAS[name]}"
