"""What a sampler calls in each step: the conditions as they are now; a host adds its own guidance."""

import torch
from modules import prompt_parser, shared
from modules.sd_samplers_common import InterruptedException


class CFGDenoiser(torch.nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.model_wrap = None
        self.p = None
        self.step, self.steps, self.total_steps = 0, None, None
        self.mask = self.init_latent = None

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = self.wrapped(shared.sd_model)
        return self.model_wrap

    def update_inner_model(self):
        self.model_wrap = None
        self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"] = self.p.get_conds()

    def conditions(self, x, cond, uncond):
        """By picture the places and weights of its conditions, these conditions, and the negative prompts'."""
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
        if self.p.refine(self, x):
            cond, uncond = self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"]
        places, text = prompt_parser.reconstruct_multicond_batch(cond, self.step)
        return places, text, None if uncond is None else prompt_parser.reconstruct_cond_batch(uncond, self.step)

    def skips_early(self):
        """Whether this is one of the first steps, which an option lets have no guidance."""
        early = shared.opts.skip_early_cond
        return bool(early and self.step / self.total_steps <= early)

    def done(self, denoised):
        self.step += 1
        self.sampler.last_latent = denoised
        return denoised
