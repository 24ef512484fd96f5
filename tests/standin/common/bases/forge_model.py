"""What the Forge family puts around its model: patchers, ControlNets, and the objects that a checkpoint consists of."""

from copy import copy

import torch
import torch.nn.functional as F
from torch import nn

from bases.model import TextEncoder, UNet, learned_conditioning


class KModel(nn.Module):
    """Takes latents and a sigma, gives denoised latents. A host adds what it describes a batch by."""

    known = frozenset({"y"})
    """What the model takes besides text, image conditions, control and options."""

    def __init__(self, channels, layers):
        super().__init__()
        self.diffusion_model = UNet(channels, layers, self_attention=True)

    def marks(self, options, rows):
        """1 for each unconditional row, else 0, as a batch's `transformer_options` tell."""
        raise NotImplementedError

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        assert kwargs.keys() <= self.known, f"the model knows nothing of {[*kwargs]}"
        options = transformer_options or {}
        marks = self.marks(options, len(x))
        assert len(c_crossattn) == len(x) == len(t) == len(marks), "rows of the inputs differ"
        wide = t.reshape(-1, 1, 1, 1)
        inputs = x / (wide**2 + 1).sqrt()
        inputs = inputs if c_concat is None else torch.cat([inputs, c_concat], 1)
        return x - wide * self.diffusion_model(
            inputs, t.log(), c_crossattn, kwargs.get("y"), control, marks, "perturbed" in options
        )


class ControlNet:
    """Looks at the picture's hint, the latents, the text and, as for modes that prefer the prompt, at what rows are
    unconditional.
    """

    def __init__(self, hint):
        self.hint, self.previous_controlnet = hint, None

    def control(self, x, t, cond, batched_number, marks, earlier):
        """`earlier` is the control of the ControlNet before this one, or None."""
        signal = self.hint.repeat(batched_number, 1, 1, 1) + x.mean(1, keepdim=True) * t.reshape(-1, 1, 1, 1)
        signal = (
            signal * (1 - 0.7 * marks.to(x).reshape(-1, 1, 1, 1))
            + cond["c_crossattn"].mean((1, 2))[:, None, None, None]
        )
        if earlier is not None:
            signal = signal + 2 * earlier["middle"][0]
        return {"input": [], "middle": [signal], "output": [None, F.avg_pool2d(signal, 2, ceil_mode=True)]}


class CLIP:
    def __init__(self, encoder, patcher):
        self.cond_stage_model, self.patcher = encoder, patcher

    def clone(self):
        clone = copy(self)
        clone.patcher = self.patcher.clone()
        return clone


class ForgeObjects:
    def __init__(self, unet, clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self):
        return copy(self)


class SdModel:
    """A checkpoint. A host names its `unet`, a KModel, its `linear` layer, its `patcher` and how to `load` that."""

    is_sd1 = True

    def __init__(self, seed=0, channels=4, dict_conditions=False, dtype=torch.float64):
        self.made_with = {"seed": seed, "channels": channels, "dict_conditions": dict_conditions, "dtype": dtype}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet, encoder = self.unet(channels), TextEncoder(self.linear)
        unet.to(dtype).requires_grad_(False)
        encoder.to(dtype).requires_grad_(False)
        self.dtype, self.dict_conditions, self.channels = dtype, dict_conditions, channels
        self.sd_checkpoint_info = f"tiny {seed}"
        self.current_lora_hash = str([])
        self.forge_objects = ForgeObjects(self.patcher(unet), CLIP(encoder, self.patcher(encoder)))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    def get_learned_conditioning(self, texts):
        clip = self.forge_objects.clip
        self.load(clip.patcher)
        return learned_conditioning(clip.cond_stage_model, texts, self.dict_conditions)

    def state(self):
        """Every stored weight, of the UNet and of the text encoder."""
        return {
            **self.forge_objects_original.unet.model.state_dict(),
            **self.forge_objects_original.clip.cond_stage_model.state_dict(),
        }
