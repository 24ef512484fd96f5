"""What a sampler calls in each step: the conditions as they are now, then the host's own guidance."""

import torch
from backend.sampling.sampling_function import sampling_function
from modules import prompt_parser, shared
from modules.script_callbacks import CFGDenoiserParams, cfg_denoiser_callback
from modules.sd_samplers_common import InterruptedException


class CFGDenoiser(torch.nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.model_wrap = None
        self.p = None
        self.step, self.steps, self.total_steps = 0, None, None

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = self.wrapped(shared.sd_model)
        return self.model_wrap

    def update_inner_model(self):
        self.model_wrap = None
        self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"] = self.p.get_conds()

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
        if self.p.refine(self):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        places, text = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        negative = None if uncond is None else prompt_parser.reconstruct_cond_batch(uncond, self.step)
        params = CFGDenoiserParams(x, image_cond, sigma, 0, self.steps, text, negative, self)
        cfg_denoiser_callback(params)
        early = shared.opts.skip_early_cond
        scale = self.p.hr_cfg if self.p.is_hr_pass else cond_scale
        scale = 1.0 if early and self.step / self.total_steps <= early else scale
        denoised = self.sampler.last_latent = sampling_function(self, params, scale, places)
        self.step += 1
        return denoised
