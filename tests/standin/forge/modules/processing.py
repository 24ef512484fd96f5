"""The host's requests: with guidance for distilled models, and without negative prompts where they have no effect."""

from dataclasses import dataclass

from backend.sampling.sampling_function import sampling_prepare
from bases import forge_processing
from bases.processing import process_images

__all__ = ["Processing", "process_images"]


@dataclass
class Processing(forge_processing.Processing):
    distilled_cfg_scale: float = 3.5
    hr_cfg: float = 3.0
    hr_distilled_cfg: float = 3.5

    def conditions(self, prompts, of_picture, caches, data, steps=None, unconditional=True):
        first = steps is None
        cfg, distilled = (self.cfg_scale, self.distilled_cfg_scale) if first else (self.hr_cfg, self.hr_distilled_cfg)
        of_picture = {**of_picture, "distilled_cfg_scale": distilled}
        return super().conditions(prompts, of_picture, caches, data, steps, cfg != 1)

    def prepare_model(self, x):
        sampling_prepare(self.sd_model.forge_objects.unet)

    def sampled(self, x, steps=None):
        if self.is_hr_pass:
            self.before_sampling(x)  # and once more
        return super().sampled(x, steps)
