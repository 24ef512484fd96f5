"""How a method of composing is added: a class, its entry, and its name among the settings."""

import standin
import torch

from lib_loratorio import settings
from lib_loratorio.engine.methods import BASE, METHODS, Composed, Plan


class Farthest:
    """Each pixel is that of the adapter that is farthest from the base there."""

    def __init__(self, settings):
        self.settings = settings

    def plan(self, adapters, step):
        return Plan((BASE, *adapters), (BASE,))

    def combine(self, predictions, weights=None):
        adapted = torch.stack(
            [predictions.conditional[model] for model in sorted(predictions.conditional) if model != BASE]
        )
        farthest = (adapted - predictions.conditional[BASE]).norm(dim=2, keepdim=True).argmax(0, keepdim=True)
        return Composed(adapted.take_along_dim(farthest, 0)[0], predictions.unconditional[BASE])


def test_a_fifth_method(monkeypatch):
    monkeypatch.setitem(METHODS, "farthest", Farthest)
    monkeypatch.setitem(settings.METHODS, "farthest", settings.Traits(weighs=False, apart=True, several=True))
    with standin.installed() as host:
        host.add("a", {"diffusion_model_to_q": "lora"}, seed=1)
        host.add("b", {"diffusion_model_conv_in": "lora"}, seed=2)
        p, latents = host.generate(
            "a cat <lora:a:1> <lora:b:1>", {"enabled": True, "method": "farthest", "verify": True}
        )
        assert p.extra_generation_params["LoRAtorio"].startswith("method=farthest ")
        assert float(p.extra_generation_params["LoRAtorio verify"].split()[3]) < 1e-9
        assert (
            latents - host.generate("a cat <lora:a:1> <lora:b:1>", {"enabled": True, "method": "composite"})[1]
        ).abs().max() > 1e-3


def test_every_method_is_among_the_settings():
    assert list(METHODS) == list(settings.METHODS)
