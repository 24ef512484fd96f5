"""Weight maps: a panel beside each image, in the gallery, in the API's answer and among the saved grids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from modules import images, shared
from PIL.Image import Image

from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.hosts.webui.options import map_format
from lib_loratorio.loras.region import Box
from lib_loratorio.page.weight_panel import as_painted, weight_panel

SHARES = "LoRAtorio shares"
"""The key, in the API's `info`, of each LoRA's mean weight in each image, and in each model call of its batch, and of
the place of its panel among the answer's images.
"""


_last: list[Image | None] = [None]


def last_map() -> Image | None:
    """Of the latest picture with weight maps who won where, as a mask."""
    return _last[0]


class Drawn(NamedTuple):
    """An image's panel and shares, with its seed and prompt."""

    panel: Image
    share: dict
    seed: int
    prompt: str


@dataclass
class Panels:
    """A request's panels, and the maps of the batch at hand; a hires pass takes the place of the first pass.

    names: of the adapters that compete. patch_size: in latent pixels. regions: the boxes of each, and painted: what is
    painted for them, as the pass shows them. maps: of the pass at hand. done: images of the batch that are there.
    panels: drawn so far. shares: of each image with a panel. elsewhere: of images that other machines have made, which
    come last.
    """

    names: Sequence[str] = ()
    patch_size: int = 1
    regions: Sequence[Sequence[Box]] = ()
    painted: Painted | None = None
    maps: WeightMaps = field(default_factory=WeightMaps)
    done: int = 0
    panels: list[Image] = field(default_factory=list)
    shares: list[dict] = field(default_factory=list)
    elsewhere: list[Drawn] = field(default_factory=list)

    def begin(
        self,
        names: Sequence[str],
        patch_size: int,
        regions: Sequence[Sequence[Box]] = (),
        painted: Painted | None = None,
    ) -> WeightMaps:
        """The maps of a pass that begins, with the adapters that compete in it."""
        self.names, self.patch_size, self.regions, self.painted = names, patch_size, regions, painted
        self.maps, self.done = WeightMaps(), 0
        return self.maps

    def add_image(self, image: Image) -> None:
        """The batch's next image is there."""
        number, self.done = self.done, self.done + 1
        if self.maps.mean is None or number >= self.maps.mean.shape[1]:
            return
        weights, names = self.maps.mean[:, number].cpu(), self.names
        _last[:] = [as_painted(weights)]
        patch = self.patch_size * max(1, image.width // self.maps.latent_width)
        self.panels.append(weight_panel(image, weights, names, patch, images.get_font, self.regions, self.painted))
        self.shares.append(
            {
                "mean": dict(zip(names, weights.mean((-2, -1)).tolist())),
                "by_call": [dict(zip(names, shares)) for shares in self.maps.shares_by_call],
            }
        )

    def hand_over(self, p, processed) -> None:
        """Appends the panels to a finished request's images, and saves them as the host saves grids."""
        first = processed.index_of_first_image
        drawn = [*map(Drawn, self.panels, self.shares, *_of_images(p, len(self.panels))), *self.elsewhere]
        for number, (panel, share, seed, prompt) in enumerate(drawn):
            text = processed.infotexts[min(first + number, len(processed.infotexts) - 1)]
            if shared.opts.grid_save and not getattr(p, "do_not_save_grid", False):
                _save(p, panel, text, seed, prompt)
            share["panel"] = len(processed.images)
            processed.images.append(panel)
            processed.infotexts.append(text)
        if drawn:
            processed.extra_generation_params[SHARES] = json.dumps([one.share for one in drawn])


def _of_images(p, number: int) -> tuple[list[int], list[str]]:
    """The seeds and prompts of so many of the request's images."""
    places = [min(place, len(p.all_seeds) - 1) for place in range(number)]
    return [p.all_seeds[place] for place in places], [p.all_prompts[place] for place in places]


def _save(p, panel: Image, text: str, seed: int, prompt: str) -> None:
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
