"""One request, from the prompt to the latents, with the host's order of events."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from backend.sampling.sampling_function import sampling_prepare
from modules import errors, extra_networks, prompt_parser, scripts, sd_samplers, shared


@dataclass
class Processing:
    prompt: Any = ""
    negative_prompt: str = ""
    seed: int = 1
    steps: int = 3
    sampler_name: str = "Euler"
    cfg_scale: float = 3.0
    distilled_cfg_scale: float = 3.5
    batch_size: int = 1
    n_iter: int = 1
    width: int = 48
    height: int = 40
    s_min_uncond: float = 0.0
    enable_hr: bool = False
    hr_prompt: str = ""
    hr_cfg: float = 3.0
    hr_distilled_cfg: float = 3.5
    hr_second_pass_steps: int = 0
    hr_sampler_name: str | None = None
    refiner: Any = None
    refiner_switch_at: float = 0.5
    scripts: Any = None
    is_hr_pass: bool = False
    disable_extra_networks: bool = False
    extra_generation_params: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict)

    cached_c: ClassVar[list] = [None, None]
    cached_uc: ClassVar[list] = [None, None]
    cached_hr_c: ClassVar[list] = [None, None]
    cached_hr_uc: ClassVar[list] = [None, None]

    @property
    def sd_model(self):
        return shared.sd_model

    def comment(self, text):
        self.comments[text] = 1

    def get_conds_with_caching(self, function, required_prompts, steps, caches, extra_network_data, hires_steps=None):
        loras = str({kind: [params.items for params in found] for kind, found in (extra_network_data or {}).items()})
        key = (
            tuple(required_prompts),
            required_prompts.width,
            required_prompts.height,
            steps,
            hires_steps,
            loras,
            shared.sd_model.sd_checkpoint_info,
        )
        for cache in caches:
            if cache[0] == key:
                return cache[1]
        caches[0][1] = function(shared.sd_model, required_prompts, steps, hires_steps, shared.opts.use_old_scheduling)
        caches[0][0] = key
        return caches[0][1]

    def setup_conds(self):
        if self.is_hr_pass:
            return self.calculate_hr_conds()
        self.firstpass_steps = sd_samplers.find_sampler_config(self.sampler_name).total_steps(self.steps)
        self.c, self.uc = self._conditions(
            (self.prompts, self.negative_prompts),
            (self.width, self.height),
            (self.cfg_scale, self.distilled_cfg_scale),
            [self.cached_c],
            [self.cached_uc],
            self.extra_network_data,
        )
        if self.enable_hr:
            self._activate(self.hr_extra_network_data)
            self.calculate_hr_conds()
            self._activate(self.extra_network_data)

    def calculate_hr_conds(self):
        steps = sd_samplers.find_sampler_config(self.hr_sampler_name or self.sampler_name).total_steps(
            self.hr_second_pass_steps or self.steps
        )
        self.hr_c, self.hr_uc = self._conditions(
            (self.hr_prompts, self.hr_negative_prompts),
            (self.hr_upscale_to_x, self.hr_upscale_to_y),
            (self.hr_cfg, self.hr_distilled_cfg),
            [self.cached_hr_c, self.cached_c],
            [self.cached_hr_uc, self.cached_uc],
            self.hr_extra_network_data,
            steps,
        )

    def _conditions(self, prompts, size, guidance, cond_caches, uncond_caches, data, steps=None):
        (positive, negative), (width, height), (cfg, distilled) = prompts, size, guidance
        positive = prompt_parser.SdConditioning(positive, False, width, height, distilled_cfg_scale=distilled)
        negative = prompt_parser.SdConditioning(negative, True, width, height, distilled_cfg_scale=distilled)
        get = self.get_conds_with_caching
        uncond = (
            None
            if cfg == 1
            else get(prompt_parser.get_learned_conditioning, negative, self.firstpass_steps, uncond_caches, data, steps)
        )
        return get(
            prompt_parser.get_multicond_learned_conditioning, positive, self.firstpass_steps, cond_caches, data, steps
        ), uncond

    def get_conds(self):
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else (self.c, self.uc)

    def _activate(self, data):
        """As in the host, an error is reported, and everything stays as it has come to be until then."""
        if self.disable_extra_networks:
            return
        try:
            extra_networks.activate(self, data)
        except Exception:
            errors.report("error activating networks", exc_info=True)

    def refine(self, denoiser):
        """Switches to the refiner's model when it is time."""
        if (
            self.refiner is None
            or shared.sd_model is self.refiner
            or denoiser.step / denoiser.total_steps < self.refiner_switch_at
        ):
            return False
        shared.sd_model = self.refiner
        self._activate(self.extra_network_data)
        self.setup_conds()
        denoiser.update_inner_model()
        sampling_prepare(self.sd_model.forge_objects.unet)
        return True

    def noise(self, number):
        shape = (4, self.height // 8, self.width // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + number), dtype=torch.float64).to(
            shared.sd_model.dtype
        )

    def image_conditioning(self, x):
        """For inpainting models mask and masked picture; for others something that is not looked at."""
        if shared.sd_model.channels == 9:
            return torch.linspace(-1, 1, x.shape[0] * 5 * x[0, 0].numel(), dtype=x.dtype).reshape(
                x.shape[0], 5, *x.shape[2:]
            )
        return x.new_zeros(x.shape[0], 5, 1, 1)

    def _before_sampling(self, x):
        c, uc = self.get_conds()
        self.scripts.run("process_before_every_sampling", self, x=x, noise=x, c=c, uc=uc)

    def _sampled(self, x, steps):
        self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()
        self._before_sampling(x)
        sampling_prepare(self.sd_model.forge_objects.unet)
        return self.sampler.sample(self, x, *self.get_conds(), self.image_conditioning(x), steps)

    def sample(self):
        self.sampler = sd_samplers.create_sampler(self.sampler_name)
        x = torch.stack([self.noise(self.iteration * self.batch_size + place) for place in range(self.batch_size)])
        x = self._sampled(x, self.steps)
        return self._second_pass(F.interpolate(x, scale_factor=2)) if self.enable_hr else x

    def _second_pass(self, x):
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name)
        self._activate(self.hr_extra_network_data)
        self.calculate_hr_conds()
        self._before_sampling(x)  # and once more
        x = self._sampled(x, self.hr_second_pass_steps or self.steps)
        self.is_hr_pass = False
        return x

    def run_batch(self, iteration):
        self.iteration, self.is_hr_pass = iteration, False
        self.sd_model.forge_objects = self.sd_model.forge_objects_original.shallow_copy()
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt] * self.batch_size
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(prompts)
        self.negative_prompts, self.hr_extra_network_data = [self.negative_prompt] * self.batch_size, None
        if self.enable_hr:
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(
                [self.hr_prompt or self.prompt] * self.batch_size
            )
            self.hr_negative_prompts, self.hr_upscale_to_x, self.hr_upscale_to_y = (
                self.negative_prompts,
                self.width * 2,
                self.height * 2,
            )
        self._activate(self.extra_network_data)
        self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()
        self.setup_conds()
        return self.sample()


def process_images(p):
    """The latents `[pictures, C, H, W]` of all batches."""
    p.scripts = p.scripts or scripts.ScriptRunner([])
    checkpoint = shared.sd_model
    p.scripts.run("before_process", p)
    latents = []
    try:
        with torch.no_grad():
            for iteration in range(p.n_iter):
                shared.sd_model = checkpoint
                latents.append(p.run_batch(iteration))
    finally:
        shared.sd_model = checkpoint
    p.scripts.run("postprocess", p, torch.cat(latents))
    return torch.cat(latents)
