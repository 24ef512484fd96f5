"""What a sampler calls in each step in the Forge family; a host adds its own guidance."""

from modules.script_callbacks import CFGDenoiserParams, cfg_denoiser_callback

from bases import denoiser


class CFGDenoiser(denoiser.CFGDenoiser):
    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        places, text, negative = self.conditions(x, cond, uncond)
        params = CFGDenoiserParams(x, image_cond, sigma, 0, self.steps, text, negative, self)
        cfg_denoiser_callback(params)
        return self.done(self.denoised(x, sigma, params, places, self.p.hr_cfg if self.p.is_hr_pass else cond_scale))

    def denoised(self, x, sigma, params, places, scale):
        """By the host's guidance, of the conditions in `params` as callbacks have left them."""
        raise NotImplementedError
