"""The LoRA files of a campaign: one of each kind, a pool, and some that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import lora_files
import torch
from grammar import CORRUPTED, PREFIX

FOLDER = "loratorio-soak"


def lora_folder(webui_dir: str | Path) -> Path:
    return Path(webui_dir) / "models" / "Lora" / FOLDER


def write_all(checkpoint: str, folder: Path, pool: int = 12) -> None:
    """Writes all files that fit this checkpoint, or fit nothing at all."""
    lora_files.write_all(checkpoint, folder, PREFIX)
    lora_files.write_pool(checkpoint, folder / "pool", pool)
    layers = lora_files.layers_of(checkpoint)
    for name, kind in (("plot", "lora"), ("replaced", "lora")):
        lora_files.write(lora_files.adapter(kind, layers, 50), folder / f"{PREFIX}{name}.safetensors", "zebra")
    _write_corrupted(layers, folder)


def pool_names(count: int = 12) -> tuple[str, ...]:
    return tuple(f"e2e_pool_{number:02}" for number in range(count))


def replace(checkpoint: str, folder: Path, name: str, kind: str, seed: int) -> None:
    """Writes other tensors into a file, as if later: hosts tell contents apart by the time of change, in seconds."""
    path = folder / f"{name}.safetensors"
    later = os.path.getmtime(path) + 2
    lora_files.write(lora_files.adapter(kind, lora_files.layers_of(checkpoint), seed), path)
    os.utime(path, (later, later))


def _write_corrupted(layers: list[lora_files.Layer], folder: Path) -> None:
    tensors = lora_files.adapter("lora", layers, 51)
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        spoilt = {key: tensor.clone() for key, tensor in tensors.items()}
        key = next(key for key in spoilt if key.endswith("lora_up.weight"))
        spoilt[key].view(-1)[0] = value
        lora_files.write(spoilt, folder / f"{PREFIX}{name}.safetensors")
    generator = torch.Generator().manual_seed(0)
    layer = next(layer for layer in layers if layer.name.endswith("to_q"))
    wide = tuple(size + 8 for size in layer.shape)
    of_one = {
        "misfit": {f"{layer.name}.{part}": t for part, t in lora_files.build("lora", wide, generator).items()},
        "nothing": {f"lora_unet_none.{part}": t for part, t in lora_files.build("lora", wide, generator).items()},
    }
    for name in CORRUPTED:
        path, name = folder / f"{name}.safetensors", name.removeprefix(PREFIX)
        if name in of_one:
            lora_files.write(of_one[name], path)
        elif name == "truncated":
            lora_files.write(tensors, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.write_bytes(b"" if name == "empty" else b"not a safetensors file")
