"""One request, from the prompt to the latents. A host adds its own order of events."""

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

    @property
    def sd_model(self):
        return shared.sd_model

    def comment(self, text):
        self.comments[text] = 1

    # Text conditions

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
        self.c, self.uc = self.conditions(
            (self.prompts, self.negative_prompts),
            {"width": self.width, "height": self.height},
            ([self.cached_c], [self.cached_uc]),
            self.extra_network_data,
        )

    def calculate_hr_conds(self):
        name, steps = self.of_second_pass()
        self.hr_c, self.hr_uc = self.conditions(
            (self.hr_prompts, self.hr_negative_prompts),
            {"width": self.hr_upscale_to_x, "height": self.hr_upscale_to_y},
            ([self.cached_hr_c, self.cached_c], [self.cached_hr_uc, self.cached_uc]),
            self.hr_extra_network_data,
            sd_samplers.find_sampler_config(name).total_steps(steps),
        )

    def of_second_pass(self):
        return self.hr_sampler_name or self.sampler_name, self.hr_second_pass_steps or self.steps

    def conditions(self, prompts, of_picture, caches, data, steps=None, unconditional=True):
        """Of a pass, `(cond, uncond)`; `of_picture` is what they depend on besides the prompts."""
        found = []
        for function, is_negative, slots in (
            (prompt_parser.get_learned_conditioning, True, caches[1]),  # the negative prompt is encoded first
            (prompt_parser.get_multicond_learned_conditioning, False, caches[0]),
        ):
            texts = prompt_parser.SdConditioning(prompts[is_negative], is_negative, **of_picture)
            left_out = is_negative and not unconditional
            found.append(
                None
                if left_out
                else self.get_conds_with_caching(function, texts, self.firstpass_steps, slots, data, steps)
            )
        return found[::-1]

    def get_conds(self):
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else (self.c, self.uc)

    # Sampling

    def refine(self, denoiser, x):
        """Switches to the refiner's model when it is time."""
        if (
            self.refiner is None
            or shared.sd_model is self.refiner
            or denoiser.step / denoiser.total_steps < self.refiner_switch_at
        ):
            return False
        shared.sd_model = self.refiner
        self.model_changed()
        self.setup_conds()
        denoiser.update_inner_model()
        self.prepare_model(x)
        return True

    def model_changed(self):
        """What a host does before it encodes the prompts for a refiner."""

    def prepare_model(self, x):
        """What a host does before a model runs in a sampling."""

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

    def before_sampling(self, x):
        c, uc = self.get_conds()
        self.scripts.run("process_before_every_sampling", self, x=x, noise=x, c=c, uc=uc)

    def activate(self, data):
        extra_networks.activate(self, data)

    def sample(self):
        self.sampler = sd_samplers.create_sampler(self.sampler_name)
        x = self.sampled(
            torch.stack([self.noise(self.iteration * self.batch_size + place) for place in range(self.batch_size)])
        )
        return self.second_pass(F.interpolate(x, scale_factor=2)) if self.enable_hr else x

    def sampled(self, x, steps=None):
        self.before_sampling(x)
        self.prepare_model(x)
        return self.sampler.sample(self, x, *self.get_conds(), self.image_conditioning(x), steps)

    def second_pass(self, x):
        self.is_hr_pass = True
        name, steps = self.of_second_pass()
        self.sampler = sd_samplers.create_sampler(name)
        self.activate(self.hr_extra_network_data)
        self.calculate_hr_conds()
        x = self.sampled(x, steps)
        self.is_hr_pass = False
        return x

    def parse_prompts(self):
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt] * self.batch_size
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(prompts)
        self.negative_prompts, self.hr_extra_network_data = [self.negative_prompt] * self.batch_size, None
        if self.enable_hr:
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(
                [self.hr_prompt or self.prompt] * self.batch_size
            )
            self.hr_negative_prompts = self.negative_prompts
            self.hr_upscale_to_x, self.hr_upscale_to_y = self.width * 2, self.height * 2

    def run_batch(self):
        """The latents of one batch."""
        self.parse_prompts()
        self.activate(self.extra_network_data)
        self.setup_conds()
        return self.sample()


def process_images(p):
    """The latents `[pictures, C, H, W]` of all batches."""
    p.scripts = p.scripts or scripts.ScriptRunner([])
    checkpoint = shared.sd_model
    p.scripts.place_args(p)
    p.scripts.run("before_process", p)
    latents, pictures = [], []
    try:
        with torch.no_grad():
            for iteration in range(p.n_iter):
                shared.sd_model, p.iteration = checkpoint, iteration
                latents.append(p.run_batch())
                batch = SimpleNamespace(images=list(latents[-1]))
                p.scripts.run("postprocess_batch_list", p, batch, batch_number=iteration)
                pictures += [_picture(p, image) for image in batch.images]
    finally:
        shared.sd_model = checkpoint
    p.all_prompts, p.all_seeds = [p.prompt] * len(pictures), [p.seed + number for number in range(len(pictures))]
    p.processed = SimpleNamespace(
        images=pictures,
        infotexts=[f"picture {number}" for number in range(len(pictures))],
        index_of_first_image=0,
        extra_generation_params=p.extra_generation_params,
    )
    p.scripts.run("postprocess", p, p.processed)
    return torch.cat(latents)


def _picture(p, made):
    """A picture of 8 pixels a latent pixel, or one that a script has added, which scripts may look at."""
    if isinstance(made, torch.Tensor):
        made = Image.new("RGB", (made.shape[-1] * 8, made.shape[-2] * 8), "grey")
    args = SimpleNamespace(image=made)
    p.scripts.run("postprocess_image", p, args)
    return args.image
