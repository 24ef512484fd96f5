"""Where a LoRA comes from: a file, a folder, tensors, the hub, or the pipeline itself, which has it already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lib_loratorio.deltas.precision import in_floats
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.arguments import Lora
from lib_loratorio.hosts.diffusers.files import LoraFile, LoraFileError, main_file, read
from lib_loratorio.loras.argument import name_of

HUB = re.compile(r"[\w.-]+/[\w.-]+")
FILES = (".safetensors", ".bin", ".pt", ".ckpt")


class Source(NamedTuple):
    """A LoRA before it is read.

    name: what its user calls it. told: how messages name it. file: of a file or folder. tensors: of a state dict.
    adapter: its name in the pipeline, where that has it.
    """

    name: str
    told: str
    file: Path | None = None
    tensors: Mapping[str, torch.Tensor] | None = None
    adapter: str | None = None

    def read(self) -> LoraFile:
        """Raises LoraFileError."""
        if self.tensors is None:
            return read(self.file)
        if not self.tensors:
            raise LoraFileError(self.told, "has no tensors")
        return LoraFile({str(name): in_floats(tensor.detach().cpu()) for name, tensor in self.tensors.items()}, {})

    @property
    def main_file(self) -> str:
        """The file that may tell more; empty without. Raises LoraFileError."""
        return "" if self.file is None else str(main_file(self.file))


def source_of(lora: Lora, adapters: set[str]) -> Source:
    """Where a LoRA comes from, for a pipeline that has these adapters. Raises LoratorioError where it is nowhere."""
    path = lora.path
    if isinstance(path, Mapping):
        name = lora.name or "state dict"
        return Source(name, f"'{name}'", tensors=path)
    if path in adapters:
        return Source(lora.name or path, path, adapter=path)
    file = Path(path)
    if lora.weight_name and file.is_dir():
        file = file / lora.weight_name
    if not file.exists() and isinstance(path, str) and HUB.fullmatch(path) and not path.endswith(FILES):
        file = _from_hub(path, lora.weight_name)
        return Source(lora.name or _name_on_hub(path, lora.weight_name), path, file)
    if not file.exists():
        in_pipe = f", and the pipeline's LoRAs are {', '.join(sorted(adapters))}" if adapters else ""
        raise LoratorioError(f"there is no LoRA file {file}{in_pipe}.")
    return Source(lora.name or name_of(file), str(file), file)


def adapters_in(models: list[torch.nn.Module]) -> set[str]:
    """The names of the adapters that are loaded in models."""
    layers = (layer for model in models for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    return {name for layer in layers for name in getattr(layer, "lora_A", ())}


def _name_on_hub(repository: str, weight_name: str | None) -> str:
    return Path(weight_name).stem if weight_name else repository.partition("/")[2]


def _from_hub(repository: str, weight_name: str | None) -> Path:
    """A folder, or one of its files, on the Hugging Face hub or in its cache. Raises LoratorioError."""
    import huggingface_hub

    try:
        if weight_name:
            return Path(huggingface_hub.hf_hub_download(repository, weight_name))
        wanted: dict[str, Any] = {"allow_patterns": ["*.safetensors", "adapter_config.json"]}
        return Path(huggingface_hub.snapshot_download(repository, **wanted))
    except Exception as error:  # whatever the network or the hub has to say
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoratorioError(
            f"there is no LoRA file {repository}, and the hub does not give it ({reason[:200]})."
        ) from error
