"""AUTOMATIC1111's stand-in as the contract's tests use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from oracle import length, lengthened, map_text
from webui import WebUI

TEXT_LAYERS = ("fc1", "fc2")
MISFITS = {
    "misfit": ("full", {"diff": torch.zeros(3, 3)}),
    "misfit lora": ("lora", {"lora_down.weight": torch.zeros(2, 3)}),
}
PROPORTIONAL = (
    "lora_up.weight",
    "hada_w1_a",
    "lokr_w1",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "a2.weight",
    "b2.weight",
)
"""What of a file changes of layers are in proportion to."""

KINDS_OF_A = {
    "conv_in": "mid",
    "down": "lora",
    "norm": "norm",
    "proj_in": "full_bias",
    "layer_norm": "norm",
    "to_q": "lora",
    "to_k": "loha",
    "to_v": "oft",
    "to_out": "dora",
    "conv_out": "lora",
}
NETWORKS = {
    "a": KINDS_OF_A,
    "b": {"conv_in": "lora", "to_k": "lora", "to_v": "lokr"},
    "text": {"fc1": "lora", "fc2": "full_bias", "to_q": "glora"},
    "other": {"fc1": "lora"},
    "foreign": {"some_other_model": "lora"},
}
OVER = {"proj_in": "dora", "layer_norm": "norm", "to_q": "oft", "to_k": "dora", "to_v": "glora", "to_out": "oft"}


class A1111(WebUI):
    package = "a1111"
    sampler_kinds = ("Euler", "DDIM")
    samplers = ("Euler", "Heun", "DDIM")
    leaves_guidance_out_at_1 = False
    portions = (False, True)
    networks_of_tests, under, over = NETWORKS, dict.fromkeys(KINDS_OF_A, "full"), OVER

    # Networks

    def add(self, name: str, layers: dict, seed: int = 8, **fields) -> Any:
        kinds = {layer_name(layer): MISFITS.get(kind, (kind,))[0] for layer, kind in layers.items()}
        on_disk = self.stand_in.add(name, kinds, seed, **fields)
        for layer, kind in layers.items():
            if kind in MISFITS:
                on_disk.layers[layer_name(layer)].update(MISFITS[kind][1])
        return on_disk

    def add_weighted(self, name: str, of: str, factors: dict) -> None:
        file = self.networks.available_networks[of]
        self.add(name, {}).layers = {
            layer: {part: value * factor if part in PROPORTIONAL else value for part, value in parts.items()}
            for layer, parts in file.layers.items()
            if (factor := factors.get(layer.rpartition("model_")[2].removeprefix("transformer_"), 1))
        }

    def add_broken(self, name: str) -> None:
        self.add(name, {}).layers = None

    def files_read(self, monkeypatch) -> list[str]:
        self.networks.loads.clear()
        return self.networks.loads

    # Requests

    def request(self, prompt, settings=None, before=(), after=(), **fields) -> Any:
        def look(p):
            p.former = SimpleNamespace(loaded=list(self.networks.loaded_networks))

        p = self.stand_in.request(prompt, settings, **fields)
        p.scripts.scripts_and_args[:0] = [self._extension(function) for function in (*before, look)]
        p.scripts.scripts_and_args += [self._extension(function) for function in after]
        return p

    def _extension(self, function) -> tuple:
        script = self.scripts.Script()
        script.process_before_every_sampling = lambda p, **kwargs: function(p)
        return script, ()

    def set_portion(self, portion) -> None:
        self.shared.opts.batch_cond_uncond = portion

    @property
    def model_class(self) -> type:
        return self.model.SdModel

    # The host as it was

    def assert_own_state(self, p) -> None:
        if not self.shared.opts.lora_in_memory_limit:
            assert self.networks.networks_in_memory == {}
        assert "forward" not in vars(p.sampler.model_wrap_cfg.inner_model)

    def denoiser_model(self, checkpoint=None) -> torch.nn.Module:
        return checkpoint or self.shared.sd_model

    def weights(self) -> dict[str, torch.Tensor]:
        return self.shared.sd_model.state_dict()

    def original_weights(self) -> dict[str, torch.Tensor]:
        model = self.shared.sd_model
        return self.model.SdModel(
            channels=model.model.diffusion_model.conv_in.in_channels,
            dict_conditions=model.dict_conditions,
            dtype=model.dtype,
        ).state_dict()

    # What the equations ask

    def load(self, adapters) -> None:
        columns = [list(column) for column in zip(*((*adapter, None)[:4] for adapter in adapters))]
        self.networks.load_networks(*(columns or [[]]))

    @contextmanager
    def put_back(self) -> Iterator[None]:
        checkpoint = self.shared.sd_model
        former = [
            (net.name, net.te_multiplier, net.unet_multiplier, net.dyn_dim) for net in self.networks.loaded_networks
        ]
        try:
            yield
        finally:
            self.shared.sd_model = checkpoint
            self.load(former)

    def negative_as_long(self, text, tokens: int) -> Any:
        """As the host's two options for padding say."""
        options, missing = self.shared.opts, tokens - length(text)
        if options.pad_cond_uncond_v0:
            return map_text(lambda t: t[:, :tokens], lengthened(text, tokens) if missing > 0 else text)
        if options.pad_cond_uncond and missing > 0:
            empty = self.shared.sd_model.cond_stage_model_empty_prompt
            return map_text(lambda t: torch.cat([t, *[empty] * (missing // empty.shape[1])], 1), text)
        return text

    def predict(self, adapters, row) -> torch.Tensor:
        self.load(adapters)
        condition = row.text if isinstance(row.text, dict) else {"c_crossattn": [row.text]}
        model = row.config.denoiser.wrapped(self.shared.sd_model)
        return model(row.x, row.sigma, cond={**condition, "c_concat": [row.image]})

    def predicts_noise(self, config) -> bool:
        return issubclass(config.denoiser, self.sd_samplers_timesteps.CFGDenoiserTimesteps)

    def unguided(self, conditional, weights) -> torch.Tensor:
        """The first sub-prompt stands for the negative prompt."""
        first = conditional[0]
        return first + sum(weight * (e - first) for e, weight in zip(conditional, weights))


def layer_name(layer: str) -> str:
    return f"{'transformer' if layer in TEXT_LAYERS else 'diffusion_model'}_{layer}"
