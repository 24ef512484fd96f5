"""The host's model: torch's layers, of which linear ones may be stored divided by a scale."""

import torch
import torch.nn.functional as F
from bases import forge_model
from bases.model import Layers
from ldm_patched.modules import model_management
from ldm_patched.modules.model_patcher import ModelPatcher
from torch import nn


class ScaledLinear(nn.Linear):
    """What is added to its weight as stored is added divided by the scale: it is read and put by methods of its own."""

    def __init__(self, *args, **fields):
        super().__init__(*args, **fields)
        self.scale_weight = nn.Parameter(torch.tensor(0.25), requires_grad=False)
        self.set_weight(self.weight)

    def convert_weight(self, weight, inplace=False, **kwargs):
        return weight.mul_(self.scale_weight.to(weight)) if inplace else weight * self.scale_weight.to(weight)

    def set_weight(self, weight, inplace_update=False, seed=None, **kwargs):
        self.weight = nn.Parameter((weight / self.scale_weight.to(weight)).to(self.weight.dtype), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.convert_weight(self.weight), self.bias)


class KModel(forge_model.KModel):
    def __init__(self, channels, linear):
        super().__init__(channels, Layers(linear, nn.Conv2d))

    def marks(self, options, rows):
        flags = options["cond_or_uncond"]
        assert len(options.get("uuids", flags)) == len(flags), "chunks of the batch differ"
        return torch.tensor(flags).repeat_interleave(rows // len(flags))

    def memory_required(self, input_shape, cond_shapes=None):
        """A row is a unit of memory, together with what the host adds to it."""
        return input_shape[0] / 1.5


class ControlNet(forge_model.ControlNet):
    def get_control(self, x, t, cond, batched_number, transformer_options):
        flags, previous = transformer_options["cond_or_uncond"], self.previous_controlnet
        earlier = None if previous is None else previous.get_control(x, t, cond, batched_number, transformer_options)
        marks = torch.tensor(flags).repeat_interleave(len(x) // len(flags))
        return self.control(x, t, cond, batched_number, marks, earlier)


class SdModel(forge_model.SdModel):
    linear, patcher = nn.Linear, ModelPatcher

    def __init__(self, scaled=False, **fields):
        self.scaled = scaled
        super().__init__(**fields)
        self.made_with["scaled"] = scaled

    def unet(self, channels):
        return KModel(channels, ScaledLinear if self.scaled else nn.Linear)

    def load(self, patcher):
        model_management.load_model_gpu(patcher)
