"""Samplers over timesteps: the model gives the noise."""

import itertools

import torch
from modules import shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser


class NoiseModel(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner_model = model

    def forward(self, x, timesteps, **kwargs):
        return self.inner_model.apply_model(x, timesteps, **kwargs)


class CFGDenoiserTimesteps(CFGDenoiser):
    wrapped = NoiseModel


def ddim(denoiser, x, schedule, extra_args):
    for now, then in itertools.pairwise(schedule):
        noise = denoiser(x, now.expand(len(x)), **extra_args)
        a, b = shared.sd_model.alphas_cumprod[now], shared.sd_model.alphas_cumprod[then]
        x = b.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
    return x


def timesteps(steps):
    return torch.linspace(900, 100, steps + 1).long()
