"""Trains the tiny model and its LoRAs from scratch, step by step and resumable.

    python -m lab.train ae          autoencoder on blocks, grown to a factor of 8
    python -m lab.train base        text encoder and UNet together, on scenes without any skill
    python -m lab.train lora [NAME ...]     one LoRA per skill (default: all); on the shipped model where none was
    trained here python -m lab.train export      fp16 weights into lab/weights/ python -m lab.train all         the four
    above, one after the other

State lives in --scratch, outside the repository: a stage that is done is skipped, an interrupted one goes on
where its last checkpoint stood, on the same data. Losses go to SCRATCH/STAGE.csv; `python -m lab.curves` draws them.
"""

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from lab import lora, model, world
from lab.model import WEIGHTS


@dataclass(frozen=True)
class Stage:
    """How one stage is trained. Seeds are part of it, so that a stage is the same wherever it runs."""

    steps: int
    batch: int
    rate: float  # peak learning rate
    scenes: int  # size of the data set
    seed: int


STAGES = {
    "ae": Stage(steps=1000, batch=32, rate=2e-3, scenes=0, seed=1),
    "base": Stage(steps=2800, batch=32, rate=1e-3, scenes=12000, seed=2),
    "lora": Stage(steps=1000, batch=16, rate=3e-3, scenes=1200, seed=3),
}
STEPS = {
    "alien": 3000,
    "cat": 2000,
    "hatching": 500,
    "palette": 500,
    "bricks": 500,
    "waves": 500,
}  # of the LoRAs that need more or fewer
EMA = 0.995  # of the base's weights, per step
KL = 1e-6  # weight of the autoencoder's KL term
DROP = 0.1  # captions dropped, for classifier-free guidance
GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023): a short training must not be spent on the easy noise levels
SAVE_EVERY = 60  # seconds between checkpoints


class Run:
    """The loop that all stages share: warm-up and cosine rate, gradient clipping, log, checkpoints."""

    def __init__(self, name, stage, modules, scratch, averaged=False):
        self.stage, self.modules = stage, modules
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=stage.rate, weight_decay=1e-4, betas=(0.9, 0.99))
        self.average = {k: copy.deepcopy(m.state_dict()) for k, m in modules.items()} if averaged else None
        self.checkpoint, self.log = scratch / f"{name}.pt", scratch / f"{name}.csv"
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            self._restore()
        else:
            self.log.write_text("step,loss,seconds\n")

    def _restore(self):
        state = torch.load(self.checkpoint, weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        lines = self.log.read_text().splitlines()  # rows written after the checkpoint are trained again
        self.log.write_text(
            "\n".join([lines[0], *(row for row in lines[1:] if int(row.split(",")[0]) <= self.step)]) + "\n"
        )

    def save(self):
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def train(self, loss_at):
        """`loss_at(rng)` computes the loss of one batch drawn with a torch Generator that depends on the step alone."""
        stage, begin, saved, seen = self.stage, time.time() - self.seconds, time.time(), []
        while self.step < stage.steps:
            progress = self.step / stage.steps
            rate = (
                stage.rate
                * min(1, (self.step + 1) / (0.03 * stage.steps + 1))
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_at(torch.Generator().manual_seed(stage.seed * 1_000_003 + self.step))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            seen.append(loss.item())
            if self.average:
                keep = min(EMA, self.step / (self.step + 10))
                for key, module in self.modules.items():
                    for name, value in module.state_dict().items():
                        if value.is_floating_point():
                            self.average[key][name].lerp_(value, 1 - keep)
            if self.step % 20 == 0 or self.step == stage.steps:
                self.seconds = time.time() - begin
                with self.log.open("a") as file:
                    file.write(f"{self.step},{np.mean(seen):.5f},{self.seconds:.1f}\n")
                print(
                    f"{self.log.stem} {self.step}/{stage.steps}  loss {np.mean(seen):.4f}  {self.seconds:.0f} s",
                    flush=True,
                )
                seen = []
            if time.time() - saved > SAVE_EVERY or self.step == stage.steps:
                self.save()
                saved = time.time()


def _blocks(images):
    """Pictures uint8 [B, SIZE, SIZE, 3] -> one value per block, [B, 3, CANVAS, CANVAS] in -1..1."""
    return (
        torch.from_numpy(images[:, :: world.PIXEL, :: world.PIXEL])
        .permute(0, 3, 1, 2)
        .float()
        .div(127.5)
        .sub(1)
        .contiguous()
    )


def _any_scene(rng):
    """What the autoencoder must be able to draw: generic scenes and every skill's look. It sees no captions;
    SD's own autoencoder, too, has seen everything a LoRA is later trained on."""
    count = int(rng.integers(0, 5))
    return world.random_skills(rng, count) if count else ()


def train_autoencoder(scratch):
    stage = STAGES["ae"]
    torch.manual_seed(stage.seed)
    small = model.autoencoder(2).to(memory_format=torch.channels_last)
    model.keep_centre(small.decoder.conv_out)
    run = Run("ae", stage, {"ae": small}, scratch)

    def loss_at(generator):
        blocks = _blocks(world.batch(_any_scene, stage.batch, generator.initial_seed())[0]).contiguous(
            memory_format=torch.channels_last
        )
        posterior = small.encode(blocks).latent_dist
        latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        return F.l1_loss(small.decode(latent).sample, blocks) + KL * posterior.kl().mean()

    run.train(loss_at)
    with torch.no_grad():
        blocks = _blocks(world.batch(_any_scene, 512, 10**7)[0])
        model.whiten(small.eval(), small.encode(blocks).latent_dist.mode())
        held_out = _blocks(world.batch(_any_scene, 128, 2 * 10**7)[0])
        error = (
            (small.decode(small.encode(held_out).latent_dist.mode()).sample.clamp(-1, 1) - held_out)
            .pow(2)
            .mean()
            .item()
        )
    torch.save(small.state_dict(), scratch / "vae-small.pt")
    vae = model.grow(small)
    vae.register_to_config(scaling_factor=1.0)
    vae.save_pretrained(scratch / "vae")
    print(f"autoencoder: PSNR {10 * math.log10(4 / error):.1f} dB on held-out scenes")


@torch.no_grad()
def encoded(name, choose, stage, scratch):
    """The stage's data set: latents [scenes, 4, LATENT, LATENT] and token ids [scenes, TOKENS]; cached in scratch.

    Encoded with the small autoencoder where it was trained here, which the grown one equals at a fraction of the cost.
    """
    path = scratch / f"data-{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    images, captions, _ = world.batch(choose, stage.scenes, stage.seed * 10**6)
    blocks = _blocks(images)
    if (scratch / "vae-small.pt").exists():
        vae = model.autoencoder(2)
        vae.load_state_dict(torch.load(scratch / "vae-small.pt", weights_only=True))
    else:
        vae, blocks = model.load(WEIGHTS / "model").vae, F.interpolate(blocks, scale_factor=world.PIXEL, mode="nearest")
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in blocks.split(100)])
    data = {"latents": latents, "tokens": model.tokenize(model.tokenizer(), captions)}
    torch.save(data, path)
    return data


def denoising_loss(data, text, net, stage, empty):
    """SD1's objective: predict the noise in a noised latent from its caption. -> a function for `Run.train`."""
    schedule = model.training_schedule()
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)  # signal to noise

    def loss_at(generator):
        rows = torch.randint(len(data["latents"]), (stage.batch,), generator=generator)
        latents, tokens = data["latents"][rows], data["tokens"][rows].clone()
        tokens[torch.rand(stage.batch, generator=generator) < DROP] = empty
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(1000, (stage.batch,), generator=generator)
        noised = schedule.add_noise(latents, noise, t).contiguous(memory_format=torch.channels_last)
        predicted = net(noised, t, text(tokens).last_hidden_state).sample
        weight = (GAMMA / ratio[t]).clamp(max=1)
        return (weight * (predicted - noise).pow(2).mean((1, 2, 3))).mean()

    return loss_at


def train_base(scratch):
    stage = STAGES["base"]
    torch.manual_seed(stage.seed)
    text, net = model.text_encoder(), model.unet().to(memory_format=torch.channels_last)
    data = encoded("base", lambda rng: (), stage, scratch)
    run = Run("base", stage, {"text": text, "unet": net}, scratch, averaged=True)
    run.train(denoising_loss(data, text, net, stage, model.tokenize(model.tokenizer(), [""])[0]))
    text.load_state_dict(run.average["text"])
    net.load_state_dict(run.average["unet"])
    pipe = model.pipeline(AutoencoderKL.from_pretrained(scratch / "vae"), text.eval(), net.eval())
    pipe.save_pretrained(scratch / "model")


def train_lora(name, scratch):
    skill = world.SKILLS[name]
    stage = STAGES["lora"]
    stage = Stage(
        STEPS.get(name, stage.steps), stage.batch, stage.rate, stage.scenes, stage.seed + world.NAMES.index(name)
    )
    torch.manual_seed(stage.seed)
    pipe = model.load(scratch / "model" if (scratch / "model").exists() else WEIGHTS / "model")
    with_text = name in lora.WITH_TEXT_ENCODER
    lora.attach(pipe, with_text)
    data = encoded(name, lambda rng: (name,), stage, scratch)
    modules = {"unet": pipe.unet.to(memory_format=torch.channels_last)} | (
        {"text": pipe.text_encoder} if with_text else {}
    )
    run = Run(f"lora-{name}", stage, modules, scratch)
    run.train(denoising_loss(data, pipe.text_encoder, pipe.unet, stage, model.tokenize(model.tokenizer(), [""])[0]))
    (scratch / "loras").mkdir(exist_ok=True)
    lora.save(
        pipe,
        scratch / "loras" / f"{name}.safetensors",
        {
            "ss_output_name": name,
            "ss_trigger_word": skill.trigger,
            "ss_skill": name,
            "ss_skill_kind": skill.kind,
            "ss_steps": str(stage.steps),
            "ss_max_train_steps": str(stage.steps),
            "ss_learning_rate": str(stage.rate),
            "ss_total_batch_size": str(stage.batch),
            "ss_num_train_images": str(stage.scenes),
            "ss_seed": str(stage.seed),
            "ss_tag_frequency": json.dumps({name: {skill.trigger: stage.scenes}}),
        },
    )


def _edit(file, **changes):
    """Changes keys of a saved config, and drops the one that names the folder of this machine it was loaded from."""
    config = json.loads(file.read_text()) | changes
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


def export(scratch):
    """fp16 copies of everything a user needs into lab/weights/."""
    pipe = model.load(scratch / "model", torch.float16)
    pipe.register_modules(tokenizer=None)  # stays as it lies there: vocab.json and merges.txt, which every host reads
    pipe.save_pretrained(WEIGHTS / "model", safe_serialization=True)
    for file in (WEIGHTS / "model").rglob("*config.json"):
        if file.parent.name != "tokenizer":
            _edit(file)
    _edit(WEIGHTS / "model" / "model_index.json", tokenizer=["transformers", "CLIPTokenizer"])
    (WEIGHTS / "loras").mkdir(exist_ok=True)
    for file in (scratch / "loras").glob("*.safetensors"):
        (WEIGHTS / "loras" / file.name).write_bytes(file.read_bytes())
    total = sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file())
    print(f"lab/weights: {total / 1e6:.1f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("ae", "base", "lora", "export", "all"))
    parser.add_argument("names", nargs="*", help="skills, for `lora`")
    parser.add_argument("--scratch", type=Path, default=Path.home() / ".cache" / "loratorio-lab")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force-steps", type=int, help="other number of steps than the published one, for a try")
    args = parser.parse_args()
    if unknown := set(args.names) - set(world.NAMES):
        parser.error(f"no such skill: {', '.join(sorted(unknown))}; there are {', '.join(world.NAMES)}")
    torch.set_num_threads(args.threads)
    args.scratch.mkdir(parents=True, exist_ok=True)
    if args.force_steps:
        STEPS.clear()
        for key, s in STAGES.items():
            STAGES[key] = Stage(args.force_steps, s.batch, s.rate, min(s.scenes, 200), s.seed)
    everything = args.stage == "all"
    if args.stage == "ae" or (everything and not (args.scratch / "vae").exists()):
        train_autoencoder(args.scratch)
    if args.stage == "base" or (everything and not (args.scratch / "model").exists()):
        train_base(args.scratch)
    if args.stage == "lora" or everything:
        for name in args.names or world.NAMES:
            if not (args.scratch / "loras" / f"{name}.safetensors").exists():
                train_lora(name, args.scratch)
    if args.stage == "export" or everything:
        export(args.scratch)


if __name__ == "__main__":
    main()
