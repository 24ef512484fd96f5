"""Small random adapter files of every kind that WebUIs load, made to fit a given checkpoint.

`build` makes the tensors of one layer and knows nothing of checkpoints; `write_all` writes one file per kind.
Sizes are chosen so that an adapter at strength 1 visibly changes the picture and keeps it finite.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

RANK = 4
ALPHA = 2.0
"""Not the rank, so that whoever forgets alpha / rank gets another picture."""
SIZE = 1.0
"""Spread of a delta, relative to a weight of spread 1 / sqrt(inputs)."""

UNET = "model.diffusion_model."
TEXT_ENCODERS = {
    "cond_stage_model.transformer.": "lora_te_",
    "conditioner.embedders.0.transformer.": "lora_te1_",
}
OPEN_CLIP = "conditioner.embedders.1.model.transformer.resblocks."
OPEN_CLIP_NAMES = {
    "attn.out_proj": "self_attn_out_proj",
    "mlp.c_fc": "mlp_fc1",
    "mlp.c_proj": "mlp_fc2",
}


# One layer: tensors from the shape of its weight


def _normal(generator: Generator, *shape: int, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator) * spread


def _inputs(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _spread(shape: tuple[int, ...]) -> float:
    return SIZE / math.sqrt(_inputs(shape))


def _alpha() -> Tensor:
    return torch.tensor(ALPHA)


def _split(n: int) -> tuple[int, int]:
    factor = next(f for f in (4, 2, 1) if n % f == 0)
    return factor, n // factor


def _lora(shape, generator):
    ones = [1] * (len(shape) - 2)
    return {
        "lora_down.weight": _normal(generator, RANK, *shape[1:], spread=_spread(shape)),
        "lora_up.weight": _normal(generator, shape[0], RANK, *ones, spread=RANK**-0.5),
        "alpha": _alpha(),
    }


def _cp(shape, generator):
    out_size, in_size, *kernel = shape
    return {
        "lora_down.weight": _normal(generator, RANK, in_size, 1, 1, spread=RANK**-0.5),
        "lora_mid.weight": _normal(generator, RANK, RANK, *kernel, spread=_spread(shape)),
        "lora_up.weight": _normal(generator, out_size, RANK, 1, 1, spread=RANK**-0.5),
        "alpha": _alpha(),
    }


def _dora(shape, generator):
    out_size, in_size, *kernel = shape
    column_norm = math.sqrt(out_size * math.prod(kernel) / _inputs(shape))
    scale = column_norm * (0.5 + torch.rand((1, in_size, *[1] * len(kernel)), generator=generator))
    return {**_lora(shape, generator), "dora_scale": scale}


def _loha(shape, generator):
    return {
        "hada_w1_a": _normal(generator, shape[0], RANK, spread=RANK**-0.5),
        "hada_w1_b": _normal(generator, RANK, _inputs(shape)),
        "hada_w2_a": _normal(generator, shape[0], RANK, spread=RANK**-0.5),
        "hada_w2_b": _normal(generator, RANK, _inputs(shape), spread=_spread(shape)),
        "alpha": _alpha(),
    }


def _loha_cp(shape, generator):
    out_size, in_size, *kernel = shape
    tensors = {"alpha": _alpha()}
    for part, spread in (("1", 1.0), ("2", _spread(shape))):
        tensors[f"hada_t{part}"] = _normal(generator, RANK, RANK, *kernel, spread=spread)
        tensors[f"hada_w{part}_a"] = _normal(generator, RANK, out_size, spread=RANK**-0.5)
        tensors[f"hada_w{part}_b"] = _normal(generator, RANK, in_size, spread=RANK**-0.5)
    return tensors


def _lokr(shape, generator):
    (out_1, out_2), (in_1, in_2) = _split(shape[0]), _split(shape[1])
    return {
        "lokr_w1": _normal(generator, out_1, in_1),
        "lokr_w2": _normal(generator, out_2, in_2, *shape[2:], spread=_spread(shape)),
    }


def _lokr_factored(shape, generator):
    (out_1, out_2), (in_1, in_2) = _split(shape[0]), _split(shape[1])
    return {
        "lokr_w1_a": _normal(generator, out_1, RANK, spread=RANK**-0.5),
        "lokr_w1_b": _normal(generator, RANK, in_1),
        "lokr_w2_a": _normal(generator, out_2, RANK, spread=RANK**-0.5),
        "lokr_w2_b": _normal(generator, RANK, in_2 * math.prod(shape[2:]), spread=_spread(shape)),
        "alpha": _alpha(),
    }


def _lokr_cp(shape, generator):
    (out_1, out_2), (in_1, in_2) = _split(shape[0]), _split(shape[1])
    return {
        "lokr_w1": _normal(generator, out_1, in_1),
        "lokr_t2": _normal(generator, RANK, RANK, *shape[2:], spread=_spread(shape)),
        "lokr_w2_a": _normal(generator, RANK, out_2, spread=RANK**-0.5),
        "lokr_w2_b": _normal(generator, RANK, in_2, spread=RANK**-0.5),
        "alpha": _alpha(),
    }


def _full(shape, generator):
    spread = _spread(shape) if len(shape) > 1 else 0.3 * SIZE
    return {
        "diff": _normal(generator, *shape, spread=spread / 2),
        "diff_b": _normal(generator, shape[0], spread=0.1 * SIZE),
    }


def _norm(shape, generator):
    return {
        "w_norm": _normal(generator, *shape, spread=0.5 * SIZE),
        "b_norm": _normal(generator, *shape, spread=0.3 * SIZE),
    }


def _ia3(shape, generator):
    return {"weight": _normal(generator, shape[0]), "on_input": torch.tensor(False)}


def _ia3_input(shape, generator):
    return {"weight": _normal(generator, shape[1]), "on_input": torch.tensor(True)}


def _glora(shape, generator):
    out_size, in_size = shape
    return {
        "a1.weight": _normal(generator, RANK, in_size, spread=RANK**-0.5),
        "a2.weight": _normal(generator, in_size, RANK, spread=_spread(shape)),
        "b1.weight": _normal(generator, RANK, in_size, spread=_spread(shape)),
        "b2.weight": _normal(generator, out_size, RANK, spread=RANK**-0.5),
        "alpha": _alpha(),
    }


def _oft(shape, generator):
    count, size = _split(shape[0])
    return {
        "oft_blocks": _normal(generator, count, size, size, spread=0.5 / math.sqrt(size)),
        "alpha": torch.tensor(0.05),
    }


def _oft_diag(shape, generator):
    size, count = _split(shape[0])
    skew = _normal(generator, count, size, size, spread=0.3)
    skew = skew - skew.transpose(1, 2)
    return {"oft_diag": torch.linalg.solve(torch.eye(size) - skew, torch.eye(size) + skew)}


def _boft(shape, generator):
    size, count = _split(shape[0])
    return {"oft_blocks": _normal(generator, 2, count, size, size, spread=0.3)}


BUILDERS: dict[str, Callable[[tuple[int, ...], Generator], dict[str, Tensor]]] = {
    "lora": _lora,
    "locon": _lora,
    "cp": _cp,
    "dora": _dora,
    "loha": _loha,
    "loha_cp": _loha_cp,
    "lokr": _lokr,
    "lokr_factored": _lokr_factored,
    "lokr_cp": _lokr_cp,
    "full": _full,
    "norm": _norm,
    "ia3": _ia3,
    "ia3_input": _ia3_input,
    "glora": _glora,
    "oft": _oft,
    "oft_diag": _oft_diag,
    "boft": _boft,
    "te": _lora,
    "te_only": _lora,
}
KINDS = tuple(BUILDERS)


def build(kind: str, shape: tuple[int, ...], generator: Generator) -> dict[str, Tensor]:
    """The tensors, named as in a file, of one adapter layer for a weight of this shape."""
    return BUILDERS[kind](tuple(shape), generator)


# One file: the layers of a checkpoint


@dataclass(frozen=True)
class Layer:
    """A layer of a checkpoint under the name that adapter files give it."""

    name: str
    shape: tuple[int, ...]
    has_bias: bool

    @property
    def in_unet(self) -> bool:
        return self.name.startswith("lora_unet_")

    @property
    def is_linear(self) -> bool:
        return len(self.shape) == 2

    @property
    def is_conv(self) -> bool:
        return len(self.shape) == 4

    @property
    def is_wide_conv(self) -> bool:
        return self.is_conv and self.shape[-1] > 1


def layers_of(checkpoint: str | Path) -> list[Layer]:
    """UNet and text-encoder layers of a safetensors checkpoint in the original SD1 or SDXL layout."""
    with safe_open(checkpoint, "pt") as file:
        keys = set(file.keys())
        shapes = {
            key: tuple(file.get_slice(key).get_shape()) for key in keys if key.endswith(("weight", "in_proj_weight"))
        }
    layers = []
    for key, shape in sorted(shapes.items()):
        path = key.removesuffix("weight").rstrip("._")
        for name, part in _names(path, shape):
            layers.append(Layer(name, part, f"{path}.bias" in keys or f"{path}_bias" in keys))
    return layers


def _names(path: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    if path.startswith(UNET):
        return [("lora_unet_" + path.removeprefix(UNET).replace(".", "_"), shape)]
    for prefix, start in TEXT_ENCODERS.items():
        if path.startswith(prefix + "text_model.encoder.layers.") and len(shape) == 2:
            return [(start + path.removeprefix(prefix).replace(".", "_"), shape)]
    if match := re.match(re.escape(OPEN_CLIP) + r"(\d+)\.(.+)", path):
        start = f"lora_te2_text_model_encoder_layers_{match[1]}_"
        if match[2] == "attn.in_proj":
            third = (shape[0] // 3, shape[1])
            return [(f"{start}self_attn_{part}_proj", third) for part in "qkv"]
        if match[2] in OPEN_CLIP_NAMES:
            return [(start + OPEN_CLIP_NAMES[match[2]], shape)]
    return []


FITS: dict[str, Callable[[Layer], bool]] = {
    "lora": lambda layer: layer.in_unet and layer.is_linear,
    "locon": lambda layer: layer.in_unet and layer.is_conv,
    "cp": lambda layer: layer.in_unet and layer.is_wide_conv,
    "dora": lambda layer: layer.in_unet and len(layer.shape) > 1,
    "loha": lambda layer: layer.in_unet and len(layer.shape) > 1,
    "loha_cp": lambda layer: layer.in_unet and layer.is_wide_conv,
    "lokr": lambda layer: layer.in_unet and len(layer.shape) > 1,
    "lokr_factored": lambda layer: layer.in_unet and len(layer.shape) > 1,
    "lokr_cp": lambda layer: layer.in_unet and layer.is_wide_conv,
    "full": lambda layer: layer.in_unet and "input_blocks" in layer.name,
    "norm": lambda layer: layer.in_unet and len(layer.shape) == 1,
    "ia3": lambda layer: layer.in_unet and layer.name.endswith(("to_k", "to_v")),
    "ia3_input": lambda layer: layer.in_unet and layer.name.endswith("ff_net_2"),
    "glora": lambda layer: layer.in_unet and layer.is_linear,
    "oft": lambda layer: layer.in_unet and len(layer.shape) > 1,
    "oft_diag": lambda layer: layer.in_unet and len(layer.shape) > 1,
    "boft": lambda layer: layer.in_unet and len(layer.shape) > 1 and layer.shape[0] % 8 == 0,
    "te": lambda layer: not layer.in_unet or layer.is_linear,
    "te_only": lambda layer: not layer.in_unet,
}
"""The layers that an adapter of each kind changes."""


def adapter(kind: str, layers: Iterable[Layer], seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a whole adapter of this kind for these layers; the same on every call with a seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(kind.encode()) + seed)
    tensors = {}
    for layer in filter(FITS[kind], layers):
        name = layer.name.replace("lora_unet", "oft_unet") if kind == "oft" else layer.name
        for part, tensor in build(kind, layer.shape, generator).items():
            if part != "diff_b" or layer.has_bias:
                tensors[f"{name}.{part}"] = tensor.contiguous()
    return tensors


def write(tensors: dict[str, Tensor], path: Path, trigger: str = "") -> None:
    """Writes an adapter file that names itself as its file is named, and its trigger words if there are any."""
    save_file(
        tensors,
        path,
        metadata={"ss_output_name": path.stem} | ({"modelspec.trigger_phrase": trigger} if trigger else {}),
    )


def write_pool(checkpoint: str | Path, folder: Path, count: int) -> list[str]:
    """Writes different plain LoRAs that fit this checkpoint, and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = layers_of(checkpoint)
    names = [f"e2e_pool_{number:02}" for number in range(count)]
    for number, name in enumerate(names):
        write(adapter("lora", layers, number + 1), folder / f"{name}.safetensors")
    return names


def write_all(checkpoint: str | Path, folder: Path, prefix: str = "e2e_") -> dict[str, Path]:
    """Writes one adapter per kind, fitting this checkpoint, and returns their paths by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = layers_of(checkpoint)
    paths = {kind: folder / f"{prefix}{kind}.safetensors" for kind in KINDS}
    for kind, path in paths.items():
        write(adapter(kind, layers), path)
    return paths


def write_odd(checkpoint: str | Path, folder: Path, prefix: str = "e2e_") -> None:
    """Writes files for this checkpoint that are damaged, empty, stored or named in unusual ways, or for another model.

    `nan`, `inf_te`: values that are no numbers in the UNet's layers, or in the text encoder's. `zero`, `alpha_0`: no
    effect. `fp8`: stored in 8 bits. `peft`, `peft_named`: as PEFT saves it. `a=b`: a name that tags cannot hold.
    `lcm`: named like an acceleration LoRA. `other_model`: only its text-encoder layers fit.
    """
    layers = layers_of(checkpoint)
    plain = adapter("lora", layers)
    text = adapter("te_only", layers)

    def changed(tensors: dict[str, Tensor], part: str, value: float) -> dict[str, Tensor]:
        return {name: torch.full_like(t, value) if name.endswith(part) else t for name, t in tensors.items()}

    def scaled(tensors: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Other content: of pasted parameters WebUIs know LoRAs by the hash of their files."""
        return {name: t * factor if name.endswith("lora_up.weight") else t for name, t in tensors.items()}

    def as_peft(tensors: dict[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
        parts = {"lora_down": f"lora_A{adapter_name}", "lora_up": f"lora_B{adapter_name}"}
        return {
            name.replace(kohya, peft): t
            for name, t in tensors.items()
            for kohya, peft in parts.items()
            if kohya in name
        }

    first = next(name for name in plain if name.endswith("lora_up.weight"))
    elsewhere = {
        f"lora_unet_other_blocks_{n}.{part}": torch.ones(RANK, 8)
        for n in range(30)
        for part in ("lora_down.weight", "lora_up.weight")
    }
    odd = {
        "nan": {**plain, first: plain[first] * math.nan},
        "inf_te": {**plain, **changed(text, "lora_up.weight", math.inf)},
        "zero": changed(plain, "lora_up.weight", 0.0),
        "alpha_0": changed(plain, "alpha", 0.0),
        "fp8": {name: t if name.endswith("alpha") else t.to(torch.float8_e4m3fn) for name, t in plain.items()},
        "peft": {f"base_model.model.{name}": t for name, t in as_peft(plain, "").items()},
        "peft_named": as_peft(plain, ".default"),
        "a=b": scaled(plain, 0.9),
        "lcm": scaled(plain, 0.8),
        "other_model": {**elsewhere, **text},
    }
    for name, tensors in odd.items():
        write(tensors, folder / f"{prefix}{name}.safetensors")
