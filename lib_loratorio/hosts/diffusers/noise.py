"""A scheduler's predictions in terms of the noise, which is where the similarity is taken."""

from __future__ import annotations

import torch

from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.errors import LoratorioError

SMALLEST = 1e-12
"""Of `alphas_cumprod`, which a schedule with zero terminal signal-to-noise ratio ends in: keeps its logarithm finite.
"""


def flows(scheduler) -> bool:
    """Whether a scheduler's models predict a velocity, between the picture and noise: flow matching."""
    config = scheduler.config
    by_config = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return bool(by_config) or type(scheduler).__name__.startswith("FlowMatch")


def check_scheduler(scheduler, has_alphas: bool = True) -> None:
    """Raises LoratorioError for a scheduler whose model input is not `alpha * x_0 + sigma * noise`.

    `has_alphas` tells whether the model can do with one that is not of flow matching.
    """
    name = type(scheduler).__name__
    if flows(scheduler):
        return
    if not has_alphas:
        raise LoratorioError(
            f"the scheduler {name} is not of flow matching, as this model needs; use FlowMatchEulerDiscreteScheduler."
        )
    if not hasattr(scheduler, "alphas_cumprod"):
        raise LoratorioError(
            f"the scheduler {name} has no alphas_cumprod; use one of the DDPM family, such as DDIM, Euler or DPM++ 2M."
        )
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise LoratorioError(
            f"the scheduler {name} has the prediction type {kind!r}; supported are epsilon, v_prediction and sample."
        )


def signal_and_noise(alphas_cumprod: torch.Tensor, timestep: torch.Tensor) -> tuple[float, float]:
    """`alpha, sigma` at a timestep, `alpha^2 + sigma^2 = 1`.

    A fractional timestep lies between two of the schedule's in `log(sigma / alpha)`, which is how the schedulers with
    Karras sigmas have found it.
    """
    squares = alphas_cumprod.double().cpu().clamp(SMALLEST, 1 - SMALLEST)
    log_ratios = ((1 - squares) / squares).log() / 2
    t = min(max(float(timestep), 0.0), len(squares) - 1.0)
    low = int(t)
    high = min(low + 1, len(squares) - 1)
    ratio = torch.lerp(log_ratios[low], log_ratios[high], t - low).exp()
    alpha = (1 + ratio**2).rsqrt()
    return alpha.item(), (ratio * alpha).item()


def noise_space(scheduler, x: torch.Tensor, timestep: torch.Tensor) -> NoiseSpace:
    """How a scheduler's predictions become noise at a timestep.

    `x [B,C,H,W]` is the model's input as the scheduler scales it, `alpha * x_0 + sigma * noise`.
    """
    kind = scheduler.config.get("prediction_type")
    if kind == "epsilon" or flows(scheduler):  # a velocity is what noise is elsewhere: the sampling's direction
        return NoiseSpace.noise()
    of_kind = NoiseSpace.velocity if kind == "v_prediction" else NoiseSpace.sample
    return of_kind(x.float(), *signal_and_noise(scheduler.alphas_cumprod, timestep))
