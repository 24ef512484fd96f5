"""Models from disk or the hub as diffusers pipelines, and the schedulers by the names that WebUIs give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.denoisers import KINDS, SUPPORTED
from lib_loratorio.hosts.diffusers.folders import NEEDED, SD, UNUSED, check_parts, denoiser_in, index_of
from lib_loratorio.hosts.diffusers.noise import flows


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

OF_FLOW = {"euler": Scheduler("FlowMatchEulerDiscreteScheduler", "Euler")}
"""For models of flow matching, whose pipelines set its sigmas."""


def use_scheduler(pipe, name: str | None) -> tuple[str, str]:
    """Gives the pipeline this scheduler, or leaves it the model's own; returns its label and schedule type for the
    infotext. Raises LoratorioError for one that does not suit the model.
    """
    suited = OF_FLOW if flows(pipe.scheduler) else SCHEDULERS
    if name is None:
        own = type(pipe.scheduler).__name__
        karras = "Karras" if pipe.scheduler.config.get("use_karras_sigmas") else ""
        return next((known.label for known in suited.values() if known.type == own), own), karras
    if name not in suited:
        suits = ", ".join(suited)
        raise LoratorioError(f"the scheduler {name} is not of flow matching, as this model needs; use {suits}.")
    known = suited[name]
    pipe.scheduler = getattr(diffusers, known.type).from_config(pipe.scheduler.config, **known.changes)
    return known.label, known.kind


def load_pipeline(model: Path, config: Path | None, dtype: torch.dtype | None, on_hub: bool = False):
    """The pipeline that makes pictures of text with a diffusers folder, or with a single .safetensors checkpoint of
    SD 1.x, SD 2.x or SDXL.

    Args:
        model: folder or file. A `.yaml` of the same name beside a file describes its UNet, as in WebUIs.
        dtype: None for the half precision that the model is made for.
        on_hub: whether `model` is the name of a folder on the Hugging Face hub.
        config: for a file, a folder with the pipeline's json and tokenizer files. Without it diffusers uses its
            download cache, or the network.

    Raises LoratorioError.
    """
    if on_hub:
        model = _from_hub(str(model))
    if not model.exists():
        raise LoratorioError(f"there is no model {model}.")
    try:
        pipe = _from_folder(model, dtype) if model.is_dir() else _from_file(model, config, dtype or torch.float16)
    except LoratorioError:
        raise
    except Exception as error:  # whatever diffusers, transformers or the network come across in files that are not ours
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if config or model.is_dir() else "; offline, give its configuration and tokenizer with --config"
        raise LoratorioError(f"the model {model} cannot be loaded ({reason[:300]}){hint}.") from error
    for name in ("", "_2", "_3"):
        if getattr(pipe, f"tokenizer{name}", None) is not None:
            _check_tokenizer(model if config is None else config, f"tokenizer{name}", pipe, f"text_encoder{name}")
    return pipe


def _check_tokenizer(source: Path, name: str, pipe, encoder: str) -> None:
    """transformers makes an empty tokenizer, without length, of a folder that has none."""
    tokenizer, config = getattr(pipe, name), getattr(pipe, encoder).config
    if len(tokenizer) < config.vocab_size / 2:
        known = f"{len(tokenizer)} of the {config.vocab_size} words of its text encoder"
        raise LoratorioError(f"the {name} of {source} is broken: it knows {known}.")
    longest = getattr(config, "max_position_embeddings", tokenizer.model_max_length)  # which T5 has not
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)


def _from_hub(name: str) -> Path:
    """The folder of a model on the hub, from the cache or the network. Raises LoratorioError."""
    try:
        return Path(DiffusionPipeline.download(name))
    except Exception as error:  # whatever the network or the hub has to say
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoratorioError(f"there is no model {name}, and the hub does not give it ({reason[:200]}).") from error


def _from_folder(folder: Path, dtype: torch.dtype | None):
    index = index_of(folder, str(folder))
    name, (part, denoiser) = index["_class_name"], denoiser_in(index)
    if name not in NEEDED and denoiser not in {kind.model_class.__name__ for kind in KINDS}:
        raise LoratorioError(f"{folder} is a {name}, which is not supported; supported are {SUPPORTED}.")
    check_parts(folder, index, str(folder))
    kwargs: dict = {part: None for part in index if part in UNUSED or index[part] == [None, None]}
    if name == SD or "safety_checker" in index:
        kwargs |= {"safety_checker": None, "requires_safety_checker": False}
    weights = [file.name for file in (folder / part).glob("diffusion_pytorch_model*")]
    if weights and all(".fp16" in file for file in weights):
        kwargs["variant"] = "fp16"
    half = torch.bfloat16 if part == "transformer" else torch.float16
    kind = getattr(diffusers, name) if name in NEEDED else AutoPipelineForText2Image
    return kind.from_pretrained(str(folder), torch_dtype=dtype or half, local_files_only=True, **kwargs)


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
        raise LoratorioError(
            f"{file} is no checkpoint of SD 1.x, SD 2.x or SDXL; other models are given as a diffusers folder."
        )
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
