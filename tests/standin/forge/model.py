"""The host's model: layers of its own, which may be stored as integers, behind the host's patchers."""

import torch
import torch.nn.functional as F
from backend import memory_management
from backend.patcher.base import ModelPatcher
from backend.patcher.lora import merge_lora_to_weight
from bases import forge_model
from bases.model import Layers
from torch import nn


class Linear(nn.Module):
    """The host's linear layers are not torch's. Its weight may be stored as integers, packed into one dimension."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs) / 4) if bias else None
        self.scale = None

    def quantise(self, gguf=False):
        self.scale = self.weight.abs().max() / 127
        self.weight = nn.Parameter((self.weight / self.scale).round().to(torch.int8).flatten(), requires_grad=False)
        self.weight.baked, self.weight.gguf_cls = False, Gguf(self) if gguf else None

    def forward(self, x):
        weight = self.weight
        if self.scale is not None:
            weight = (weight.to(x) * self.scale).reshape(self.out_features, self.in_features)
        return F.linear(x, *_with_online_networks(self, weight))


class Gguf:
    """How the GGUF weight of a layer is read: in an order into which it is brought before."""

    def __init__(self, layer):
        self.layer = layer

    def bake(self, weight):
        weight.baked = True

    def dequantize_pytorch(self, weight):
        if not weight.baked:
            raise ValueError("not baked")
        return (weight.data * self.layer.scale).reshape(self.layer.out_features, self.layer.in_features)


class Conv2d(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, *_with_online_networks(self, self.weight))


def _with_online_networks(layer, weight):
    """Weight and bias with the patches that are not merged into what is stored."""
    patches = vars(layer).get("forge_online_loras", {})
    return [
        merge_lora_to_weight(patches[name], value.clone(), computation_dtype=value.dtype) if name in patches else value
        for name, value in (("weight", weight), ("bias", layer.bias))
    ]


class KModel(forge_model.KModel):
    known = frozenset({"y", "control_model"})

    def __init__(self, channels):
        super().__init__(channels, Layers(Linear, Conv2d))

    def marks(self, options, rows):
        marks, cond, uncond = options["cond_mark"], options["cond_indices"], options["uncond_indices"]
        assert [marks[row] for row in uncond] == [1] * len(uncond)
        assert sorted(cond + uncond) == list(range(rows))
        return marks

    def memory_required(self, input_shape):
        """A row is a unit of memory."""
        return input_shape[0]


class ControlNet(forge_model.ControlNet):
    """Knows its batch by `transformer_options`, which the host sets before it asks."""

    def __init__(self, hint):
        super().__init__(hint)
        self.transformer_options = {}

    def get_control(self, x, t, cond, batched_number):
        previous = self.previous_controlnet
        earlier = None if previous is None else previous.get_control(x, t, cond, batched_number)
        return self.control(x, t, cond, batched_number, self.transformer_options["cond_mark"], earlier)


class SdModel(forge_model.SdModel):
    is_wan = False
    unet, linear, patcher = KModel, Linear, ModelPatcher

    def __init__(self, quantised=False, **fields):
        super().__init__(**fields)
        self.made_with["quantised"] = quantised
        unet = self.forge_objects_original.unet.model
        for layer in unet.modules() if quantised else ():
            if isinstance(layer, Linear):
                layer.quantise(gguf=quantised == "gguf")
        unet.storage_dtype = torch.int8 if quantised else self.dtype

    def load(self, patcher):
        memory_management.load_model_gpu(patcher)
