"""Models from disk as diffusers pipelines, and the schedulers by the names that WebUIs give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.folders import NEEDED, SD, UNUSED, check_parts, index_of


class Scheduler(NamedTuple):
    """A scheduler as diffusers makes it and as WebUIs call it; `kind` is the WebUIs' schedule type, if any."""

    type: str
    label: str
    kind: str = ""
    changes: dict = {}  # noqa: RUF012


KARRAS = {"use_karras_sigmas": True}

SCHEDULERS = {
    "ddim": Scheduler("DDIMScheduler", "DDIM"),
    "euler": Scheduler("EulerDiscreteScheduler", "Euler"),
    "euler_a": Scheduler("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": Scheduler("HeunDiscreteScheduler", "Heun"),
    "dpm2": Scheduler("KDPM2DiscreteScheduler", "DPM2"),
    "dpmpp_2m": Scheduler("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpmpp_2m_karras": Scheduler("DPMSolverMultistepScheduler", "DPM++ 2M", "Karras", KARRAS),
    "dpmpp_2m_sde_karras": Scheduler(
        "DPMSolverMultistepScheduler", "DPM++ 2M SDE", "Karras", {**KARRAS, "algorithm_type": "sde-dpmsolver++"}
    ),
    "unipc": Scheduler("UniPCMultistepScheduler", "UniPC"),
    "pndm": Scheduler("PNDMScheduler", "PLMS"),
    "lcm": Scheduler("LCMScheduler", "LCM"),
}


def use_scheduler(pipe, name: str | None) -> tuple[str, str]:
    """Gives the pipeline this scheduler, or leaves it the model's own; returns its label and schedule type for the
    infotext.
    """
    if name is None:
        own = type(pipe.scheduler).__name__
        karras = "Karras" if pipe.scheduler.config.get("use_karras_sigmas") else ""
        return next((known.label for known in SCHEDULERS.values() if known.type == own), own), karras
    known = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, known.type).from_config(pipe.scheduler.config, **known.changes)
    return known.label, known.kind


def load_pipeline(model: Path, config: Path | None, dtype: torch.dtype):
    """The pipeline of a diffusers folder or of a single .safetensors checkpoint, SD 1.x, SD 2.x or SDXL.

    Args:
        model: folder or file. A `.yaml` of the same name beside a file describes its UNet, as in WebUIs.
        config: for a file, a folder with the pipeline's json and tokenizer files. Without it diffusers uses its
            download cache, or the network.

    Raises LoratorioError.
    """
    if not model.exists():
        raise LoratorioError(f"there is no model {model}.")
    try:
        pipe = _from_folder(model, dtype) if model.is_dir() else _from_file(model, config, dtype)
    except LoratorioError:
        raise
    except Exception as error:  # whatever diffusers, transformers or the network come across in files that are not ours
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if config or model.is_dir() else "; offline, give its configuration and tokenizer with --config"
        raise LoratorioError(f"the model {model} cannot be loaded ({reason[:300]}){hint}.") from error
    for name in ("", "_2"):
        if getattr(pipe, f"tokenizer{name}", None) is not None:
            _check_tokenizer(model if config is None else config, f"tokenizer{name}", pipe, f"text_encoder{name}")
    return pipe


def _check_tokenizer(source: Path, name: str, pipe, encoder: str) -> None:
    """transformers makes an empty tokenizer, without length, of a folder that has none."""
    tokenizer, config = getattr(pipe, name), getattr(pipe, encoder).config
    if len(tokenizer) < config.vocab_size / 2:
        known = f"{len(tokenizer)} of the {config.vocab_size} words of its text encoder"
        raise LoratorioError(f"the {name} of {source} is broken: it knows {known}.")
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)


def _from_folder(folder: Path, dtype: torch.dtype):
    index = index_of(folder, str(folder))
    name = index["_class_name"]
    if name not in NEEDED:
        raise LoratorioError(f"{folder} is a {name}, which is not supported; supported are SD 1.x, SD 2.x and SDXL.")
    check_parts(folder, index, str(folder))
    kwargs: dict = {part: None for part in UNUSED if part in index}
    if name == SD:
        kwargs |= {"safety_checker": None, "requires_safety_checker": False}
    if not any((folder / "unet").glob("diffusion_pytorch_model.[!f]*")) and any(
        (folder / "unet").glob("*.fp16.safetensors")
    ):
        kwargs["variant"] = "fp16"
    return getattr(diffusers, name).from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **kwargs)


def _from_file(file: Path, config: Path | None, dtype: torch.dtype):
    if file.suffix.lower() != ".safetensors":
        raise LoratorioError(f"{file} is neither a diffusers folder nor a .safetensors file.")
    try:
        with safe_open(file, "pt") as opened:
            keys = set(opened.keys())
    except SafetensorError as error:
        raise LoratorioError(f"{file} cannot be read as a safetensors file ({error}).") from error
    if any(key.startswith("conditioner.embedders.1.") for key in keys):
        kind = StableDiffusionXLPipeline
    elif any(key.startswith("cond_stage_model.") for key in keys):
        kind = StableDiffusionPipeline
    else:
        raise LoratorioError(f"{file} is no checkpoint of SD 1.x, SD 2.x or SDXL.")
    kwargs: dict = {}
    if config:
        index = index_of(config, told := f"the configuration {config}")
        if ("XL" in index["_class_name"]) != (kind is StableDiffusionXLPipeline):
            raise LoratorioError(f"{told} is for a {index['_class_name']}, which {file} is not.")
        check_parts(config, index, told)
        kwargs |= {"config": str(config), "local_files_only": True}
    yaml = file.with_suffix(".yaml")
    if yaml.is_file():
        kwargs["original_config"] = str(yaml)
    pipe = kind.from_single_file(str(file), torch_dtype=dtype, **kwargs)
    if "v_pred" in keys or (
        yaml.is_file() and re.search(r"parameterization:\s*[\"']?v\b", yaml.read_text(encoding="utf-8"))
    ):
        changes = {"rescale_betas_zero_snr": True} if "ztsnr" in keys else {}
        pipe.scheduler = type(pipe.scheduler).from_config(
            pipe.scheduler.config, prediction_type="v_prediction", **changes
        )
    return pipe
