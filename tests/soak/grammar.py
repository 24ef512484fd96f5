"""Mixed requests from a grammar, one for every seed and number; knows no WebUI.

A request is a dict that JSON can hold:

    fields      of the WebUI's API, but for pictures
    settings    LoRAtorio's, or None for an ordinary picture
    picture     where it is made from another one: that one's size
    mask        where it is inpainted: the part that is made anew, in fractions of the picture
    plot        axes of an X/Y/Z plot: label and values
    fault       what is to go wrong, see `FAULTS`; or None
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PREFIX = "soak_"
POOL_FOLDER = "loratorio-soak/pool"
STYLE = {"name": "soak", "prompt": "{prompt}, soft light <lora:soak_locon:0.4>", "negative_prompt": "grey"}

SLOW = {"DPM adaptive": 30, **dict.fromkeys(("Bosh3", "Fehlberg2", "Adaptive Heun", "Dopri5", "Custom"), 100)}
"""Samplers that make more steps than they are asked for, and about how many; reForge names the later ones `ODE (...)`.
"""


def more_steps(sampler: str) -> int:
    """About how many steps more than it is asked for a sampler makes."""
    return SLOW.get(re.sub(r"ODE \(?|\)", "", sampler), 0)


@dataclass(frozen=True)
class Offer:
    """What a WebUI offers.

    kinds, unread: of LoRA files that it applies, and that it does not. checkpoints: others than the one in use: title
    and prefix of the LoRAs that fit. options: names. axes: the X/Y/Z plot's. work: most evaluations of one model on
    one picture of 64 x 64 in a request. largest: edge of a picture.
    """

    samplers: tuple[str, ...]
    schedulers: tuple[str, ...]
    kinds: tuple[str, ...]
    unread: tuple[str, ...]
    pool: tuple[str, ...]
    checkpoints: tuple[tuple[str, str], ...]
    refiners: tuple[str, ...]
    options: tuple[str, ...]
    axes: tuple[str, ...]
    work: int = 120
    largest: int = 128


def request(seed: int, number: int, offer: Offer, without: Sequence[str] = ()) -> dict[str, Any]:
    """The request of this number, with a fault in about half of them, but none of the kinds in `without`."""
    rng = random.Random(f"{seed}/{number}")
    kind = _choice(rng, {name: weight for name, (weight, _) in FAULTS.items()})
    made = _request(rng, offer)
    if kind in without:
        kind = "none"
    fault = FAULTS[kind][1](rng, made, offer)
    made["fault"] = {"kind": kind, **fault} if fault is not None and kind != "none" else None
    _afford(made, offer)
    return made


def _choice(rng: random.Random, weights: dict[Any, float]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


# Prompts

NOUNS = ("cat", "dog", "bird", "house on a hill", "robot", "mushroom")
LOOKS = ("red", "blue", "old", "dark", "tiny")


def _text(rng: random.Random) -> str:
    noun, other, look, second = rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(LOOKS), rng.choice(LOOKS)
    return _choice(
        rng,
        {
            f"a {look} {noun}": 8,
            f"(a {noun}:1.3), [{look}], ({second})": 3,
            f"a [{noun}:{other}:0.5] in the rain": 3,
            f"a {look} [{noun}:{rng.choice((1, 0.3))}] and a [{other}::0.6]": 2,
            f"a [{look}|{second}] {noun}": 2,
            f"a {noun} BREAK {look} sky": 1,
            " ".join([f"{look} {noun}"] * 40): 1,
            "": 0.5,
        },
    )


LARGEST = {"glora": 0.4}
"""Strengths above which a made LoRA of a kind turns the model into one whose predictions depend on their rounding: with
GLoRA at -1.38 they change by 6e-4 where the input changes by 6e-8, and by 8e-4 where the WebUI's own merge evaluates a
batch's rows one by one.
"""


def _strength(rng: random.Random, largest: float) -> str:
    def one() -> float:
        return round(rng.choice((1, 1, 1, 1, 1, -1)) * rng.uniform(0.05, largest), 2)

    return _choice(
        rng,
        {
            f"{one()}": 12,
            f"{one()}:{one()}": 3,
            f"te={one()}:unet={one()}": 1,
            f"{one()}:{one()}:2": 1,
            "0": 0.5,
            f"{min(largest, 1)}": 2,
        },
    )


def _part(rng: random.Random) -> str:
    """Role and window of a LoRA."""
    start = rng.choice((0, 0.2, 0.5))
    end = rng.choice((0.4, 0.75, 1)) if start < 0.4 else rng.choice((0.75, 1))
    window = _choice(rng, {f":ltstart={start}": 1, f":ltend={end}": 1, f":ltstart={start}:ltend={end}": 1})
    return _choice(rng, {"": 14, ":lt=global": 3, window: 4, f"{window}:lt=global": 1})


def tag(rng: random.Random, name: str, part: str | None = None) -> str:
    strength = _strength(rng, LARGEST.get(name.rpartition("_")[2], 1.4))
    return f"<lora:{name}:{strength}{_part(rng) if part is None else part}>"


READING = {"dora", "oft", "oft_diag", "boft", "ia3", "ia3_input", "glora"}
"""Kinds that read the weight which they change: they read it with all global LoRAs, also in steps that one of these
sits out (docs/limits.md), so beside them global LoRAs have no window.
"""


def _tags(rng: random.Random, offer: Offer) -> list[str]:
    count = _choice(rng, {1: 5, 2: 8, 3: 6, 4: 3, 5: 2, 6: 2})
    kinds = rng.sample(offer.kinds, min(count, len(offer.kinds)))
    if count > 1 and rng.random() < 0.05:
        kinds[-1] = kinds[0]
    tags = [tag(rng, PREFIX + kind) for kind in kinds]
    if READING.isdisjoint(kinds):
        return tags
    return [re.sub(r":lt(start|end)=[\d.]+(?=.*:lt=global)", "", one) for one in tags]


def _prompt(rng: random.Random, tags: Sequence[str]) -> str:
    """Texts, joined with AND in some, with the tags somewhere in them."""
    texts = [_text(rng) for _ in range(_choice(rng, {1: 9, 2: 2, 3: 1}))]
    for one in tags:
        at = rng.randrange(len(texts))
        texts[at] = rng.choice((f"{texts[at]} {one}", f"{one} {texts[at]}", f"{texts[at]}, {one}"))
    if len(texts) == 1:
        return texts[0]
    return " AND ".join(f"{text} :{rng.choice((1, 0.6, 0.3))}" if rng.random() < 0.5 else text for text in texts)


def _add(rng: random.Random, prompt: str, one: str) -> str:
    """The prompt with one more tag."""
    return rng.choice((f"{prompt} {one}", f"{one} {prompt}"))


# Whole requests


def _request(rng: random.Random, offer: Offer) -> dict[str, Any]:
    tags = _tags(rng, offer)
    fields = {
        "prompt": _prompt(rng, tags),
        "negative_prompt": _choice(
            rng, {"dark": 6, "": 2, "(dark:1.2) [grey:red:0.5]": 1, " ".join(["dark dog"] * 40): 1}
        ),
        "seed": rng.randrange(1000),
        "steps": rng.choice((1, 2, 3, 3, 4, 4, 4, 5, 6, 7, 9)),
        "width": _edge(rng, offer),
        "height": _edge(rng, offer),
        "cfg_scale": rng.choice((1.0, 1.0, 3.0, 6.0, 6.0, 6.0, 11.0)),
        "sampler_name": rng.choice(offer.samplers),
        "scheduler": "Automatic" if rng.random() < 0.7 else rng.choice(offer.schedulers),
        "batch_size": _choice(rng, {1: 6, 2: 2, 3: 1}),
        "n_iter": _choice(rng, {1: 8, 2: 1}),
    }
    if rng.random() < 0.06:
        fields["styles"] = [STYLE["name"]]
    made = {"fields": fields, "settings": _settings(rng, offer) if rng.random() < 0.92 else None}
    if more_steps(fields["sampler_name"]):
        _short(rng, made, tags[0], offer)
    else:
        shape = _choice(rng, {_plain: 10, _hires: 3, _img2img: 2, _inpaint: 3, _plot: 1})
        shape(rng, made, offer)
    return made


def _short(rng: random.Random, made: dict, one: str, offer: Offer) -> None:
    """Little for a slow sampler to do; it is composed in its first calls only, or in all of them."""
    made["fields"] |= {"batch_size": 1, "n_iter": 1, "width": 64, "height": 64, "prompt": _prompt(rng, [one])}
    settings = made["settings"]
    if settings:
        for name in ("pool", "start"):
            settings.pop(name, None)
        if offer.work < 100 or rng.random() < 0.7:
            settings["end"] = 0.9


def _edge(rng: random.Random, offer: Offer) -> int:
    return 64 if rng.random() < 0.5 else rng.randrange(64, offer.largest + 1, 8)


def _plain(rng: random.Random, made: dict, offer: Offer) -> None:
    """Nothing more."""


def _hires(rng: random.Random, made: dict, offer: Offer) -> None:
    fields = made["fields"]
    fields |= {
        "enable_hr": True,
        "hr_scale": rng.choice((1.25, 1.5, 2.0)),
        "denoising_strength": rng.choice((0.3, 0.6, 1.0)),
        "hr_second_pass_steps": rng.choice((0, 0, 2, 5)),
        "width": 64,
    }
    if rng.random() < 0.3:
        fields["hr_prompt"] = _prompt(rng, _tags(rng, offer)[:3])
    if rng.random() < 0.2:
        fields["hr_negative_prompt"] = "grey"
    if rng.random() < 0.3:
        fields["hr_sampler_name"] = rng.choice([name for name in offer.samplers if not more_steps(name)])


def _img2img(rng: random.Random, made: dict, offer: Offer) -> None:
    made["picture"] = [rng.randrange(64, 129, 8), rng.randrange(64, 129, 8)]
    made["fields"] |= {"denoising_strength": rng.choice((0.1, 0.5, 0.75, 1.0)), "resize_mode": rng.choice((0, 1, 2))}


def _inpaint(rng: random.Random, made: dict, offer: Offer) -> None:
    _img2img(rng, made, offer)
    left, top = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
    made["mask"] = [round(edge, 2) for edge in (left, top, left + rng.uniform(0.2, 0.5), top + rng.uniform(0.2, 0.5))]
    made["fields"] |= {
        "mask_blur": rng.choice((0, 4)),
        "inpainting_fill": rng.randrange(4),
        "inpaint_full_res": rng.random() < 0.4,
        "inpaint_full_res_padding": rng.choice((0, 16)),
        "inpainting_mask_invert": rng.choice((0, 0, 1)),
    }


AXES = (
    ("[LoRAtorio] off/on", "False,True"),
    ("[LoRAtorio] Method", "loratorio,switch"),
    ("[LoRAtorio] Temperature", "0.01,1"),
    ("[LoRAtorio] Base weight (lambda)", "0,1"),
    ("[LoRAtorio] LoRAs per place (top k)", "0,1"),
    ("[LoRAtorio] Step range (0.2-0.8)", "0-0.5,0.5-1"),
    ("[LoRAtorio] Text encoder", "own,merged"),
    ("[LoRAtorio] Negative prompt every", "1,2"),
    ("CFG Scale", "1,6"),
    ("Steps", "2,3"),
    ("Seed", "1,2"),
    ("Sampler", "Euler,DDIM"),
    ("Prompt S/R", "soak_plot,soak_locon,soak_te"),
)


def _plot(rng: random.Random, made: dict, offer: Offer) -> None:
    possible = [axis for axis in AXES if axis[0] in offer.axes]
    if not possible:
        return
    axes = rng.sample(possible, min(len(possible), rng.choice((1, 1, 2))))
    made["plot"] = [list(axis) for axis in axes]
    made["fields"] |= {"batch_size": 1, "n_iter": 1, "width": 64, "height": 64}
    if any(label == "Prompt S/R" for label, _ in axes):
        made["fields"]["prompt"] = f"a cat <lora:soak_plot:0.7> {tag(rng, PREFIX + rng.choice(offer.kinds))}"


def _settings(rng: random.Random, offer: Offer) -> dict[str, Any]:
    """LoRAtorio's settings, those that differ from their defaults."""
    made: dict[str, Any] = {"verify": True}

    def sometimes(share: float, name: str, *values: Any) -> None:
        if rng.random() < share:
            made[name] = rng.choice(values)

    made["method"] = _choice(rng, {"loratorio": 12, "composite": 3, "switch": 3, "merge": 1.5})
    sometimes(0.3, "patch_size", 2, 3, 5, 8, 256)
    sometimes(0.4, "temperature", 1e-6, 0.003, 0.03, 1, 100)
    sometimes(0.4, "lam", 0, 0.25, 1)
    sometimes(0.2, "top_k", 1, 2, 9)
    sometimes(0.12, "start", 0.2, 0.5)
    sometimes(0.12, "end", 0.6, 0.8)
    sometimes(0.25, "text_encoder", "merged")
    sometimes(0.25, "adapters_per_pass", 1, 2, 3)
    sometimes(0.15, "maps", True)
    sometimes(0.15, "trigger_words", True)
    sometimes(0.2, "guidance_every", 2, 3)
    if rng.random() < 0.18 and offer.pool:
        made["pool"] = _pool(rng, offer)
        made["pool_mode"] = rng.choice(("exact", "scout"))
        sometimes(0.5, "scout", 0.1, 0.3, 1.0)
        sometimes(0.4, "scout_every", 1, 2, 3)
        sometimes(0.4, "scout_share", 0.0, 0.5, 0.95)
    return made


def _pool(rng: random.Random, offer: Offer) -> Any:
    few = rng.sample(offer.pool, min(len(offer.pool), rng.choice((1, 2, 3, 5))))
    return _choice(rng, {",".join(few): 3, f"{few[0]}:0.4": 1, f"{POOL_FOLDER}/*:0.3": 2, tuple(few): 1})


# Faults: each takes a request and may change it; returns what the test needs to know, or None where it cannot happen


def _none(rng: random.Random, made: dict, offer: Offer) -> dict:
    return {}


def _call(rng: random.Random) -> int:
    """A random call of the model, early ones more often; of short samplings some are never reached."""
    return min(1 + int(rng.expovariate(1 / 8)), 60)


def _stopping(rng: random.Random, made: dict, offer: Offer) -> dict:
    made["fields"]["steps"] = max(made["fields"]["steps"], 3)
    return {"arm": {"where": _choice(rng, {"model": 6, "text": 1}), "call": _call(rng)}}


def _at_a_model_call(rng: random.Random, made: dict, offer: Offer) -> dict:
    where = _choice(rng, {"model": 6, "text": 1})
    return {"arm": {"where": where, "call": _call(rng) if where == "model" else rng.choice((1, 2, 3))}}


def _little_memory(rng: random.Random, made: dict, offer: Offer) -> dict:
    return {"arm": {"where": "model", "call": 0, "rows": rng.choice((1, 2, 2, 3, 4, 6, 9))}}


CALLBACKS = (
    "before_process",
    "process",
    "before_process_batch",
    "process_batch",
    "process_before_every_sampling",
    "cfg_denoiser",
    "cfg_denoised",
    "cfg_after_cfg",
    "postprocess_batch",
    "postprocess_image",
    "postprocess",
)


def _callback(rng: random.Random, made: dict, offer: Offer) -> dict:
    where = rng.choice(CALLBACKS)
    return {"arm": {"where": where, "call": rng.choice((1, 1, 2, 3)) if where.startswith("cfg") else 1}}


def _composing(rng: random.Random, made: dict) -> None:
    """Makes it a request whose slips LoRAtorio has to tell."""
    made.pop("plot", None)
    made["settings"] = made["settings"] or {"verify": True, "method": "loratorio"}
    if made["settings"]["method"] == "merge":
        made["settings"]["method"] = "loratorio"


def _with_bad_lora(rng: random.Random, made: dict, name: str) -> dict:
    """Puts the LoRA into one of the places that name LoRAs."""
    _composing(rng, made)
    fields, settings = made["fields"], made["settings"]
    where = _choice(rng, {"prompt": 5, "hr_prompt": 1, "pool": 2})
    if where == "hr_prompt" and fields.get("enable_hr"):
        fields["hr_prompt"] = _add(rng, fields.get("hr_prompt", fields["prompt"]), f"<lora:{name}:0.7>")
    elif where == "pool":
        settings["pool"] = f"{name}:0.7"
    else:
        where = "prompt"
        fields["prompt"] = _add(rng, fields["prompt"], f"<lora:{name}:0.7>")
    fault = {"name": name, "where": where}
    if rng.random() < 0.2:
        fields["override_settings"] = {"loratorio_stop_on_error": False}
        fault["goes_on"] = True
    return fault


def _unknown(rng: random.Random, made: dict, offer: Offer) -> dict:
    return _with_bad_lora(rng, made, rng.choice(("no_such_lora", "no such lora", "soak_lora.safetensors")))


CORRUPTED = ("soak_broken", "soak_truncated", "soak_misfit", "soak_nothing", "soak_empty")


def _corrupted(rng: random.Random, made: dict, offer: Offer) -> dict:
    return _with_bad_lora(rng, made, rng.choice(CORRUPTED))


def _nan(rng: random.Random, made: dict, offer: Offer) -> dict:
    return _with_bad_lora(rng, made, rng.choice(("soak_nan", "soak_inf")))


def _unread(rng: random.Random, made: dict, offer: Offer) -> dict | None:
    return _with_bad_lora(rng, made, PREFIX + rng.choice(offer.unread)) if offer.unread else None


WRONG_SETTINGS = (
    {"temperature": 0},
    {"temperature": "warm"},
    {"patch_size": 1.5},
    {"lam": 1.5},
    {"top_k": -1},
    {"method": "average"},
    {"start": 0.8, "end": 0.2},
    {"temprature": 0.1},
    {"pool": "no_such_*"},
)


def _wrong_setting(rng: random.Random, made: dict, offer: Offer) -> dict:
    _composing(rng, made)
    wrong = rng.choice(WRONG_SETTINGS)
    made["settings"] |= wrong
    return {"words": [*wrong][:1] if "pool" not in wrong else ["no_such_*"]}


WRONG_TAGS = {
    "0.8:ltsart=0.5": "ltsart",
    "0.8:ltstart=2": "ltstart",
    "0.8:ltend=early": "early",
    "0.8:ltstart=0.8:ltend=0.2": "ltend",
    "0.8:lt=everywhere": "everywhere",
    "0.8:lts=1": "lts",
}
WRONG_STRENGTHS = {text: text for text in ("0,8", "1.1.", "strong", "nan", "inf", "0@0,1@0.5")}


def _wrong(texts: dict[str, str]) -> Callable:
    def wrong(rng: random.Random, made: dict, offer: Offer) -> dict:
        _composing(rng, made)
        text = rng.choice(list(texts))
        name = PREFIX + rng.choice(offer.kinds)
        made["fields"]["prompt"] = _add(rng, made["fields"]["prompt"], f"<lora:{name}:{text}>")
        return {"words": [name, texts[text]]}

    return wrong


def _replaced(rng: random.Random, made: dict, offer: Offer) -> dict:
    """One more LoRA, of a file that nothing else uses."""
    _composing(rng, made)
    for name in ("pool", "pool_mode"):
        made["settings"].pop(name, None)
    made.pop("picture", None)
    made.pop("mask", None)
    for name in ("enable_hr", "hr_prompt"):
        made["fields"].pop(name, None)
    made["fields"] |= {"prompt": f"a cat <lora:soak_replaced:0.9> {tag(rng, PREFIX + rng.choice(offer.kinds), '')}"}
    made["fields"] |= {"steps": min(made["fields"]["steps"], 4), "batch_size": 1, "n_iter": 1}
    return {"file": "soak_replaced", "kind_of_lora": rng.choice(("lora", "locon", "te", "full"))}


def _checkpoint(rng: random.Random, made: dict, offer: Offer) -> dict | None:
    if not offer.checkpoints:
        return None
    title, prefix = rng.choice(offer.checkpoints)
    fields = made["fields"]
    if fields.get("enable_hr") and prefix == PREFIX and rng.random() < 0.6:
        fields["hr_checkpoint_name"] = title
        return {"title": title, "how": "hires"}
    if prefix != PREFIX:
        for name in ("prompt", "hr_prompt"):
            if name in fields:
                fields[name] = fields[name].replace(f"<lora:{PREFIX}", f"<lora:{prefix}")
        (made["settings"] or {}).pop("pool", None)
        fields.pop("styles", None)
        made.pop("plot", None)
    how = rng.choice(("options", "override"))
    if how == "override":
        fields["override_settings"] = {"sd_model_checkpoint": title}
    return {"title": title, "how": how}


def _refiner(rng: random.Random, made: dict, offer: Offer) -> dict | None:
    if not offer.refiners:
        return None
    made["fields"] |= {
        "refiner_checkpoint": rng.choice(offer.refiners),
        "refiner_switch_at": rng.choice((0.2, 0.5, 0.8)),
        "steps": max(made["fields"]["steps"], 3),
    }
    return {}


OPTIONS = (
    ("pad_cond_uncond", True),
    ("batch_cond_uncond", False),
    ("lora_functional", True),
    ("skip_early_cond", 0.3),
    ("s_min_uncond", 2.0),
    ("CLIP_stop_at_last_layers", 2),
    ("persistent_cond_cache", False),
    ("use_old_scheduling", True),
    ("comma_padding_backtrack", 0),
    ("emphasis", "No norm"),
    ("hires_fix_use_firstpass_conds", True),
    ("eta_noise_seed_delta", 31337),
    ("lora_in_memory_limit", 3),
    ("extra_networks_default_multiplier", 0.5),
    ("sd_lora", "soak_locon"),
    ("lora_add_hashes_to_infotext", False),
    ("token_merging_ratio", 0.5),
    ("img2img_color_correction", True),
    ("sd_noise_schedule", "Zero Terminal SNR"),
    ("cross_attention_optimization", "V1"),
    ("cross_attention_optimization", "Doggettx"),
    ("upcast_attn", True),
    ("live_previews_enable", True),
    ("save_images_before_highres_fix", True),
    ("loratorio_dense_budget_mb", 0),
    ("loratorio_dense_budget_mb", 1),
    ("loratorio_map_format", "jpg"),
    ("loratorio_default_temperature", 3.0),
)


def _options(rng: random.Random, made: dict, offer: Offer) -> dict | None:
    possible = [option for option in OPTIONS if option[0] in offer.options]
    if not possible:
        return None
    return {"options": dict(rng.sample(possible, min(len(possible), rng.choice((1, 1, 2, 3)))))}


def _two_clients(rng: random.Random, made: dict, offer: Offer) -> dict:
    other = _request(rng, offer)
    for one in (made, other):
        for name in ("picture", "mask", "plot"):
            one.pop(name, None)
        one["fields"] |= {"batch_size": 1, "n_iter": 1, "steps": min(one["fields"]["steps"], 4)}
    other["fault"] = None
    _afford(other, offer)
    return {"other": other}


FAULTS: dict[str, tuple[float, Callable]] = {
    "none": (54, _none),
    "interrupt": (4, _stopping),
    "skip": (3, _stopping),
    "out of memory": (4, _at_a_model_call),
    "little memory": (3, _little_memory),
    "exception": (4, _at_a_model_call),
    "exception in a callback": (3, _callback),
    "unknown LoRA": (3, _unknown),
    "corrupted LoRA": (5, _corrupted),
    "LoRA of no numbers": (2, _nan),
    "LoRA of an unread kind": (2, _unread),
    "wrong setting": (2, _wrong_setting),
    "wrong tag": (2, _wrong(WRONG_TAGS)),
    "wrong strength": (2, _wrong(WRONG_STRENGTHS)),
    "replaced file": (2, _replaced),
    "checkpoint switch": (3, _checkpoint),
    "refiner": (3, _refiner),
    "options": (6, _options),
    "two clients": (2, _two_clients),
    "Reload UI": (0.5, _none),
}
"""By kind: how often among all requests, in hundredths or so, and how it is made."""


# Cost


def work(made: dict) -> float:
    """About how many evaluations of one model on one picture of 64 x 64 this takes."""
    fields, settings = made["fields"], made["settings"] or {}
    prompts = [fields["prompt"], *([fields.get("hr_prompt", fields["prompt"])] if fields.get("enable_hr") else [])]
    pool = str(settings.get("pool", ""))
    pooled = 12 if "*" in pool else len(pool.split(",")) if pool else 0
    steps = more_steps(fields["sampler_name"]) + fields["steps"]
    area = fields["width"] * fields["height"] / 64**2
    cells = 2 ** len(made.get("plot", ()))
    total = 0.0
    for number, prompt in enumerate(prompts):
        models = 1 + prompt.count("<lora:") + pooled
        scale = fields.get("hr_scale", 1) ** 2 if number else 1
        own = fields.get("hr_second_pass_steps") or steps
        rows = (prompt.count(" AND ") + 2) / 2
        total += (own if number else steps) * models * area * scale * rows
    return total * fields["batch_size"] * fields["n_iter"] * cells


def _afford(made: dict, offer: Offer) -> None:
    """Takes away what costs too much, one thing after the other."""
    fields = made["fields"]

    def fewer_images() -> None:
        fields["n_iter"] = 1
        fields["batch_size"] = min(2, fields["batch_size"])

    def smaller() -> None:
        fields["width"] = min(fields["width"], 72)
        fields["height"] = min(fields["height"], 72)

    def one_image() -> None:
        fields["batch_size"] = 1

    def fewer_steps() -> None:
        fields["steps"] = min(fields["steps"], 3)
        if fields.get("hr_second_pass_steps", 0) > 2:
            fields["hr_second_pass_steps"] = 2

    def no_hires() -> None:
        if (made["fault"] or {}).get("where") != "hr_prompt":
            for name in ("enable_hr", "hr_prompt"):
                fields.pop(name, None)

    def smaller_pool() -> None:
        settings = made["settings"] or {}
        if "*" in str(settings.get("pool", "")) and POOL_FOLDER in str(settings["pool"]):
            settings["pool"] = ",".join(offer.pool[:3])

    for change in (fewer_images, smaller, fewer_steps, one_image, smaller_pool, no_hires):
        if work(made) <= offer.work:
            return
        change()
