"""LoRA files, and the folders that diffusers and PEFT save them in, read into tensors that can be computed with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from lib_loratorio.deltas.precision import in_floats
from lib_loratorio.errors import LoratorioError
from lib_loratorio.loras.argument import DIFFUSERS, PEFT

CONFIG = "adapter_config.json"
"""What PEFT has beside its file: rank and alpha, among others."""

METADATA = "lora_adapter_metadata"
"""Where diffusers' files have the same, as `unet.lora_alpha` and the like."""

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
"""The parts of a pipeline that a LoRA can change."""


class LoraFileError(LoratorioError):
    """A LoRA that cannot be used; `reason` goes on from its name, as in "has no tensors"."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"the LoRA {path} {reason}.")
        self.reason = reason


class LoraFile(NamedTuple):
    """A LoRA's tensors by the names in its file, and PEFT's configuration by component; that of "" is of them all."""

    tensors: dict[str, torch.Tensor]
    configs: dict[str, Mapping[str, Any]]


def read(path: Path) -> LoraFile:
    """All of a LoRA file or folder. Raises LoraFileError."""
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    for component, file in _files(path).items():
        read_tensors, metadata = _tensors(path, file)
        prefix = f"{component}." if component else ""
        tensors |= {f"{prefix}{name}": tensor for name, tensor in read_tensors.items()}
        configs |= _configs(path, metadata)
        if file.stem == PEFT and (file.parent / CONFIG).is_file():
            configs[component] = _json(path, (file.parent / CONFIG).read_bytes(), CONFIG)
    if not tensors:
        raise LoraFileError(path, "has no tensors")
    return LoraFile(tensors, configs)


def main_file(path: Path) -> Path:
    """The file of a LoRA that may be a folder. Raises LoraFileError."""
    return next(iter(_files(path).values()))


def _files(path: Path) -> dict[str, Path]:
    """The files of a LoRA, by the component that each is for; that of "" says so itself."""
    if not path.is_dir():
        return {"": path}
    known = [f"{name}{end}" for name in (PEFT, DIFFUSERS) for end in (".safetensors", ".bin")]
    for name in known:
        if (path / name).is_file():
            return {"": path / name}
    of_components = {
        component: path / component / name
        for component in COMPONENTS
        for name in reversed(known[:2])
        if (path / component / name).is_file()
    }
    if of_components:
        return of_components
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return {"": others[0]}
    if not others:
        raise LoraFileError(path, "is a folder without .safetensors files")
    names = f"none of which is called {PEFT} or {DIFFUSERS}; give one of them"
    raise LoraFileError(path, f"is a folder with {len(others)} .safetensors files, {names}")


def _tensors(path: Path, file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of one file and what its header says besides."""
    if file.suffix.lower() != ".safetensors":
        return _pickled(path, file), {}
    try:
        with safe_open(file, "pt") as opened:
            return {name: in_floats(opened.get_tensor(name)) for name in opened.keys()}, opened.metadata() or {}
    except (SafetensorError, OSError, AttributeError, RuntimeError) as error:
        raise LoraFileError(path, f"cannot be read as a safetensors file ({_line(error)})") from error


def _pickled(path: Path, file: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler comes across in a file that is not ours
        raise LoraFileError(path, f"cannot be read as a file of tensors ({_line(error)})") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise LoraFileError(path, "cannot be read: it holds other things than tensors by name")
    return {str(name): in_floats(tensor) for name, tensor in found.items()}


def _configs(path: Path, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """From what diffusers writes into the header: of a pipeline's LoRA by component, of a single model's as it is."""
    if METADATA not in metadata:
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in _json(path, metadata[METADATA], METADATA).items():
        component, _, name = key.partition(".")
        component, name = (component, name) if component in COMPONENTS else ("", key)
        configs.setdefault(component, {})[name] = value
    return dict(configs)


def _json(path: Path, text: str | bytes, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LoraFileError(path, f"has an unreadable {name} ({_line(error)})") from error
    if not isinstance(found, dict):
        raise LoraFileError(path, f"has an unreadable {name} (it is no object)")
    return found


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
