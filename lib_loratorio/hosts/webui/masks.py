"""Masks of requests: the painted places, and the images by which pasted parameters name them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from modules import images, shared
from PIL.Image import Image

from lib_loratorio.engine.painted import Painted
from lib_loratorio.errors import SettingsError
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.loras.adapter import Adapter, numbered_names
from lib_loratorio.loras.mask_image import numbers_in, read_image
from lib_loratorio.settings import SETTINGS, Settings

REMEMBERED = 16

_latest: OrderedDict[str, str] = OrderedDict()
"""The latest masks of this process by their names in parameters, so that pasting a picture's finds them again."""


def painted(p, settings: Settings, adapters: Sequence[Adapter]) -> Painted | None:
    """The places of the request's mask; None without one. Raises SettingsError for one that cannot be read, has colours
    that no LoRA has, or is known by its name only.
    """
    if not settings.mask:
        return None
    state = state_of(p)
    state.mask = read_image(_found(settings.mask))
    names = numbered_names([adapter for adapter in adapters if adapter.competes])
    return Painted(torch.from_numpy(numbers_in(state.mask, names)))


def _found(mask: str) -> str:
    name = SETTINGS["mask"].kind.written(mask)
    if mask != name:
        _latest[name] = mask
    elif name not in _latest:
        raise SettingsError(
            f"mask is {name}: a picture's parameters name its mask, and do not hold it. Load the image that was saved "
            "beside the picture, or clear the mask."
        )
    _latest.move_to_end(name)
    while len(_latest) > REMEMBERED:
        _latest.popitem(last=False)
    return _latest[name]


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
