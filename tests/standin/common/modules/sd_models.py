"""The model that is loaded, without a look that would load it."""

from types import SimpleNamespace

model_data = SimpleNamespace(sd_model=None)
