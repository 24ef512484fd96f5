"""Three samplers: Euler and Heun over sigmas, where the model gives the picture, and DDIM."""

import itertools

import torch
from modules import sd_samplers_timesteps, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from modules.sd_samplers_common import InterruptedException


class PictureModel(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner_model = model

    def forward(self, x, sigma, **kwargs):
        wide = sigma.reshape(-1, 1, 1, 1)
        return x - wide * self.inner_model.apply_model(x / (wide**2 + 1).sqrt(), sigma.log() * 100, **kwargs)


class CFGDenoiserKDiffusion(CFGDenoiser):
    wrapped = PictureModel


def euler(denoiser, x, schedule, extra_args):
    for now, then in itertools.pairwise(schedule):
        x = x + (x - denoiser(x, now.expand(len(x)), **extra_args)) / now * (then - now)
    return x


def heun(denoiser, x, schedule, extra_args):
    for now, then in itertools.pairwise(schedule):
        slope = (x - denoiser(x, now.expand(len(x)), **extra_args)) / now
        ahead = x + slope * (then - now)
        slope = (slope + (ahead - denoiser(ahead, then.expand(len(x)), **extra_args)) / then) / 2
        x = x + slope * (then - now)
    return x


def sigmas(steps):
    return torch.linspace(3, 0.3, steps + 1, dtype=shared.sd_model.dtype)


class SamplerData:
    def __init__(self, name, function, schedule, denoiser, calls=1):
        self.name, self.function, self.schedule, self.denoiser, self.calls = name, function, schedule, denoiser, calls

    def total_steps(self, steps):
        return steps * self.calls


_samplers = {
    config.name: config
    for config in (
        SamplerData("Euler", euler, sigmas, CFGDenoiserKDiffusion),
        SamplerData("Heun", heun, sigmas, CFGDenoiserKDiffusion, calls=2),
        SamplerData(
            "DDIM",
            sd_samplers_timesteps.ddim,
            sd_samplers_timesteps.timesteps,
            sd_samplers_timesteps.CFGDenoiserTimesteps,
        ),
    )
}


def find_sampler_config(name):
    return _samplers.get(name)


def create_sampler(name):
    return Sampler(_samplers[name])


class Sampler:
    def __init__(self, config):
        self.config = config
        self.model_wrap_cfg = config.denoiser(self)
        self.sampler_extra_args = None
        self.last_latent = None

    def launch_sampling(self, steps, func):
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def sample(self, p, x, conditioning, unconditional_conditioning, image_conditioning, steps=None):
        steps = steps or p.steps
        denoiser = self.model_wrap_cfg
        denoiser.p, denoiser.step, self.last_latent = p, 0, x
        self.sampler_extra_args = {
            "cond": conditioning,
            "uncond": unconditional_conditioning,
            "image_cond": image_conditioning,
            "cond_scale": p.cfg_scale,
            "s_min_uncond": p.s_min_uncond,
        }
        schedule = self.config.schedule(steps)
        return self.launch_sampling(steps, lambda: self.config.function(denoiser, x, schedule, self.sampler_extra_args))
