"""Weight maps: a panel beside each image, in the gallery, in the API's answer and among the saved grids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from modules import images, shared
from PIL.Image import Image

from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.hosts.webui.options import map_format
from lib_loratorio.page.weight_panel import weight_panel

SHARES = "LoRAtorio shares"
"""The key, in the API's `info`, of each LoRA's mean weight in each image, and in each model call of its batch."""


@dataclass
class Panels:
    """A request's panels, and the maps of the batch at hand; a hires pass takes the place of the first pass.

    names: of the adapters that compete. patch_size: in latent pixels. maps: of the pass at hand.
    done: images of the batch that are there. panels: drawn so far. shares: of each image with a panel.
    """

    names: Sequence[str] = ()
    patch_size: int = 1
    maps: WeightMaps = field(default_factory=WeightMaps)
    done: int = 0
    panels: list[Image] = field(default_factory=list)
    shares: list[dict] = field(default_factory=list)

    def begin(self, names: Sequence[str], patch_size: int) -> WeightMaps:
        """The maps of a pass that begins, with the adapters that compete in it."""
        self.names, self.patch_size, self.maps, self.done = names, patch_size, WeightMaps(), 0
        return self.maps

    def add_image(self, image: Image) -> None:
        """The batch's next image is there."""
        number, self.done = self.done, self.done + 1
        if self.maps.mean is None or number >= self.maps.mean.shape[1]:
            return
        weights, names = self.maps.mean[:, number].cpu(), self.names
        patch = self.patch_size * max(1, image.width // self.maps.latent_width)
        self.panels.append(weight_panel(image, weights, names, patch, images.get_font))
        self.shares.append(
            {
                "mean": dict(zip(names, weights.mean((-2, -1)).tolist())),
                "by_call": [dict(zip(names, shares)) for shares in self.maps.shares_by_call],
            }
        )

    def hand_over(self, p, processed) -> None:
        """Appends the panels to a finished request's images, and saves them as the host saves grids."""
        first = processed.index_of_first_image
        for number, panel in enumerate(self.panels):
            text = processed.infotexts[min(first + number, len(processed.infotexts) - 1)]
            if shared.opts.grid_save and not getattr(p, "do_not_save_grid", False):
                _save(p, panel, number, text)
            processed.images.append(panel)
            processed.infotexts.append(text)
        if self.shares:
            processed.extra_generation_params[SHARES] = json.dumps(self.shares)


def _save(p, panel: Image, number: int, text: str) -> None:
    images.save_image(
        panel,
        p.outpath_grids,
        "loratorio",
        p.all_seeds[min(number, len(p.all_seeds) - 1)],
        p.all_prompts[min(number, len(p.all_prompts) - 1)],
        map_format(),
        info=text,
        short_filename=not shared.opts.grid_extended_filename,
        p=p,
        grid=True,
    )
