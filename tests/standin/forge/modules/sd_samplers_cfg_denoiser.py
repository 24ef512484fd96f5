"""The host's own guidance, which its backend has."""

from backend.sampling.sampling_function import sampling_function
from bases import denoiser
from modules.script_callbacks import CFGDenoiserParams, cfg_denoiser_callback


class CFGDenoiser(denoiser.CFGDenoiser):
    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        places, text, negative = self.conditions(cond, uncond)
        params = CFGDenoiserParams(x, image_cond, sigma, 0, self.steps, text, negative, self)
        cfg_denoiser_callback(params)
        scale = self.p.hr_cfg if self.p.is_hr_pass else cond_scale
        return self.done(sampling_function(self, params, 1.0 if self.skips_early() else scale, places))
