"""The kinds of patches that are more than a difference."""

from bases.adapters import LoHaAdapter, LoRAAdapter, ScaledAdapter, WeightAdapterBase

__all__ = ["LoRAAdapter", "WeightAdapterBase", "adapters"]

adapters = [LoRAAdapter, LoHaAdapter, ScaledAdapter]
