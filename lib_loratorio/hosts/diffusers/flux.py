"""LoRA files for FLUX.1 in the names of its own model, in which a layer holds several of diffusers'."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import FluxPipeline

from lib_loratorio.hosts.diffusers.files import LoraFile, LoraFileError

KOHYA = re.compile(r"^lora_unet_(double|single)_blocks_")
COMFYUI = re.compile(r"^diffusion_model\.((?:double|single)_blocks\..+)\.lora_([AB])\.weight$")
XLABS = re.compile(r"^(double|single)_blocks\.\d+\.processor\.")

PARTS = {"A": "down", "B": "up"}


def named_by_diffusers(path: Path | str, file: LoraFile) -> LoraFile:
    """The file in diffusers' names. Raises LoraFileError where diffusers cannot convert it."""
    tensors = {}
    for name, tensor in file.tensors.items():
        if found := COMFYUI.match(name):
            name = f"lora_unet_{found[1].replace('.', '_')}.lora_{PARTS[found[2]]}.weight"
        tensors[name] = tensor
    if not any(KOHYA.match(name) or XLABS.match(name) for name in tensors):
        return file
    try:
        return LoraFile(FluxPipeline.lora_state_dict(tensors), file.configs)
    except Exception as error:  # whatever the converter comes across in names that it does not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoraFileError(path, f"cannot be converted by diffusers ({reason[:200]})") from error
