"""Random tensors of each kind of network, by the names they have in files."""

from __future__ import annotations

import torch

RANK = 2
KINDS = {
    "linear": (
        "lora",
        "dyn",
        "lora_bias",
        "loha",
        "lokr",
        "full",
        "full_bias",
        "ia3_in",
        "ia3_out",
        "glora",
        "oft",
        "dora",
    ),
    "conv1": ("lora", "dyn", "loha_conv", "lokr", "full_bias", "ia3_out", "oft", "dora"),
    "conv3": ("lora", "dyn", "mid", "mid_dyn", "lokr", "full", "full_bias", "oft", "dora"),
    "norm": ("norm",),
}


def random_weights(
    kind: str, layer: torch.nn.Module, generator: torch.Generator, size: float = 0.4, rank: int = RANK
) -> dict[str, torch.Tensor]:
    """The tensors of one layer; `size` is about how much a weight changes. The alpha is never the rank."""
    dtype, shape = layer.weight.dtype, tuple(layer.weight.shape)

    def normal(*dims: int) -> torch.Tensor:
        return (torch.randn(dims, generator=generator, dtype=torch.float64) * size).to(dtype)

    outputs, inputs, kernel = shape[0], shape[1] if len(shape) > 1 else 1, shape[2:]
    inputs = 4 if inputs == 9 else inputs  # made for the model that an inpainting model was made from
    alpha = {"alpha": torch.tensor(rank * 0.75, dtype=dtype)}
    if kind in ("lora", "dyn"):
        return {
            "lora_up.weight": normal(outputs, rank, *[1] * len(kernel)),
            "lora_down.weight": normal(rank, inputs, *kernel),
            **alpha,
        }
    if kind in ("mid", "mid_dyn"):
        return {
            "lora_up.weight": normal(outputs, rank, 1, 1),
            "lora_mid.weight": normal(rank, rank, *kernel),
            "lora_down.weight": normal(rank, inputs, 1, 1),
            **alpha,
        }
    if kind == "lora_bias":
        return {**random_weights("lora", layer, generator, size, rank), "bias": normal(outputs, inputs)}
    if kind == "dora":
        return {
            **random_weights("lora", layer, generator, size, rank),
            "dora_scale": 1 + normal(1, inputs, *[1] * len(kernel)),
        }
    if kind in ("loha", "loha_conv"):
        return {
            f"hada_w{part}_{side}": 2 * (normal(outputs, rank) if side == "a" else normal(rank, inputs))
            for part in (1, 2)
            for side in "ab"
        } | alpha
    if kind == "lokr":
        return {"lokr_w1": 1 + normal(2, 2), "lokr_w2": normal(outputs // 2, inputs // 2, *kernel)}
    if kind in ("full", "full_bias"):
        return {"diff": normal(*shape), **({"diff_b": normal(outputs)} if kind == "full_bias" else {})}
    if kind == "norm":
        return {"w_norm": normal(outputs), "b_norm": normal(outputs)}
    if kind in ("ia3_in", "ia3_out"):
        return {"weight": normal(inputs if kind == "ia3_in" else outputs), "on_input": torch.tensor(kind == "ia3_in")}
    if kind == "glora":
        return {
            "a1.weight": normal(rank, inputs),
            "a2.weight": normal(inputs, rank),
            "b1.weight": normal(rank, inputs),
            "b2.weight": normal(outputs, rank),
            **alpha,
        }
    if kind == "oft":
        return {"oft_blocks": normal(2, outputs // 2, outputs // 2)}
    raise ValueError(kind)
