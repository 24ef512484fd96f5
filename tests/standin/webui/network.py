"""Network modules by kind, with the host's interface: `calc_updown`, `multiplier`, `calc_scale` and the factors."""

import enum
from types import SimpleNamespace

import torch


class SdVersion(enum.Enum):
    Unknown = 1
    SD1 = 2
    SD2 = 3
    SDXL = 4


class NetworkOnDisk:
    """`layers` stands for a file's contents: by layer name, tensors by the names they have in such files."""

    def __init__(self, name, layers, embeddings=None, alias=None):
        self.name, self.alias, self.layers, self.embeddings = name, alias or name, layers, embeddings or {}
        self.filename = f"/loras/{name}.safetensors"
        self.mtime = 1.0
        self.metadata, self.sd_version = {}, SdVersion.Unknown


class Network:
    def __init__(self, name, network_on_disk):
        self.name, self.network_on_disk, self.mtime = name, network_on_disk, network_on_disk.mtime
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim = None
        self.modules = {}
        self.bundle_embeddings = {}
        self.mentioned_name = None


class NetworkModule:
    dim = None

    def __init__(self, network, key, w, layer):
        self.network, self.sd_key, self.w, self.sd_module = network, key, w, layer
        self.alpha = w["alpha"].item() if "alpha" in w else None
        self.bias, self.dora_scale = w.get("bias"), w.get("dora_scale")

    def multiplier(self):
        return self.network.unet_multiplier if self.sd_key.startswith("diffusion_model") else self.network.te_multiplier

    def calc_scale(self):
        return 1.0 if self.alpha is None or self.dim is None else self.alpha / self.dim

    def calc_updown(self, weight):
        delta = self.delta(weight)
        if self.bias is not None:
            delta = delta + self.bias.reshape(delta.shape)
        if delta.numel() == weight.numel():
            delta = delta.reshape(weight.shape)
        delta = delta * self.calc_scale()
        if self.dora_scale is not None:
            merged = weight + delta
            others = [dim for dim in range(merged.dim()) if dim != 1]
            delta = self.dora_scale * merged / merged.square().sum(others, keepdim=True).sqrt() - weight
        bias = self.bias_delta()
        return delta * self.multiplier(), None if bias is None else bias * self.multiplier()

    def bias_delta(self):
        return None


def _module(weight):
    return None if weight is None else SimpleNamespace(weight=weight)


class Lora(NetworkModule):
    def __init__(self, *args):
        super().__init__(*args)
        self.up_model, self.down_model = _module(self.w["lora_up.weight"]), _module(self.w["lora_down.weight"])
        self.mid_model = _module(self.w.get("lora_mid.weight"))
        self.dim = self.down_model.weight.shape[0]

    def delta(self, weight):
        up, down = self.up_model.weight.flatten(1), self.down_model.weight
        if self.mid_model is not None:
            return torch.einsum("ab...,oa,bi->oi...", self.mid_model.weight, up, down.flatten(1))
        kept = self.network.dyn_dim
        return torch.einsum("or,r...->o...", up[:, :kept], down[:kept])


class Hada(NetworkModule):
    def __init__(self, *args):
        super().__init__(*args)
        self.dim = self.w["hada_w1_b"].shape[0]

    def delta(self, weight):
        return (self.w["hada_w1_a"] @ self.w["hada_w1_b"]) * (self.w["hada_w2_a"] @ self.w["hada_w2_b"])


class Lokr(NetworkModule):
    def delta(self, weight):
        left, right = self.w["lokr_w1"], self.w["lokr_w2"]
        return torch.kron(left.reshape(*left.shape, *[1] * (right.dim() - 2)), right)


class Full(NetworkModule):
    def delta(self, weight):
        return self.w["diff"]

    def bias_delta(self):
        return self.w.get("diff_b")


class Norm(NetworkModule):
    def delta(self, weight):
        return self.w["w_norm"]

    def bias_delta(self):
        return self.w["b_norm"]


class Ia3(NetworkModule):
    def delta(self, weight):
        factors = self.w["weight"]
        return weight * (factors if self.w["on_input"].item() else factors.reshape(-1, *[1] * (weight.dim() - 1)))


class Glora(NetworkModule):
    def delta(self, weight):
        return self.w["b2.weight"] @ self.w["b1.weight"] + weight @ self.w["a2.weight"] @ self.w["a1.weight"]


class Oft(NetworkModule):
    def delta(self, weight):
        blocks = self.w["oft_blocks"]
        skew = blocks - blocks.mT
        one = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
        rotation = (one + skew) @ torch.linalg.inv(one - skew)
        grouped = weight.reshape(*blocks.shape[:2], -1)
        return (rotation.mT @ grouped).reshape(weight.shape) - weight


KINDS = {
    "lora_up.weight": Lora,
    "hada_w1_a": Hada,
    "lokr_w1": Lokr,
    "diff": Full,
    "w_norm": Norm,
    "on_input": Ia3,
    "a1.weight": Glora,
    "oft_blocks": Oft,
}


def create_module(network, key, w, layer):
    return next(kind for marker, kind in KINDS.items() if marker in w)(network, key, w, layer)
