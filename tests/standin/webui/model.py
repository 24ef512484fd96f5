"""The host's model: its layers merge networks when they are used."""

import networks
import torch
from bases.model import Layers, TextEncoder, UNet, learned_conditioning
from torch import nn


class Linear(networks.Merging, nn.Linear):
    pass


class Conv2d(networks.Merging, nn.Conv2d):
    pass


class GroupNorm(networks.Merging, nn.GroupNorm):
    pass


class LayerNorm(networks.Merging, nn.LayerNorm):
    pass


class CheckpointInfo:
    def __init__(self, title):
        self.title = title


class SdModel(nn.Module):
    cond_stage_key = "txt"
    is_sd1, is_sd2, is_sdxl = True, False, False

    def __init__(self, seed=0, channels=4, dict_conditions=False, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Module()
            self.model.diffusion_model = UNet(channels, Layers(Linear, Conv2d, GroupNorm, LayerNorm))
            self.cond_stage_model = TextEncoder(Linear)
        self.model.conditioning_key = "hybrid" if channels == 9 else "crossattn"
        self.channels, self.dict_conditions = channels, dict_conditions
        self.sd_checkpoint_info = CheckpointInfo(f"tiny {seed}")
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=dtype)
        self.to(dtype).requires_grad_(False)
        self.network_layer_mapping = {}
        for root in (self.cond_stage_model, self.model):
            for name, module in root.named_modules():
                module.network_layer_name = name.replace(".", "_")
                self.network_layer_mapping[module.network_layer_name] = module
        self.cond_stage_model_empty_prompt = self.cond_stage_model([""])

    @property
    def dtype(self):
        return self.cond_stage_model.transformer["fc1"].weight.dtype

    def get_learned_conditioning(self, texts):
        return learned_conditioning(self.cond_stage_model, texts, self.dict_conditions)

    def apply_model(self, x, time, cond):
        if self.model.conditioning_key == "hybrid":
            x = torch.cat([x, *cond["c_concat"]], 1)
        context = cond["crossattn"] if "crossattn" in cond else torch.cat(cond["c_crossattn"], 1)
        assert len(context) == len(x) == len(time), "rows of the inputs differ"
        return self.model.diffusion_model(x, time.to(x) / 100, context, cond.get("vector"))
