"""A model's folder as diffusers saves it, checked before it is loaded: what is missing or broken is named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_loratorio.errors import LoratorioError

INDEX = "model_index.json"

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"

NEEDED = {
    SD: ("unet", "vae", "scheduler", "text_encoder", "tokenizer"),
    SDXL: ("unet", "vae", "scheduler", "text_encoder_2", "tokenizer_2"),
}
"""The parts without which a pipeline makes no picture."""

OF_TRANSFORMER = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
"""The same of SD 3 and FLUX.1."""

PAIRS = [(f"text_encoder{number}", f"tokenizer{number}") for number in ("", "_2", "_3")]
"""One of which is of no use without the other."""

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that are not loaded: pictures are made without them."""

FILES = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "t5": ("tokenizer.json", "spiece.model"),
}
"""The files of which a part has one at least; of the others it is `config.json`."""


def index_of(folder: Path, told: str) -> Mapping[str, Any]:
    """What the folder's index says. Raises LoratorioError, which calls the folder what is `told`."""
    if not (folder / INDEX).is_file():
        raise LoratorioError(f"{told} is no diffusers folder: it has no {INDEX}.")
    index = _object(folder / INDEX, told)
    if not isinstance(index.get("_class_name"), str):
        raise LoratorioError(f"{told} is broken: its {INDEX} names no pipeline.")
    return index


def denoiser_in(index: Mapping[str, Any]) -> tuple[str, str]:
    """What the index calls its denoiser, and that one's class; empty where it names none."""
    named = [(part, str(index[part][1])) for part in ("unet", "transformer") if _is_named(index, part)]
    return named[0] if named else ("", "")


def check_parts(folder: Path, index: Mapping[str, Any], told: str) -> None:
    """Raises LoratorioError where a needed part is not in the index or has no configuration that can be read.

    That there are weights too is diffusers' to say.
    """
    of_unet = NEEDED[SDXL if "XL" in index["_class_name"] else SD]
    needed = OF_TRANSFORMER if denoiser_in(index)[0] == "transformer" else of_unet
    for pair in PAIRS:
        if any(_is_named(index, part) for part in pair):
            needed = (*needed, *(part for part in pair if part not in needed))
    unnamed = [part for part in needed if not _is_named(index, part)]
    if unnamed:
        raise LoratorioError(f"{told} is incomplete: its {INDEX} names no {' and no '.join(unnamed)}.")
    for part in needed:
        kind = "t5" if "T5" in str(index[part][1]) else re.sub(r"_\d$", "", part)
        files = FILES.get(kind if part.startswith(("tokenizer", "scheduler")) else part, ("config.json",))
        if not any((folder / part / file).is_file() for file in files):
            raise LoratorioError(f"{told} is incomplete: there is no {part}/{f' or {part}/'.join(files)} in it.")
        for file in sorted((folder / part).glob("*config.json")):
            _object(file, told)


def _is_named(index: Mapping[str, Any], part: str) -> bool:
    """Whether the index has a class for this part."""
    return isinstance(index.get(part), list) and any(index[part])


def _object(file: Path, told: str) -> Mapping[str, Any]:
    name = file.name if file.name == INDEX else f"{file.parent.name}/{file.name}"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LoratorioError(f"{told} is broken: its {name} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise LoratorioError(f"{told} is broken: its {name} is no object.")
    return found
