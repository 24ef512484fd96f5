"""Masks of requests: the painted places, and the image beside the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from modules import images, shared
from PIL.Image import Image

from lib_loratorio.engine.painted import Painted
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.loras.adapter import Adapter, numbered_names
from lib_loratorio.loras.mask_image import numbers_in, read_image, remembered
from lib_loratorio.settings import Settings


def painted(p, settings: Settings, adapters: Sequence[Adapter]) -> Painted | None:
    """The places of the request's mask; None without one. Raises SettingsError for one that cannot be read, has colours
    that no LoRA has, or is known by its name only.
    """
    if not settings.mask:
        return None
    state = state_of(p)
    state.mask = read_image(remembered(settings.mask))
    names = numbered_names([adapter for adapter in adapters if adapter.competes])
    return Painted(torch.from_numpy(numbers_in(state.mask, names)))


def save(p, mask: Image, text: str) -> None:
    """Saves a request's mask as grids are saved, without loss."""
    if not shared.opts.grid_save or getattr(p, "do_not_save_grid", False):
        return
    images.save_image(
        mask,
        p.outpath_grids,
        "loratorio-mask",
        p.all_seeds[0],
        p.all_prompts[0],
        "png",
        info=text,
        short_filename=not shared.opts.grid_extended_filename,
        p=p,
        grid=True,
    )
