"""How far each LoRA alone diverges from the base, with its word in the caption and without it.

Measured on renders of what the captions ask for, noised as at the steps of a sampling, so that every LoRA looks at the
same latents: what is compared is `e_i(c)` and `e_0(c)`, as the method weighs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from lab import model, world
from lab.evaluation.captions import CAPTIONS, SkillSet
from lib_loratorio.composition import patch_similarity

STEPS = 10  # of the sampling whose noise levels are looked at
SEED = 900_000  # of the scenes with one skill; no training or check reaches it
OWN, ANOTHERS, PLAIN, EMPTY, ASKED, UNASKED = KINDS = (
    "own word",
    "another's word",
    "plain scene",
    "empty caption",
    "asked, of several",
    "not asked, of several",
)
"""What a caption is to a LoRA: one that asks for its skill alone, for another's alone, for none; no caption on a
picture without skills; and among those for several skills, with its own or without.
"""


SEVERAL = 2  # captions of each set that the weighings are compared on
PLACED = 0.03  # of the places, which a LoRA must win to show anything

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From divergences with the caption and without any, each `[LoRAs, steps, looks, places]`, what competes for places."""

WEIGHINGS: dict[str, Score] = {
    "the divergence itself, as the paper": lambda c, u: c,
    "less the empty caption's": lambda c, u: c - u,
    "over the empty caption's mean in the picture": lambda c, u: c / u.mean(3, keepdims=True),
    "over its own mean in the picture": lambda c, u: c / c.mean(3, keepdims=True),
    "over its own mean in all pictures and steps": lambda c, u: c / c.mean((1, 2, 3), keepdims=True),
}


class Look(NamedTuple):
    """A caption with the picture that it is read on, and the skills that it asks for."""

    caption: str
    image: np.ndarray  # [SIZE, SIZE, 3] uint8
    skills: tuple[str, ...]


def looks(each: int, sets: Sequence[SkillSet]) -> list[Look]:
    """`each` scenes of every skill alone and of none, the latter with an empty caption too; and the sets' captions."""
    found = []
    for number, skills in enumerate([*((name,) for name in world.NAMES), ()]):
        images, captions, _ = world.batch(lambda rng, skills=skills: skills, each, SEED + number)
        found += [Look(caption, image, skills) for caption, image in zip(captions, images)]
    found += [Look("", look.image, ()) for look in found[-each:]]
    return found + looks_at(sets, CAPTIONS)


def looks_at(sets: Sequence[SkillSet], each: int) -> list[Look]:
    """The first captions of sets, `each` of every set."""
    found = []
    for skill_set in sets:
        skills, contents = skill_set.contents()
        found += [
            Look(shown.caption, world.render(shown, skill_set.seed + number), skills)
            for number, shown in enumerate(contents[:each])
        ]
    return found


def kind(name: str, look: Look) -> str:
    """What a look is to the LoRA of a skill, of `KINDS`."""
    if not look.skills:
        return PLAIN if look.caption else EMPTY
    if len(look.skills) == 1:
        return OWN if name in look.skills else ANOTHERS
    return ASKED if name in look.skills else UNASKED


class Divergences(NamedTuple):
    """`values [LoRAs, steps, looks, places]`: `1 - cos` of each LoRA of `world.NAMES`; the timestep of each step."""

    values: np.ndarray
    timesteps: list[int]


@torch.no_grad()
def measure(pipe: StableDiffusionPipeline, folder: Path, seen: Sequence[Look], steps: int = STEPS) -> Divergences:
    """The divergence of each LoRA in a folder from the pipeline's model, alone, in each place of each look."""
    pipe.scheduler.set_timesteps(steps)
    images = torch.from_numpy(np.stack([look.image for look in seen])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([pipe.vae.encode(part).latent_dist.mode() for part in images.split(16)])
    latents = latents * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
    noised = [pipe.scheduler.add_noise(latents, noise, t) for t in pipe.scheduler.timesteps]
    tokens = model.tokenize(pipe.tokenizer, [look.caption for look in seen])

    def predicted() -> torch.Tensor:
        """Noise `[steps, looks, 4, LATENT, LATENT]`."""
        text = pipe.text_encoder(tokens).last_hidden_state
        return torch.stack(
            [
                torch.cat([pipe.unet(x, t, c).sample for x, c in zip(at_once.split(16), text.split(16))])
                for t, at_once in zip(pipe.scheduler.timesteps, noised)
            ]
        )

    base, values = predicted(), []
    for name in world.NAMES:
        pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
        adapted = predicted()
        pipe.unload_lora_weights()
        similarity = patch_similarity(base.flatten(0, 1), adapted.flatten(0, 1)[None], 1)
        values.append((1 - similarity).reshape(len(noised), len(seen), -1).numpy())
    return Divergences(np.stack(values), pipe.scheduler.timesteps.tolist())


def won(scores: np.ndarray, seen: Sequence[Look]) -> dict[str, list[float]]:
    """Of scores `[LoRAs, steps, looks, places]`, of which the largest wins a place: the share of places that LoRAs win
    which the caption asks for, in each step, by the number of the look at several skills.
    """
    winner, shares = scores.argmax(0), {}
    for number, look in enumerate(seen):
        if len(look.skills) > 1:
            shares[str(number)] = np.isin(winner[:, number], _asked(look)).mean(-1).round(4).tolist()
    return shares


def placed(scores: np.ndarray, seen: Sequence[Look]) -> dict[str, float]:
    """The share of the asked LoRAs that win at least PLACED of the places, the mean over steps, by look as in `won`."""
    winner, shares = scores.argmax(0), {}
    for number, look in enumerate(seen):
        if len(look.skills) > 1:
            own = np.stack([(winner[:, number] == lora).mean(-1) for lora in _asked(look)])
            shares[str(number)] = round(float((own >= PLACED).mean()), 4)
    return shares


def _asked(look: Look) -> list[int]:
    """The numbers in `world.NAMES` of the LoRAs that a look asks for."""
    return [world.NAMES.index(name) for name in look.skills]


def weighing_lines(of: str, found: Divergences, seen: Sequence[Look]) -> list[dict]:
    """What the results keep of `WEIGHINGS`: `found` has the looks `seen`, and after them the same without captions."""
    conditional, unconditional = np.split(found.values, 2, axis=2)
    several = [len(look.skills) for look in seen]
    return [
        {
            "loras": of,
            "weighing": name,
            "won": won(score(conditional, unconditional), seen),
            "placed": placed(score(conditional, unconditional), seen),
            "counts": several,
            "timesteps": found.timesteps,
        }
        for name, score in WEIGHINGS.items()
    ]


def without_caption(look: Look) -> Look:
    return look._replace(caption="")


def lines(of: str, found: Divergences, seen: Sequence[Look]) -> list[dict]:
    """What the results keep: of each LoRA and kind of caption the divergence by step and caption, the mean over places;
    and the share of places that those asked for win. `of` names the LoRAs.
    """
    kept = []
    for name, values in zip(world.NAMES, found.values):
        for of_kind in KINDS:
            rows = [number for number, look in enumerate(seen) if kind(name, look) == of_kind]
            if rows:
                means = [[float(f"{v:.4g}") for v in step] for step in values[:, rows].mean(-1)]
                kept.append({"loras": of, "lora": name, "captions": of_kind, "divergence": means})
    several = [len(look.skills) for look in seen if len(look.skills) > 1]
    kept.append({"loras": of, "won": won(found.values, seen), "counts": several, "timesteps": found.timesteps})
    return kept


def write(path: Path, kept: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
