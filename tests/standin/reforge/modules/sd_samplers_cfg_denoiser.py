"""The host's own guidance: conditions are compiled here, and steps without guidance have no negative prompt."""

from bases import forge_denoiser, sampling
from ldm_patched.modules.samplers import sampling_function
from modules_forge import forge_sampler


class CFGDenoiser(forge_denoiser.CFGDenoiser):
    def denoised(self, x, sigma, params, places, scale):
        unet = self.inner_model.inner_model.forge_objects.unet
        uncond = forge_sampler.cond_from_a1111_to_patched_ldm(params.text_uncond)
        cond = forge_sampler.cond_from_a1111_to_patched_ldm_weighted(params.text_cond, places)
        model, x, sigma, uncond, cond, scale, *rest = sampling.prepared(
            unet, x, sigma, uncond, cond, scale, params.image_cond
        )
        if self.skips_early():
            uncond, scale = None, 1.0
        return sampling_function(model, x, sigma, uncond, cond, scale, *rest)
