"""What a composition tells of the pipeline's latest call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from lib_loratorio.engine.composer import Composer, Tally
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.errors import LoratorioError
from lib_loratorio.loras.adapter import Adapter, numbered_names
from lib_loratorio.loras.region import WHOLE, Box, seen_boxes
from lib_loratorio.page.weight_panel import weight_panel
from lib_loratorio.settings import Settings


class Results:
    """About the pipeline's latest call.

    calls: of the denoiser, as the pipeline counts them. tally: what was evaluated. maps: the weights, their mean None
    where nothing was weighed by patch. composer: None with the method merge. painted: places that are painted
    for the adapters that compete.
    """

    pipe: object
    adapters: Sequence[Adapter]
    settings: Settings
    tally: Tally
    maps: WeightMaps
    composer: Composer | None
    painted: Painted | None
    calls: int

    def __repr__(self) -> str:
        told = [f"{self.settings.method} of {', '.join(adapter.name for adapter in self.adapters)}"]
        told.append(f"{self.evaluations} evaluations in {self.calls} calls of the denoiser")
        if shares := self.shares:
            told.append(", ".join(f"{name} {sum(of) / len(of):.0%}" for name, of in shares.items()))
        if self.chosen:
            told.append(f"pool {self.chosen}")
        if self.settings.verify:
            told.append(self.verified)
        return f"<{'; '.join(told)}>"

    @property
    def labels(self) -> list[str]:
        """The names of the adapters that compete, as the maps have them; a repeated one is numbered."""
        return numbered_names([adapter for adapter in self.adapters if adapter.competes])

    @property
    def regions(self) -> list[list[Box]]:
        """The boxes that these may be in; none for everywhere."""
        return [seen_boxes(adapter.tag.region, WHOLE) for adapter in self.adapters if adapter.competes]

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser, of one picture's conditional or unconditional prediction each."""
        return self.tally.rows

    @property
    def shares(self) -> dict[str, list[float]]:
        """Each competing LoRA's mean weight in each picture; together 1. Empty where nothing was weighed."""
        if self.maps.mean is None:
            return {}
        return dict(zip(self.labels, self.maps.shares().tolist()))

    @property
    def chosen(self) -> str:
        """Which adapters were evaluated from which step on; empty without a pool."""
        return self.composer.chosen if self.composer else ""

    @property
    def verified(self) -> str:
        """What the setting `verify` has found, for people; `tally.worst` is the number."""
        return self.tally.verified

    def map_images(self, size: tuple[int, int] | None = None) -> list[dict[str, Image.Image]]:
        """Of each picture its weight maps by LoRA, from black for 0 to white for 1.

        Args:
            size: (width, height) in pixels; without it a patch is a pixel.

        Raises LoratorioError where nothing was weighed.
        """
        maps = (self._weighed() * 255).round().to(torch.uint8).cpu().numpy()
        found = []
        for number in range(maps.shape[1]):
            images = [Image.fromarray(of_lora[number]) for of_lora in maps]
            if size is not None:
                images = [image.resize(size, Image.Resampling.NEAREST) for image in images]
            found.append(dict(zip(self.labels, images)))
        return found

    def panels(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Each of the call's pictures beside its heat maps, and beside who wins where.

        Raises LoratorioError where nothing was weighed, or for other than the call's number of pictures.
        """
        maps = self._weighed()
        if isinstance(pictures, Image.Image):
            pictures = [pictures]
        if len(pictures) != maps.shape[1] or not all(isinstance(picture, Image.Image) for picture in pictures):
            raise LoratorioError(f"panels() takes the {maps.shape[1]} PIL images that the latest call has made.")
        patch = self.settings.patch_size * getattr(self.pipe, "vae_scale_factor", 8)
        return [
            weight_panel(picture, maps[:, number], self.labels, patch, regions=self.regions, painted=self.painted)
            for number, picture in enumerate(pictures)
        ]

    def _weighed(self) -> torch.Tensor:
        """`[N, B, h, w]`."""
        if self.maps.mean is None:
            raise LoratorioError(
                "no LoRA has been weighed: maps are of the method loratorio, once the pipeline has been called."
            )
        return self.maps.mean
