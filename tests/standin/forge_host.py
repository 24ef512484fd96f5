"""Small stand-ins of the Forge family, Forge, Neo and reForge, written from their interfaces."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from standin import FOLDER, RunningHost, imported_from

FORGE = FOLDER / "forge"
FOLDERS = {"forge": (FORGE,), "neo": (FOLDER / "neo", FORGE), "reforge": (FOLDER / "reforge",)}
_BACKEND = {
    "args": "backend.args",
    "memory_management": "backend.memory_management",
    "sampling_function": "backend.sampling.sampling_function",
    "condition": "backend.sampling.condition",
    "lora": "backend.patcher.lora",
}
_LDM_PATCHED = {
    "memory_management": "ldm_patched.modules.model_management",
    "sampling_function": "ldm_patched.modules.samplers",
    "condition": "ldm_patched.modules.conds",
    "lora": "ldm_patched.modules.lora",
}
PARTS = {"forge": _BACKEND, "neo": _BACKEND, "reforge": _LDM_PATCHED}
"""Modules of the same role, by member."""

RANK = 2


@contextmanager
def installed(member: str = "forge") -> Iterator[Host]:
    with imported_from(*FOLDERS[member]):
        yield Host(member)


class Host(RunningHost):
    """
    merge_name: what in `lora` merges patches into a weight.
    quantises: whether models may be stored as integers, with networks merged in each forward.
    """

    def __init__(self, member: str):
        super().__init__(forge="lib_loratorio.hosts.forge", **PARTS[member])
        self.member, self.quantises = member, member != "reforge"
        self.merge_name = "merge_lora_to_weight" if self.quantises else "calculate_weight"
        self.calc_cond_uncond_batch = self.sampling_function.calc_cond_uncond_batch

    def add(self, name: str, patches: Mapping[Any, str], seed: int, size=0.4) -> Any:
        """Puts a file with random patches of these kinds, by key, into the folder of networks.

        A key is a weight's name, as "to_q", "norm.bias" or "transformer.fc1", or `(name, offset[, function])`.
        """
        generator = torch.Generator().manual_seed(seed)
        contents = {}
        for key, kind in patches.items():
            weight, *rest = (key,) if isinstance(key, str) else key
            weight = weight if weight.endswith((".weight", ".bias")) else f"{weight}.weight"
            weight = weight if weight.startswith(("transformer.", "foreign.")) else f"diffusion_model.{weight}"
            contents[(weight, *rest) if rest else weight] = random_patch(
                kind, self._shape(weight, *rest[:1]), generator, size, self.shared.sd_model.dtype
            )
        on_disk = SimpleNamespace(name=name, filename=f"/loras/{name}.safetensors", patches=contents, mtime=1.0)
        self.networks.available_networks[name] = self.networks.available_network_aliases[name] = on_disk
        return on_disk

    def patch(self, unet: Any, on_disk: Any) -> None:
        """Has a patcher take a file's patches, as other extensions do."""
        named = {} if self.member == "reforge" else {"filename": on_disk.name}
        unet.add_patches(patches=self.networks._read(on_disk), **named)

    def _shape(self, name: str, offset=None) -> list[int]:
        layer, _, parameter = name.rpartition(".")
        objects = self.shared.sd_model.forge_objects_original
        root = objects.clip.cond_stage_model if name.startswith("transformer.") else objects.unet.model
        layer = (
            root.get_submodule(layer) if not name.startswith("foreign.") else root.get_submodule("diffusion_model.to_q")
        )
        packed = parameter == "weight" and hasattr(layer, "in_features")
        shape = [layer.out_features, layer.in_features] if packed else list(getattr(layer, parameter).shape)
        if offset is not None:
            shape[offset[0]] = offset[2]
        return shape

    def request(self, prompt, settings=None, before=(), after=(), **fields) -> Any:
        """A request; other extensions run before the script and after it. `p.former` is what it finds in the host."""

        def look(p):
            p.former = SimpleNamespace(unet=p.sd_model.forge_objects.unet, **seen(p.sd_model))

        p = super().request(prompt, settings, **fields)
        p.scripts.scripts_and_args[:0] = [self._extension(function) for function in (*before, look)]
        p.scripts.scripts_and_args += [self._extension(function) for function in after]
        return p

    def _extension(self, function):
        script = self.scripts.Script()
        script.process_before_every_sampling = lambda p, **kwargs: function(p)
        return script, ()


def seen(sd_model) -> dict:
    """What of the host's state the extension must leave as it is."""
    networks = importlib.import_module("networks")
    return {
        "options": copy.deepcopy(sd_model.forge_objects.unet.model_options),
        "patches": sd_model.forge_objects.unet.merged_networks(),
        "hash": sd_model.current_lora_hash,
        "loaded": list(networks.loaded_networks),
        "clip": sd_model.forge_objects.clip,
        "merged": sd_model.forge_objects_after_applying_lora.unet,
    }


def random_patch(
    kind: str, shape: list[int], generator: torch.Generator, size: float, dtype: torch.dtype
) -> tuple[str, tuple]:
    """`(kind, values)` in the host's form; `size` is about how much a weight changes. The alpha is never the rank."""
    outputs, inputs, kernel = shape[0], shape[1] if len(shape) > 1 else 1, shape[2:]
    ones, alpha = [1] * len(kernel), RANK * 0.75

    def normal(*dims: int) -> torch.Tensor:
        return (torch.randn(dims, generator=generator, dtype=torch.float64) * size).to(dtype)

    if kind == "lora":
        return "lora", (normal(outputs, RANK, *ones), normal(RANK, inputs, *kernel), alpha, None, None)
    if kind == "no alpha":
        return "lora", (normal(outputs, RANK, *ones), normal(RANK, inputs, *kernel), None, None, None)
    if kind == "rank 3":
        return "lora", (normal(outputs, 3, *ones), normal(3, inputs, *kernel), 1.5, None, None)
    if kind == "mid":
        return "lora", (
            normal(outputs, RANK, 1, 1),
            normal(RANK, inputs, 1, 1),
            alpha,
            normal(RANK, RANK, *kernel),
            None,
        )
    if kind == "dora":
        return "lora", (
            normal(outputs, RANK, *ones),
            normal(RANK, inputs, *kernel),
            alpha,
            None,
            1 + normal(outputs, 1, *ones),
        )
    if kind == "loha":
        flat = inputs * torch.Size(kernel).numel()
        return "loha", (
            2 * normal(outputs, RANK),
            2 * normal(RANK, flat),
            alpha,
            2 * normal(outputs, RANK),
            2 * normal(RANK, flat),
        )
    if kind == "diff":
        return "diff", (normal(*shape),)
    if kind in ("scaled", "squared"):
        return kind, (normal(outputs, *[1] * (len(shape) - 1)),)
    if kind == "misfit":
        return "lora", (normal(3, RANK), normal(RANK, 3), alpha, None, None)
    raise ValueError(kind)
