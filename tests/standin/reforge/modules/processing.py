"""The host's requests, whose second pass has a guidance scale of its own."""

from dataclasses import dataclass

from bases import forge_processing
from bases.processing import process_images
from modules_forge.forge_sampler import sampling_prepare

__all__ = ["Processing", "process_images"]


@dataclass
class Processing(forge_processing.Processing):
    hr_cfg: float = 3.0

    def prepare_model(self, x):
        sampling_prepare(self.sd_model.forge_objects.unet, x)
