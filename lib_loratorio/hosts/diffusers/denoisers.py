"""The denoisers of diffusers' pipelines: how each is called, and where its rows, its text and its latents are.

A call's arguments become a tree, as the engine has it: every tensor in it has the rows in dim 0. What has no rows is in
it as `Shared`, which the engine hands on as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from lib_loratorio.engine.trees import map_tensors
from lib_loratorio.errors import LoratorioError

NAMES = ("unet", "transformer")
"""What pipelines call their denoiser."""

SUPPORTED = "SD 1.x, SD 2.x, SDXL, SD 3 and FLUX.1"

SHARED = "shared"
"""The tree's entry of what has no rows."""


class Shared:
    """Arguments that are the same for all rows."""

    def __init__(self, arguments: Mapping[str, Any]):
        self.arguments = dict(arguments)


def denoiser_name(pipe: Any) -> str:
    """The attribute of the pipeline that is its denoiser. Raises LoratorioError where that is not one of the known."""
    found = [name for name in NAMES if isinstance(getattr(pipe, name, None), nn.Module)]
    if not found:
        raise LoratorioError(
            f"a {type(pipe).__name__} is not supported: it has no unet and no transformer; supported are pipelines of "
            f"{SUPPORTED}."
        )
    if len(found) > 1:
        raise LoratorioError(
            f"a {type(pipe).__name__} is not supported: it has both a unet and a transformer, and which of them "
            "denoises cannot be told."
        )
    return found[0]


def denoiser_of(model: nn.Module) -> Denoiser:
    """How a model is called. Raises LoratorioError for kinds that are not known."""
    kind = next((kind for kind in KINDS if isinstance(model, kind.model_class)), None)
    if kind is None:
        raise LoratorioError(
            f"a {type(model).__name__} is not supported as a denoiser; supported are those of {SUPPORTED}."
        )
    return kind(model)


class Denoiser:
    """One denoiser, and the form of its calls.

    latents, options: the names of the argument that holds the noisy latents, and of the one for attention processors.
    shared: the names of arguments without rows.
    controls: the names of those that take what a ControlNet gives, in its order.
    has_alphas: whether a scheduler of the DDPM family is meant for it; else it predicts a velocity.
    """

    model_class: type[nn.Module]
    output: type
    latents = "hidden_states"
    options = "joint_attention_kwargs"
    shared: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    has_alphas = False

    def __init__(self, model: nn.Module):
        self.model = model
        self.signature = inspect.signature(type(model).forward)

    def count(self, args: tuple, kwargs: Mapping[str, Any]) -> int:
        """The rows of a call."""
        return self.signature.bind(self.model, *args, **kwargs).arguments[self.latents].shape[0]

    def read(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[dict, bool]:
        """The tree of a call's arguments, and whether its answer is an object. Raises LoratorioError for arguments that
        cannot be composed with.
        """
        arguments = dict(self.signature.bind(self.model, *args, **kwargs).arguments)
        arguments.pop("self")
        return_dict = arguments.pop("return_dict", True)
        options = self._options(arguments.pop(self.options, None))
        self._refuse(arguments)
        rows, device = arguments[self.latents].shape[0], arguments[self.latents].device
        arguments["timestep"] = torch.as_tensor(arguments["timestep"], device=device)
        shared = {name: arguments.pop(name) for name in self.shared if name in arguments}
        tree = {name: _in_rows(name, value, rows) for name, value in arguments.items() if value is not None}
        if options:
            tree[self.options] = _in_rows(self.options, options, rows)
        tree[SHARED] = Shared(self._completed(shared, arguments[self.latents]))
        return tree, return_dict

    def run(self, forward: Callable, tree: Mapping[str, Any]) -> torch.Tensor:
        """The predictions `[rows, C, H, W]` of a tree."""
        arguments = {name: value for name, value in tree.items() if name != SHARED}
        arguments = map_tensors(lambda tensor: tensor, arguments)  # some denoisers empty the lists that they are given
        shared = {name: value for name, value in tree[SHARED].arguments.items() if name in self.shared}
        return self._in_places(forward(**arguments, **shared, return_dict=False)[0], tree)

    def answer(self, prediction: torch.Tensor, tree: Mapping[str, Any], return_dict: bool) -> Any:
        """Predictions `[rows, C, H, W]` as the pipeline gets them."""
        prediction = self._as_asked(prediction, tree)
        return self.output(sample=prediction) if return_dict else (prediction,)

    def hidden_text(self, tree: Mapping[str, Any]) -> torch.Tensor:
        """`[rows, tokens, width]`."""
        return tree["encoder_hidden_states"]

    def with_text(self, tree: Mapping[str, Any], hidden: torch.Tensor, pooled: torch.Tensor | None) -> dict:
        """The tree with another text, `[rows, tokens, width]` and `[rows, width]`."""
        tree = {**tree, "encoder_hidden_states": hidden.to(self.hidden_text(tree))}
        if pooled is not None:
            tree["pooled_projections"] = pooled.to(tree["pooled_projections"])
        return tree

    def _options(self, options: Mapping[str, Any] | None) -> dict:
        options = dict(options or {})
        if options.pop("scale", 1) != 1 or options.keys() - {"ip_adapter_image_embeds"}:
            raise LoratorioError(
                f"{self.options} are not supported ({', '.join(options) or 'scale'}); give each LoRA its strength "
                "instead."
            )
        return options

    def _refuse(self, arguments: dict) -> None:
        """Raises LoratorioError for arguments that cannot be composed with."""

    def _completed(self, shared: dict, latents: torch.Tensor) -> dict:
        return shared

    def _in_places(self, prediction: torch.Tensor, tree: Mapping[str, Any]) -> torch.Tensor:
        return prediction

    def _as_asked(self, prediction: torch.Tensor, tree: Mapping[str, Any]) -> torch.Tensor:
        return prediction


class UNet(Denoiser):
    """SD 1.x, SD 2.x and SDXL: inputs of more channels (inpainting) begin with the latents."""

    model_class, output = UNet2DConditionModel, UNet2DConditionOutput
    latents, options = "sample", "cross_attention_kwargs"
    controls = ("down_block_additional_residuals", "mid_block_additional_residual")
    has_alphas = True

    def with_text(self, tree: Mapping[str, Any], hidden: torch.Tensor, pooled: torch.Tensor | None) -> dict:
        tree = {**tree, "encoder_hidden_states": hidden.to(self.hidden_text(tree))}
        if pooled is not None:
            added = tree["added_cond_kwargs"]
            tree["added_cond_kwargs"] = {**added, "text_embeds": pooled.to(added["text_embeds"])}
        return tree


class SD3(Denoiser):
    """SD 3 and 3.5."""

    model_class, output = SD3Transformer2DModel, Transformer2DModelOutput
    controls = ("block_controlnet_hidden_states",)

    def _refuse(self, arguments: dict) -> None:
        if arguments.pop("skip_layers", None) is not None:
            raise LoratorioError("skip_guidance_layers are not supported; leave them away within the block.")


class Flux(Denoiser):
    """FLUX.1: latents are packed, four pixels a token."""

    model_class, output = FluxTransformer2DModel, Transformer2DModelOutput
    shared = ("img_ids", "txt_ids", "controlnet_blocks_repeat")
    controls = ("controlnet_block_samples", "controlnet_single_block_samples")

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._latest: tuple[Any, tuple[int, int]] | None = None  # the tokens' places, and the grid that they make

    def _completed(self, shared: dict, latents: torch.Tensor) -> dict:
        return {**shared, "grid": self._grid(shared["img_ids"], latents.shape[1])}

    def _grid(self, places: torch.Tensor, tokens: int) -> tuple[int, int]:
        """Rows and columns of tokens. Raises LoratorioError where there are others beside the picture's."""
        if self._latest is None or self._latest[0] is not places:
            of_tokens = places[0] if places.dim() == 3 else places
            height, width = (of_tokens[:, 1:].amax(0).long() + 1).tolist()
            self._latest = places, ((height, width) if not of_tokens[:, 0].any() else (0, 0))
        height, width = self._latest[1]
        if height * width != tokens:
            raise LoratorioError(
                "the transformer is asked for more than the picture's own tokens (as Kontext does, for the picture "
                "that it changes), which cannot be weighed by place; use a pipeline without it."
            )
        return height, width

    def _in_places(self, prediction: torch.Tensor, tree: Mapping[str, Any]) -> torch.Tensor:
        height, width = tree[SHARED].arguments["grid"]
        in_grid = prediction.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2))
        return in_grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def _as_asked(self, prediction: torch.Tensor, tree: Mapping[str, Any]) -> torch.Tensor:
        height, width = tree[SHARED].arguments["grid"]
        in_grid = prediction.unflatten(2, (height, 2)).unflatten(4, (width, 2))
        return in_grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


KINDS: tuple[type[Denoiser], ...] = (UNet, SD3, Flux)


def _in_rows(name: str, value: Any, rows: int) -> Any:
    """The value's tensors with the rows in dim 0; one for all rows is repeated. Raises LoratorioError for others."""

    def with_rows(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0:
            return tensor.expand(rows)
        if tensor.shape[0] == rows:
            return tensor
        if tensor.shape[0] == 1:
            return tensor.expand(rows, *tensor.shape[1:])
        raise LoratorioError(
            f"the denoiser's argument {name} has {tensor.shape[0]} rows in a call of {rows}, so that whose they are "
            "cannot be told; leave what makes it away within the block."
        )

    return map_tensors(with_rows, value)
