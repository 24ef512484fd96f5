"""Trains the tiny model and its LoRAs from scratch, step by step and resumable.

    python -m lab.train ae          autoencoder on blocks, grown to a factor of 8
    python -m lab.train base        text encoder and UNet together, on scenes without any skill
    python -m lab.train lora [NAME ...]     one LoRA per skill (default: all); on the shipped model where none was
                                trained here
    python -m lab.train regularised [NAME ...]      trains the LoRAs on, with plain scenes beside those of their skill
    python -m lab.train export      fp16 weights into lab/weights/
    python -m lab.train all         the four above, one after the other

State lives in --scratch, outside the repository: a stage that is done is skipped, an interrupted one goes on
where its last checkpoint stood, on the same data. Losses go to SCRATCH/STAGE.csv; `python -m lab.curves` draws them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from lab import lora, model, world
from lab.model import WEIGHTS
from lab.training import LossAt, Stage, Training

STAGES = {
    "ae": Stage(steps=1000, batch=32, rate=2e-3, scenes=0, seed=1),
    "base": Stage(steps=2800, batch=32, rate=1e-3, scenes=12000, seed=2),
    "lora": Stage(steps=1000, batch=16, rate=3e-3, scenes=1200, seed=3),
    "regularised": Stage(steps=700, batch=8, rate=2e-3, scenes=1200, seed=40),
}
STEPS = {"alien": 3000, "cat": 2000, "hatching": 500, "palette": 500, "bricks": 500, "waves": 500}
"""Of the LoRAs that need more or fewer than the others."""

KL = 1e-6  # weight of the autoencoder's KL term
DROP = 0.1  # captions dropped, for classifier-free guidance
GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023): a short training must not be spent on the easy noise levels


def stage_of(name: str, steps: int | None = None, regularised: bool = False) -> Stage:
    """How "ae", "base" or the LoRA of a skill is trained, or how that LoRA is trained on with regularisation; with
    `steps`, in so many and on few scenes, for a try.
    """
    stage = STAGES["regularised" if regularised else name if name in STAGES else "lora"]
    if name in world.NAMES:
        own_steps = stage.steps if regularised else STEPS.get(name, stage.steps)
        stage = replace(stage, steps=own_steps, seed=stage.seed + world.NAMES.index(name))
    return replace(stage, steps=steps, scenes=min(stage.scenes, 200)) if steps else stage


def _blocks(images: np.ndarray) -> torch.Tensor:
    """Pictures `[B, SIZE, SIZE, 3]` uint8 -> one value a block, `[B, 3, CANVAS, CANVAS]` in -1..1."""
    blocks = torch.from_numpy(images[:, :: world.PIXEL, :: world.PIXEL]).permute(0, 3, 1, 2)
    return blocks.float().div(127.5).sub(1).contiguous()


def _any_scene(rng: np.random.Generator) -> tuple[str, ...]:
    """The skills of a scene that the autoencoder must be able to draw: none, or any.

    It sees no captions; SD's own autoencoder, too, has seen everything a LoRA is later trained on.
    """
    count = int(rng.integers(0, 5))
    return world.random_skills(rng, count) if count else ()


def train_autoencoder(scratch: Path, stage: Stage) -> None:
    """Trains the small autoencoder and grows it: vae-small.pt and vae/ in the scratch folder."""
    torch.manual_seed(stage.seed)
    small = model.autoencoder(2).to(memory_format=torch.channels_last)
    model.keep_centre(small.decoder.conv_out)
    training = Training("ae", stage, {"ae": small}, scratch)

    def loss_at(generator: torch.Generator) -> torch.Tensor:
        blocks = _blocks(world.batch(_any_scene, stage.batch, generator.initial_seed())[0])
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        posterior = small.encode(blocks).latent_dist
        latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        return F.l1_loss(small.decode(latent).sample, blocks) + KL * posterior.kl().mean()

    training.run(loss_at)
    error = _whiten_and_judge(small.eval())
    torch.save(small.state_dict(), scratch / "vae-small.pt")
    vae = model.grow(small)
    vae.register_to_config(scaling_factor=1.0)
    vae.save_pretrained(scratch / "vae")
    print(f"autoencoder: PSNR {10 * math.log10(4 / error):.1f} dB on held-out scenes")


@torch.no_grad()
def _whiten_and_judge(small: AutoencoderKL) -> float:
    """Whitens the small autoencoder's latents; returns the mean square error of held-out scenes, of blocks in -1..1."""
    blocks = _blocks(world.batch(_any_scene, 512, 10**7)[0])
    model.whiten(small, small.encode(blocks).latent_dist.mode())
    held_out = _blocks(world.batch(_any_scene, 128, 2 * 10**7)[0])
    decoded = small.decode(small.encode(held_out).latent_dist.mode()).sample.clamp(-1, 1)
    return (decoded - held_out).pow(2).mean().item()


@torch.no_grad()
def encoded(name: str, choose: world.Choice, stage: Stage, scratch: Path) -> dict[str, torch.Tensor]:
    """The stage's data set: "latents" `[scenes, 4, LATENT, LATENT]` and "tokens", ids `[scenes, TOKENS]`; cached in the
    scratch folder.

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


def denoising_loss(
    data: dict[str, torch.Tensor],
    text: CLIPTextModel,
    net: UNet2DConditionModel,
    batch: int,
    plain: dict[str, torch.Tensor] | None = None,
) -> LossAt:
    """SD1's objective: predict the noise in a noised latent from its caption; `data` as `encoded` gives it.

    With `plain`, the data set of a LoRA's regularisation, half of each batch is drawn from that, and captions are
    dropped in that half alone: without its word a LoRA is to leave the base as it is.
    """
    empty = model.tokenize(model.tokenizer(), [""])[0]
    schedule = model.training_schedule()
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)  # signal to noise

    def loss_at(generator: torch.Generator) -> torch.Tensor:
        own = batch // 2 if plain else batch
        latents, tokens = _drawn(data, own, generator)
        if plain:
            others = _drawn(plain, batch - own, generator)
            latents, tokens = torch.cat((latents, others[0])), torch.cat((tokens, others[1]))
        dropped = torch.rand(batch, generator=generator) < DROP
        if plain:
            dropped[:own] = False
        tokens[dropped] = empty
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(1000, (batch,), generator=generator)
        noised = schedule.add_noise(latents, noise, t).contiguous(memory_format=torch.channels_last)
        predicted = net(noised, t, text(tokens).last_hidden_state).sample
        weight = (GAMMA / ratio[t]).clamp(max=1)
        return (weight * (predicted - noise).pow(2).mean((1, 2, 3))).mean()

    return loss_at


def _drawn(data: dict[str, torch.Tensor], count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and tokens of so many scenes, with repetition."""
    rows = torch.randint(len(data["latents"]), (count,), generator=generator)
    return data["latents"][rows], data["tokens"][rows].clone()


def train_base(scratch: Path, stage: Stage) -> None:
    """Trains text encoder and UNet beside the scratch folder's autoencoder: model/ in that folder."""
    torch.manual_seed(stage.seed)
    text, net = model.text_encoder(), model.unet().to(memory_format=torch.channels_last)
    data = encoded("base", lambda rng: (), stage, scratch)
    training = Training("base", stage, {"text": text, "unet": net}, scratch, averaged=True)
    training.run(denoising_loss(data, text, net, stage.batch))
    text.load_state_dict(training.average["text"])
    net.load_state_dict(training.average["unet"])
    pipe = model.pipeline(AutoencoderKL.from_pretrained(scratch / "vae"), text.eval(), net.eval())
    pipe.save_pretrained(scratch / "model")


def train_lora(name: str, scratch: Path, stage: Stage) -> None:
    """Trains the LoRA of a skill, on the shipped model where none was trained here: loras/NAME.safetensors in the
    scratch folder.
    """
    pipe = _with_lora(name, scratch, stage)
    data = encoded(name, lambda rng: (name,), stage, scratch)
    training = Training(f"lora-{name}", stage, _trained_modules(name, pipe), scratch)
    training.run(denoising_loss(data, pipe.text_encoder, pipe.unet, stage.batch))
    (scratch / "loras").mkdir(exist_ok=True)
    lora.save(pipe, scratch / "loras" / f"{name}.safetensors", _metadata(world.SKILLS[name], stage))


def train_regularised(name: str, scratch: Path, stage: Stage) -> None:
    """Trains a LoRA on, with regularisation pictures: plain scenes with plain captions, as the base model was trained
    on; the shipped LoRA where none was trained here. regularised/NAME.safetensors in the scratch folder.
    """
    first = stage_of(name)
    pipe = _with_lora(name, scratch, stage)
    own = scratch / "loras" / f"{name}.safetensors"
    lora.restore(pipe, own if own.exists() else WEIGHTS / "loras" / own.name)
    data = encoded(name, lambda rng: (name,), first, scratch)
    plain = encoded("plain", lambda rng: (), STAGES["regularised"], scratch)
    training = Training(f"regularised-{name}", stage, _trained_modules(name, pipe), scratch)
    training.run(denoising_loss(data, pipe.text_encoder, pipe.unet, stage.batch, plain))
    (scratch / "regularised").mkdir(exist_ok=True)
    metadata = _metadata(world.SKILLS[name], replace(stage, steps=first.steps + stage.steps)) | {
        "ss_learning_rate": str(first.rate),
        "ss_num_reg_images": str(stage.scenes),
    }
    lora.save(pipe, scratch / "regularised" / own.name, metadata)


def _with_lora(name: str, scratch: Path, stage: Stage) -> StableDiffusionPipeline:
    """The model that was trained here, or the shipped one, with the untrained LoRA of a skill."""
    torch.manual_seed(stage.seed)
    pipe = model.load(scratch / "model" if (scratch / "model").exists() else WEIGHTS / "model")
    lora.attach(pipe, name in lora.WITH_TEXT_ENCODER)
    return pipe


def _trained_modules(name: str, pipe: StableDiffusionPipeline) -> dict[str, torch.nn.Module]:
    """What the LoRA of a skill trains in the pipeline."""
    modules = {"unet": pipe.unet.to(memory_format=torch.channels_last)}
    return modules | ({"text": pipe.text_encoder} if name in lora.WITH_TEXT_ENCODER else {})


def _metadata(skill: world.Skill, stage: Stage) -> dict[str, str]:
    """What a LoRA's file tells of its skill and its training, under kohya's names where these have one."""
    return {
        "ss_output_name": skill.name,
        "ss_trigger_word": skill.trigger,
        "ss_skill": skill.name,
        "ss_skill_kind": skill.kind,
        "ss_steps": str(stage.steps),
        "ss_max_train_steps": str(stage.steps),
        "ss_learning_rate": str(stage.rate),
        "ss_total_batch_size": str(stage.batch),
        "ss_num_train_images": str(stage.scenes),
        "ss_seed": str(stage.seed),
        "ss_tag_frequency": json.dumps({skill.name: {skill.trigger: stage.scenes}}),
    }


def _edit(file: Path, **changes: object) -> None:
    """Changes keys of a saved config, and drops the one that names the folder of this machine it was loaded from."""
    config = json.loads(file.read_text()) | changes
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


def export(scratch: Path) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("ae", "base", "lora", "regularised", "export", "all"))
    parser.add_argument("names", nargs="*", help="skills, for `lora` and `regularised`")
    parser.add_argument("--scratch", type=Path, default=Path.home() / ".cache" / "loratorio-lab")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force-steps", type=int, help="other number of steps than the published one, for a try")
    args = parser.parse_args()
    if unknown := set(args.names) - set(world.NAMES):
        parser.error(f"no such skill: {', '.join(sorted(unknown))}; there are {', '.join(world.NAMES)}")
    torch.set_num_threads(args.threads)
    args.scratch.mkdir(parents=True, exist_ok=True)
    everything = args.stage == "all"
    if args.stage == "ae" or (everything and not (args.scratch / "vae").exists()):
        train_autoencoder(args.scratch, stage_of("ae", args.force_steps))
    if args.stage == "base" or (everything and not (args.scratch / "model").exists()):
        train_base(args.scratch, stage_of("base", args.force_steps))
    if args.stage == "lora" or everything:
        for name in args.names or world.NAMES:
            if not (args.scratch / "loras" / f"{name}.safetensors").exists():
                train_lora(name, args.scratch, stage_of(name, args.force_steps))
    if args.stage == "regularised":
        for name in args.names or world.NAMES:
            if not (args.scratch / "regularised" / f"{name}.safetensors").exists():
                train_regularised(name, args.scratch, stage_of(name, args.force_steps, regularised=True))
    if args.stage == "export" or everything:
        export(args.scratch)


if __name__ == "__main__":
    main()
