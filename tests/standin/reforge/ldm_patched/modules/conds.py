"""What the model is called with besides the latents."""

from bases.conditions import Condition as CONDRegular
from bases.conditions import ConditionCrossAttn as CONDCrossAttn

__all__ = ["CONDCrossAttn", "CONDRegular"]
