"""One request, from the prompt to the latents, with the host's order of events."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from modules import extra_networks, prompt_parser, scripts, sd_samplers, shared
from PIL import Image


@dataclass
class Processing:
    prompt: Any = ""
    negative_prompt: str = ""
    seed: int = 1
    steps: int = 3
    sampler_name: str = "Euler"
    cfg_scale: float = 3.0
    batch_size: int = 1
    n_iter: int = 1
    width: int = 48
    height: int = 40
    s_min_uncond: float = 0.0
    enable_hr: bool = False
    hr_prompt: str = ""
    hr_second_pass_steps: int = 0
    hr_sampler_name: str | None = None
    refiner: Any = None
    refiner_switch_at: float = 0.5
    scripts: Any = None
    is_hr_pass: bool = False
    outpath_grids: str = "grids"
    do_not_save_grid: bool = False
    disable_extra_networks: bool = False
    extra_generation_params: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict)

    cached_c: ClassVar[list] = [None, None]
    cached_uc: ClassVar[list] = [None, None]
    cached_hr_c: ClassVar[list] = [None, None]
    cached_hr_uc: ClassVar[list] = [None, None]

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
            self.prompts,
            self.negative_prompts,
            (self.width, self.height),
            [self.cached_c],
            [self.cached_uc],
            self.extra_network_data,
        )

    def calculate_hr_conds(self):
        steps = sd_samplers.find_sampler_config(self.hr_sampler_name or self.sampler_name).total_steps(
            self.hr_second_pass_steps or self.steps
        )
        self.hr_c, self.hr_uc = self._conditions(
            self.hr_prompts,
            self.hr_negative_prompts,
            (self.hr_upscale_to_x, self.hr_upscale_to_y),
            [self.cached_hr_c, self.cached_c],
            [self.cached_hr_uc, self.cached_uc],
            self.hr_extra_network_data,
            steps,
        )

    def _conditions(self, prompts, negative, size, cond_caches, uncond_caches, data, steps=None):
        width, height = size
        positive = prompt_parser.SdConditioning(prompts, width=width, height=height)
        negative = prompt_parser.SdConditioning(negative, True, width=width, height=height)
        uncond = self.get_conds_with_caching(
            prompt_parser.get_learned_conditioning, negative, self.firstpass_steps, uncond_caches, data, steps
        )
        cond = self.get_conds_with_caching(
            prompt_parser.get_multicond_learned_conditioning, positive, self.firstpass_steps, cond_caches, data, steps
        )
        return cond, uncond

    def get_conds(self):
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else (self.c, self.uc)

    def refine(self, denoiser):
        """Switches to the refiner's model when it is time."""
        if (
            self.refiner is None
            or shared.sd_model is self.refiner
            or denoiser.step / denoiser.total_steps < self.refiner_switch_at
        ):
            return False
        shared.sd_model = self.refiner
        self.setup_conds()
        denoiser.update_inner_model()
        return True

    def noise(self, number):
        shape = (4, self.height // 8, self.width // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + number), dtype=torch.float64).to(
            shared.sd_model.dtype
        )

    def image_conditioning(self, x):
        """For inpainting models mask and masked picture; for others something that is not looked at."""
        if shared.sd_model.model.conditioning_key == "hybrid":
            return torch.linspace(-1, 1, x.shape[0] * 5 * x[0, 0].numel(), dtype=x.dtype).reshape(
                x.shape[0], 5, *x.shape[2:]
            )
        return x.new_zeros(x.shape[0], 5, 1, 1)

    def sample(self):
        self.sampler = sd_samplers.create_sampler(self.sampler_name)
        x = torch.stack([self.noise(self.iteration * self.batch_size + place) for place in range(self.batch_size)])
        self.scripts.run("process_before_every_sampling", self, x=x, noise=x, c=self.c, uc=self.uc)
        x = self.sampler.sample(self, x, self.c, self.uc, self.image_conditioning(x))
        return self._second_pass(x) if self.enable_hr else x

    def _second_pass(self, x):
        self.is_hr_pass = True
        self.hr_upscale_to_x, self.hr_upscale_to_y = self.width * 2, self.height * 2
        x = F.interpolate(x, scale_factor=2)
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name)
        extra_networks.activate(self, self.hr_extra_network_data)
        self.calculate_hr_conds()
        self.scripts.run("process_before_every_sampling", self, x=x, noise=x, c=self.hr_c, uc=self.hr_uc)
        x = self.sampler.sample(
            self, x, self.hr_c, self.hr_uc, self.image_conditioning(x), self.hr_second_pass_steps or self.steps
        )
        self.is_hr_pass = False
        return x


def process_images(p):
    """The latents `[pictures, C, H, W]` of all batches."""
    p.scripts = p.scripts or scripts.ScriptRunner([])
    checkpoint = shared.sd_model
    p.scripts.run("before_process", p)
    latents, pictures = [], []
    try:
        with torch.no_grad():
            for iteration in range(p.n_iter):
                p.iteration = iteration
                shared.sd_model = checkpoint
                prompts = p.prompt if isinstance(p.prompt, list) else [p.prompt] * p.batch_size
                p.prompts, p.extra_network_data = extra_networks.parse_prompts(prompts)
                p.negative_prompts = [p.negative_prompt] * p.batch_size
                p.hr_extra_network_data = None
                if p.enable_hr:
                    p.hr_prompts, p.hr_extra_network_data = extra_networks.parse_prompts(
                        [p.hr_prompt or p.prompt] * p.batch_size
                    )
                    p.hr_negative_prompts = p.negative_prompts
                extra_networks.activate(p, p.extra_network_data)
                p.setup_conds()
                latents.append(p.sample())
                pictures += [_picture(p, latent) for latent in latents[-1]]
    finally:
        shared.sd_model = checkpoint
    latents = torch.cat(latents)
    p.all_prompts, p.all_seeds = [p.prompt] * len(pictures), [p.seed + number for number in range(len(pictures))]
    p.processed = SimpleNamespace(
        images=pictures,
        infotexts=[f"picture {number}" for number in range(len(pictures))],
        index_of_first_image=0,
        extra_generation_params=p.extra_generation_params,
    )
    p.scripts.run("postprocess", p, p.processed)
    return latents


def _picture(p, latent):
    """A picture of 8 pixels a latent pixel, which scripts may look at."""
    args = SimpleNamespace(image=Image.new("RGB", (latent.shape[-1] * 8, latent.shape[-2] * 8), "grey"))
    p.scripts.run("postprocess_image", p, args)
    return args.image
