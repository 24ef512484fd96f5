"""Other extensions that act on the model here: where they do, and what is known of them."""

from __future__ import annotations

from typing import Any

from modules import shared

from lib_loratorio.hosts.webui.neighbours import acting_on, sets_loras_by_region

IN_PLACE = frozenset({"hypertile"})
"""Those that make more rows of each row, in its place: several models may share what they act on."""


def acting(denoiser: Any) -> set[str]:
    """The extensions that act on rows between the sampler and the model's layers, by folder."""
    return acting_on(
        shared.sd_model.model.diffusion_model.modules(),
        [(owner, name) for _, owner, name in _places(denoiser)],
    )


def declined(denoiser: Any) -> str | None:
    """Why an extension that sets LoRAs itself does not let this pass be composed, or None."""
    for _, owner, name in _places(denoiser):
        if getattr(getattr(vars(owner).get(name), "__self__", None), "enable_custom_bbox", False):
            return (
                "Tiled Diffusion's Region Prompt Control is active, which loads each region's LoRAs within a model "
                "call. Switch it off"
            )
    return sets_loras_by_region()


def _places(denoiser: Any) -> tuple[tuple[str, Any, str], ...]:
    """What extensions replace besides the forward of layers, whose replacement lies on the object itself."""
    return (
        ("the sampler's model: MultiDiffusion, DemoFusion", denoiser.inner_model, "forward"),
        ("the checkpoint's model call: Mixture of Diffusers", shared.sd_model, "apply_model"),
    )
