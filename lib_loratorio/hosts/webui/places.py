"""Regions and ramps of LoRAs: the part of the picture that a pass samples, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence

from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.helpers import place_advice, ramp_advice
from lib_loratorio.loras.region import WHOLE, Box
from lib_loratorio.settings import Settings


def window_of(p) -> Box:
    """The part of the whole picture that the pass at hand samples: less than all with "Only masked" inpainting.

    Regions are the whole picture's. There the host scales a cut-out of the initial image up to the size it samples, and
    says where it will paste it back, as `(left, top, width, height)` in pixels of that image.
    """
    cut_out, images = getattr(p, "paste_to", None), getattr(p, "init_images", None)
    if not cut_out or not images:
        return WHOLE
    left, top, width, height = cut_out
    across, down = images[0].size
    return Box(left / across, top / down, (left + width) / across, (top + height) / down)


def tell(p, settings: Settings, adapters: Sequence[Adapter]) -> None:
    """Tells where regions, and strengths that change over the sampling, have no effect."""
    for advice in (place_advice(settings, adapters), ramp_advice(settings, adapters)):
        if advice:
            note(p, advice)
