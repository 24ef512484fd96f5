"""The host's own guidance, which its backend has."""

from backend.sampling.sampling_function import sampling_function
from bases import forge_denoiser


class CFGDenoiser(forge_denoiser.CFGDenoiser):
    def denoised(self, x, sigma, params, places, scale):
        return sampling_function(self, params, 1.0 if self.skips_early() else scale, places)
