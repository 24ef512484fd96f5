"""Weight maps: a panel beside each picture, in the gallery, in the API's answer and among the saved grids."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch
from modules import images, shared
from PIL.Image import Image

from lib_loratorio.engine.methods import Composed
from lib_loratorio.engine.weight_maps import WeightMaps, of_pictures, weight_panel
from lib_loratorio.hosts.webui.options import map_format

SHARES = "LoRAtorio shares"
"""The key, in the API's `info`, of each LoRA's mean weight in each picture, and in each model call of its batch."""


@dataclass
class Panels:
    """A request's panels, and the maps of the batch at hand; a hires pass takes the place of the first pass."""

    names: dict[int, str] = field(default_factory=dict)
    patch_size: int = 1
    latent_width: int = 1
    maps: WeightMaps = field(default_factory=WeightMaps)
    done: int = 0
    images: list = field(default_factory=list)
    shares: list[dict] = field(default_factory=list)

    def begin(self, names: dict[int, str], patch_size: int) -> None:
        """A pass of a batch begins, with these adapters, which have these names."""
        self.names, self.patch_size, self.maps, self.done = names, patch_size, WeightMaps(), 0

    def add(self, composed: Composed, adapters: tuple[int, ...], picture_of: torch.Tensor) -> None:
        """Takes in one model call's weights, where its method has any."""
        if composed.weights is not None:
            self.latent_width = composed.conditional.shape[-1]
            self.maps.add(of_pictures(composed.weights, adapters, list(self.names), picture_of))

    def picture(self, picture: Image) -> None:
        """The batch's next picture is there."""
        number, self.done = self.done, self.done + 1
        if self.maps.mean is None or number >= self.maps.mean.shape[1]:
            return
        weights, names = self.maps.mean[:, number].cpu(), list(self.names.values())
        patch = self.patch_size * max(1, picture.width // self.latent_width)
        self.images.append(weight_panel(picture, weights, names, patch, images.get_font))
        self.shares.append(
            {
                "mean": dict(zip(names, weights.mean((-2, -1)).tolist())),
                "by_call": [dict(zip(names, shares)) for shares in self.maps.shares_by_call],
            }
        )

    def hand_over(self, p, processed) -> None:
        """Appends the panels to a finished request's pictures, and saves them as the host saves grids."""
        first = processed.index_of_first_image
        for number, panel in enumerate(self.images):
            place = min(first + number, len(processed.infotexts) - 1)
            text = processed.infotexts[place]
            if shared.opts.grid_save and not getattr(p, "do_not_save_grid", False):
                seed, prompt = (
                    p.all_seeds[min(number, len(p.all_seeds) - 1)],
                    p.all_prompts[min(number, len(p.all_prompts) - 1)],
                )
                images.save_image(
                    panel,
                    p.outpath_grids,
                    "loratorio",
                    seed,
                    prompt,
                    map_format(),
                    info=text,
                    short_filename=not shared.opts.grid_extended_filename,
                    p=p,
                    grid=True,
                )
            processed.images.append(panel)
            processed.infotexts.append(text)
        if self.shares:
            processed.extra_generation_params[SHARES] = json.dumps(self.shares)
