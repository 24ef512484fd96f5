"""The stand-ins of the Forge family as the contract's tests use them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from standin import forge_host
from webui import WebUI

TEXT_LAYERS = ("fc1", "fc2")
KINDS = {"full": "diff", "misfit lora": "misfit"}
"""The stand-ins' own names of kinds."""

NETWORKS = {
    "a": {"conv_in": "mid", "down": "lora", "qkv": "lora", "to_q": "no alpha", "to_k": "lora", "conv_out": "lora"},
    "b": {"conv_in": "lora", "to_k": "rank 3", "to_v": "lora", "to_out": "lora"},
    "text": {"fc1": "lora", "fc2": "lora", "to_q": "lora"},
    "other": {"fc1": "lora"},
    "foreign": {"foreign.to_q": "lora"},
}
UNDER = {"to_q": "full", "to_k": "lora", "to_out": "loha"}
OVER = {"to_q": "dora", "to_k": "dora", "to_out": "dora"}


class Forge(WebUI):
    package = "forge"
    leaves_guidance_out_at_1 = True
    dense_tolerance = 1e-5
    """These are computed in float32."""

    portions = (1.5, 2.5, 3.5, 7.5, math.inf)
    """From every condition alone, the negative prompt first, to all together."""

    networks_of_tests, under, over = NETWORKS, UNDER, OVER

    # Networks

    def add(self, name: str, layers: dict, seed: int = 8, **fields) -> Any:
        """A key of `layers` may also be `(layer, offset[, function])`."""
        patches = {layer_name(layer): KINDS.get(kind, kind) for layer, kind in layers.items()}
        return self.stand_in.add(name, patches, seed, **fields)

    def add_weighted(self, name: str, of: str, factors: dict) -> None:
        patches = {}
        for key, (kind, (first, *values)) in self.networks.available_networks[of].patches.items():
            layer = key.rpartition(".")[0].removeprefix("diffusion_model.").removeprefix("transformer.")
            if factor := factors.get(layer, 1):
                patches[key] = kind, (first * factor, *values)
        self.add(name, {}).patches = patches

    def add_broken(self, name: str) -> None:
        self.add(name, {}).patches = None

    def files_read(self, monkeypatch) -> list[str]:
        files, read = [], self.networks._read
        monkeypatch.setattr(self.networks, "_read", lambda entry: files.append(entry.name) or read(entry))
        return files

    # Requests

    def request(self, prompt, settings=None, before=(), after=(), **fields) -> Any:
        return self.stand_in.request(prompt, settings, before=before, after=after, **fields)

    def set_portion(self, portion) -> None:
        self.memory_management.free_memory = portion

    @property
    def model_class(self) -> type:
        return self.model.KModel

    # What other extensions do

    def changed_patcher(self, p) -> Any:
        """A clone of the host's patcher, put in its place, as extensions do."""
        p.sd_model.forge_objects.unet = p.sd_model.forge_objects.unet.clone()
        return p.sd_model.forge_objects.unet

    def marks(self, args: dict) -> torch.Tensor:
        """Of each row of a wrapper's batch whether it is unconditional, as all says that describes the batch."""
        options, flags, rows = args["c"]["transformer_options"], args["cond_or_uncond"], len(args["input"])
        marks = torch.tensor(flags).repeat_interleave(rows // len(flags))
        assert options["cond_or_uncond"] == flags
        assert torch.equal(options.get("cond_mark", marks).to(marks), marks)
        return marks.to(args["input"])

    def repeated(self, args: dict, copies: int) -> dict:
        """A wrapper's batch several times over, for the model."""
        c = {
            key: torch.cat([value] * copies) if isinstance(value, torch.Tensor) else value
            for key, value in args["c"].items()
        }
        options, rows = dict(c["transformer_options"]), len(args["input"])
        for key in options.keys() & {"cond_indices", "uncond_indices"}:
            options[key] = [copy * rows + row for copy in range(copies) for row in options[key]]
        for key in options.keys() & {"cond_or_uncond", "uuids"}:
            options[key] = options[key] * copies
        if "cond_mark" in options:
            options["cond_mark"] = torch.cat([options["cond_mark"]] * copies)
        c["transformer_options"] = options
        return {"x": torch.cat([args["input"]] * copies), "t": torch.cat([args["timestep"]] * copies), **c}

    def fail_when_merging(self, monkeypatch, call: int, error: BaseException) -> None:
        """That merge of patches into a weight raises the error."""
        calls, merge = iter(range(99)), getattr(self.lora, self.merge_name)

        def failing(*args):
            if next(calls) == call:
                raise error
            return merge(*args)

        monkeypatch.setattr(self.lora, self.merge_name, failing)

    @property
    def evaluate_conditions(self) -> Any:
        """The host's own function that evaluates conditional and unconditional rows."""
        return self.calc_cond_uncond_batch

    @property
    def evaluate_conditions_now(self) -> Any:
        """What is in its place at this moment."""
        return self.sampling_function.calc_cond_uncond_batch

    def assert_function_of_rows_is_the_hosts(self) -> None:
        assert self.evaluate_conditions_now is self.evaluate_conditions

    # The host as it was

    def assert_own_state(self, p) -> None:
        model, former = self.shared.sd_model, p.former
        now = SimpleNamespace(unet=model.forge_objects.unet, **forge_host.seen(model))
        assert now.unet is former.unet and now.clip is former.clip and now.merged is former.merged
        assert (now.options, now.patches, now.hash) == (former.options, former.patches, former.hash)
        self.assert_function_of_rows_is_the_hosts()

    def denoiser_model(self, checkpoint=None) -> torch.nn.Module:
        return (checkpoint or self.shared.sd_model).forge_objects.unet.model

    def weights(self) -> dict[str, torch.Tensor]:
        return self.shared.sd_model.state()

    def original_weights(self) -> dict[str, torch.Tensor]:
        return self.model.SdModel(**self.shared.sd_model.made_with).state()

    # What the equations ask

    def load(self, adapters) -> None:
        self.shared.sd_model.current_lora_hash = None
        names, te, unet = [list(column) for column in zip(*adapters)] if adapters else ([], [], [])
        self.networks.load_networks(names, te, unet, [None] * len(names))

    @contextmanager
    def put_back(self) -> Iterator[None]:
        model = self.shared.sd_model
        kept = {
            name: getattr(model, name)
            for name in ("forge_objects", "forge_objects_after_applying_lora", "current_lora_hash")
        }
        loaded = list(self.networks.loaded_networks)
        model.forge_objects = model.forge_objects.shallow_copy()
        try:
            yield
        finally:
            self.shared.sd_model = model
            vars(model).update(kept)
            self.networks.loaded_networks[:] = loaded

    def predict(self, adapters, row) -> torch.Tensor:
        model = self.shared.sd_model
        self.load(adapters)
        for function in row.before:
            function(SimpleNamespace(sd_model=model))
        unet = model.forge_objects.unet
        self.memory_management.load_model_gpu(unet)
        flags = [int(row.unconditional)]
        options = {
            **unet.model_options["transformer_options"],
            **row.options,
            "cond_or_uncond": flags,
            "cond_mark": torch.tensor(flags),
            "cond_indices": [0] * (1 - flags[0]),
            "uncond_indices": [0] * flags[0],
        }
        c = {"transformer_options": options, **_inputs(row.text)}
        if row.image.shape[2:] == row.x.shape[2:]:
            c["c_concat"] = row.image
        if unet.controlnet_linked_list is not None:
            control = _control_of(unet.controlnet_linked_list, row.number)
            c["control"] = self.sampling_function.control_for(control, row.x, row.sigma, c, 1)
        args = {"input": row.x, "timestep": row.sigma, "c": c, "cond_or_uncond": flags}
        wrapper = unet.model_options.get("model_function_wrapper")
        if wrapper:
            return wrapper(unet.model.apply_model, args)
        return unet.model.apply_model(row.x, row.sigma, **c)

    def unguided(self, conditional, weights) -> torch.Tensor:
        """There is nothing to move away from."""
        return sum(weight * e for e, weight in zip(conditional, weights))


def layer_name(layer: Any) -> Any:
    return f"transformer.{layer}" if layer in TEXT_LAYERS else layer


def _inputs(text) -> dict:
    return {"c_crossattn": text["crossattn"], "y": text["vector"]} if isinstance(text, dict) else {"c_crossattn": text}


def _control_of(control, number: int):
    """A control for one picture of its batch."""
    alone = copy.copy(control)
    alone.hint = control.hint[number : number + 1]
    if control.previous_controlnet is not None:
        alone.previous_controlnet = _control_of(control.previous_controlnet, number)
    return alone
