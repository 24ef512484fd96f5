"""The stand-ins of all hosts behind one interface, so that a test knows no host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import internals
import torch


class WebUI(ABC):
    """A running stand-in. What all of them have alike is reached through it; what each does in its own way is here.

    name: of the host. package: of the extension, for the host.
    sampler_kinds: one sampler for each form in which the host's models predict.
    samplers: those, and further ones.
    leaves_guidance_out_at_1: whether there is no negative prompt at the guidance scale 1.
    portions: settings of the host, from those by which it evaluates the fewest rows at a time to those by which it
        evaluates all at once.
    networks_of_tests: files by name, as `add` takes them, all with one seed after the other.
    dense_tolerance: how exact kinds without factors are on this host.
    under, over: two that change the same weights, the latter one by kinds that depend on the weight.
    """

    package: ClassVar[str]
    sampler_kinds: ClassVar[tuple[str, ...]] = ("Euler",)
    samplers: ClassVar[tuple[str, ...]] = ("Euler", "Heun")
    leaves_guidance_out_at_1: ClassVar[bool]
    portions: ClassVar[tuple]
    networks_of_tests: ClassVar[dict[str, dict]]
    dense_tolerance: ClassVar[float] = 1e-9
    under: ClassVar[dict]
    over: ClassVar[dict]

    def __init__(self, name: str, stand_in: Any):
        self.name, self.stand_in = name, stand_in

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stand_in, name)

    # Networks

    @abstractmethod
    def add(self, name: str, layers: dict, seed: int = 8, **fields) -> Any:
        """Puts a file into the folder of networks: kinds of random weights by layer, "fc1" and "fc2" the text
        encoder's. Of the kinds "misfit" and "misfit lora" are weights of another shape.
        """

    @abstractmethod
    def add_weighted(self, name: str, of: str, factors: dict) -> None:
        """Puts a file into the folder that is another one with its changes of layers multiplied. Of a kind that is not
        in proportion to anything in its file, a factor is 0 or 1.
        """

    @abstractmethod
    def add_broken(self, name: str) -> None:
        """A file that the host cannot read."""

    def add_alias(self, name: str, alias: str) -> None:
        """Another name of a file, as its metadata gives it."""
        self.networks.available_network_aliases[alias] = self.networks.available_networks[name]

    def add_networks(self) -> None:
        for seed, (name, layers) in enumerate(self.networks_of_tests.items(), 1):
            self.add(name, layers, seed)

    # Requests

    @abstractmethod
    def request(self, prompt, settings=None, before=(), after=(), **fields) -> Any:
        """Other extensions, functions of the request, run before and after the script. `p.former` is what it finds in
        the host.
        """

    def generate(self, prompt, settings=None, **fields) -> tuple[Any, torch.Tensor]:
        p = self.request(prompt, settings, **fields)
        return p, self.processing.process_images(p)

    def merged_picture(self, prompt, **fields) -> torch.Tensor:
        """The host's own."""
        return self.generate(prompt, **fields)[1]

    def in_portions(self, *args, portions=None, **fields) -> Iterator[tuple[Any, torch.Tensor]]:
        """The request in each way in which the host may divide its rows."""
        for portion in portions or self.portions:
            self.set_portion(portion)
            yield self.generate(*args, **fields)

    @property
    def extreme_portions(self) -> tuple:
        return self.portions[0], self.portions[-1]

    @abstractmethod
    def set_portion(self, portion) -> None:
        """Makes it one of these settings."""

    # What a test watches, and breaks

    @property
    @abstractmethod
    def model_class(self) -> type:
        """Has `apply_model(x, ...)`."""

    def replace_model(self, monkeypatch, replacement) -> None:
        """Every model call becomes `replacement(apply_model, x)`, where `apply_model()` is the call itself."""
        original = self.model_class.apply_model

        def replaced(model, x, *args, **kwargs):
            return replacement(lambda: original(model, x, *args, **kwargs), x)

        monkeypatch.setattr(self.model_class, "apply_model", replaced)

    def count_rows(self, monkeypatch) -> list[int]:
        """The rows of each model call, as they are made."""
        rows = []
        self.replace_model(monkeypatch, lambda apply_model, x: rows.append(len(x)) or apply_model())
        return rows

    def fail_at(self, monkeypatch, call: int, error: BaseException) -> None:
        """That call of the model raises the error."""
        calls = iter(range(99))

        def failing(apply_model, x):
            if next(calls) == call:
                raise error
            return apply_model()

        self.replace_model(monkeypatch, failing)

    def count_encodings(self, monkeypatch) -> list[list[str]]:
        """The texts of each call of the text encoder, as they are made."""
        encoded, encode = [], self.model.SdModel.get_learned_conditioning
        monkeypatch.setattr(
            self.model.SdModel,
            "get_learned_conditioning",
            lambda model, texts: encoded.append(list(texts)) or encode(model, texts),
        )
        return encoded

    @abstractmethod
    def files_read(self, monkeypatch) -> list[str]:
        """The names of networks whose files the host reads, as it does."""

    # The host as it was

    def assert_clean(self, p) -> None:
        """Nothing of the extension is left in the host, and its model is the original one again."""
        assert names(self.networks.loaded_networks) == names(p.former.loaded)
        assert internals.running_pass(self) is None
        assert not any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            for module in self.denoiser_model().modules()
        )
        assert "launch_sampling" not in vars(p.sampler)
        self.assert_own_state(p)
        self.processing.Processing.cached_c[:2] = [None, None]  # so that the text encoder is used, too
        self.generate("a plain picture")
        weights, original = self.weights(), self.original_weights()
        assert all(torch.equal(value, original[name]) for name, value in weights.items())

    @abstractmethod
    def assert_own_state(self, p) -> None:
        """What only this kind of host has."""

    @abstractmethod
    def denoiser_model(self, checkpoint=None) -> torch.nn.Module:
        """What holds the layers of the UNet of a checkpoint, by default of the one at hand."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Every weight of the checkpoint."""

    @abstractmethod
    def original_weights(self) -> dict[str, torch.Tensor]:
        """Those of a new model like the checkpoint."""

    def cached_conditions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the host has kept of the first picture's prompt, and of its negative prompt."""
        cached = self.processing.Processing
        return cached.cached_c[1].batch[0][0].schedules[0].cond, cached.cached_uc[1][0][0].cond

    # What the equations ask

    @abstractmethod
    def load(self, adapters) -> None:
        """By the host's own loader."""

    @abstractmethod
    def put_back(self) -> AbstractContextManager[None]:
        """Afterwards the host has loaded what it had loaded before, by name and in its weights."""

    def encode(self, adapters, text: str, size: tuple[int, int]) -> Any:
        self.load(adapters)
        return self.shared.sd_model.get_learned_conditioning(self.prompt_parser.SdConditioning([text], False, *size))

    def negative_as_long(self, text, tokens: int) -> Any:
        """The negative prompt's condition, where the host makes it as long as the prompt's."""
        return text

    @abstractmethod
    def predict(self, adapters, row) -> torch.Tensor:
        """What the model makes of one row with these networks merged."""

    def predicts_noise(self, config) -> bool:
        """Whether a sampler's model gives the noise, rather than the picture."""
        return False

    @abstractmethod
    def unguided(self, conditional, weights) -> torch.Tensor:
        """What the host makes of sub-prompts in a step without guidance."""


def names(networks) -> list[str]:
    return [network.name for network in networks]
