"""A guider for diffusers' Modular Diffusers, which asks for one LoRA's prediction after the other and composes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance

from lib_loratorio.engine.methods import LoRAtorio, Predictions
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.arguments import strength_of
from lib_loratorio.hosts.diffusers.loader import LoraState, activate_in
from lib_loratorio.hosts.diffusers.sources import adapters_in
from lib_loratorio.loras.adapter import BASE
from lib_loratorio.settings import Settings

DEFAULTS = Settings()


class LoRAtorioGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance with predictions that are composed of several LoRAs'.

    Similarities are of what the denoiser predicts, which must be the noise or the velocity of flow matching. Each LoRA
    reads the text that the pipeline has encoded.

    Args:
        adapters: of the pipeline's adapters those that are composed, with their strengths.
        temperature, patch_size, lam, top_k: as in `Settings`.
        start, stop: the part of the steps that is guided; all of them are composed.

    Others are `ClassifierFreeGuidance`'s. Raises LoratorioError, also in a pipeline's call for adapters that its
    denoiser has not, and for predictions other than `[B, C, H, W]`.
    """

    @register_to_config
    def __init__(
        self,
        adapters: Mapping[str, float],
        guidance_scale: float = 7.5,
        temperature: float = DEFAULTS.temperature,
        patch_size: int = DEFAULTS.patch_size,
        lam: float = DEFAULTS.lam,
        top_k: int = DEFAULTS.top_k,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation, start, stop, enabled)
        self.register_to_config(_use_default_values=[])  # which diffusers takes what is given by position for
        if not isinstance(adapters, Mapping) or not adapters:
            raise LoratorioError("the LoRAs are given as a dict of adapters' names and strengths.")
        self.adapters = [(str(name), strength_of(strength, name)) for name, strength in adapters.items()]
        self.settings = Settings(temperature=temperature, patch_size=patch_size, lam=lam, top_k=top_k)
        self.method = LoRAtorio(self.settings)
        self._before: LoraState | None = None

    # What the pipeline is to ask for: models by number; conditions as it has them, 1 for unconditional

    @property
    def _asked(self) -> list[tuple[int, int]]:
        plan = self.method.plan(range(len(self.adapters)), 0)
        unconditional = plan.unconditional if self._is_cfg_enabled() else ()
        return [(model, 0) for model in plan.conditional] + [(model, 1) for model in unconditional]

    @property
    def num_conditions(self) -> int:
        return len(self._asked)

    @property
    def is_conditional(self) -> bool:
        return self._asked[self._count_prepared - 1][1] == 0

    def prepare_inputs(self, data: dict) -> list:
        return [self._prepare_batch(data, place, _name(model, place)) for model, place in self._asked]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict) -> list:
        prepare = self._prepare_batch_from_block_state
        return [prepare(input_fields, data, place, _name(model, place)) for model, place in self._asked]

    def set_state(self, *args: Any, **kwargs: Any) -> None:
        self._restore()  # where an evaluation has failed
        super().set_state(*args, **kwargs)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        super().prepare_models(denoiser)
        known = adapters_in([denoiser])
        if missing := [name for name, _ in self.adapters if name not in known]:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise LoratorioError(f"the denoiser has no LoRA {missing[0]}, {has}; load it with load_lora_weights().")
        model, _ = self._asked[self._count_prepared - 1]
        self._before = LoraState(denoiser)
        activate_in(denoiser, [] if model == BASE else [self.adapters[model]])

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            self._before.restore()
            self._before = None

    def forward(self, **predictions: torch.Tensor) -> Any:
        cond, uncond = self._of_condition(predictions, 0), self._of_condition(predictions, 1)
        like = next(iter(cond.values()))
        if like.dim() != 4:
            raise LoratorioError(
                f"the denoiser predicts {like.dim()} dimensions, not [B, C, H, W], so that places cannot be told; "
                "LoRAtorioGuidance is for SD 3 and SDXL."
            )
        image_of = torch.arange(len(like), device=like.device)
        composed = self.method.combine(Predictions(cond, uncond or None, NoiseSpace.noise(), image_of))
        return super().forward(*(part for part in (composed.conditional, composed.unconditional) if part is not None))

    def _of_condition(self, predictions: Mapping[str, torch.Tensor], place: int) -> dict[int, torch.Tensor]:
        """The predictions by model."""
        return {model: predictions[_name(model, asked)] for model, asked in self._asked if asked == place}


def _name(model: int, place: int) -> str:
    """The base's is number 0 there."""
    return f"{'pred_uncond' if place else 'pred_cond'}_{model - BASE}"
