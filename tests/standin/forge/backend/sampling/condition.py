"""The host's conditions: for no text there are none."""

from bases.conditions import Condition, ConditionCrossAttn, compiled
from bases.conditions import compiled_with_weights as compile_weighted_conditions

__all__ = ["Condition", "ConditionCrossAttn", "compile_conditions", "compile_weighted_conditions"]


def compile_conditions(cond):
    return None if cond is None else compiled(cond)
