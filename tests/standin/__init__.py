"""Small stand-ins of the parts of the WebUIs that the extension uses, written from their interfaces: here
AUTOMATIC1111's.

`installed()` makes `modules`, `networks` and `gradio` importable for the time of a block, loads
`scripts/loratorio.py` as the host does, and leaves nothing behind in `sys.modules`. `forge_host` does so for the Forge
family. A folder holds what its host has of its own; what all hosts have alike is in `common`: `modules` as it is, and
`bases` for the hosts' own modules to build on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from standin.weights import random_weights

torch.set_num_threads(1)  # tensors this small only wait for each other's threads

FOLDER = Path(__file__).parent
COMMON, WEBUI = FOLDER / "common", FOLDER / "webui"
SCRIPT = Path(__file__).parents[2] / "scripts" / "loratorio.py"

_HOST_MODULES = (
    "modules",
    "networks",
    "network",
    "model",
    "gradio",
    "bases",
    "backend",
    "modules_forge",
    "ldm_patched",
)
_IMPORTING_THEM = (
    "lib_loratorio.hosts.a1111",
    "lib_loratorio.hosts.forge",
    "lib_loratorio.hosts.webui",
    "lib_loratorio.page.accordion",
    "lib_loratorio.page.pool_picker",
)


@contextmanager
def installed() -> Iterator[Host]:
    with imported_from(WEBUI):
        yield Host()


@contextmanager
def imported_from(*folders: Path) -> Iterator[None]:
    """The host's modules come from these folders, and from the one for all hosts, for the time of the block."""
    former, path = _taken_out(), list(sys.path)
    sys.path[:0] = map(str, (*folders, COMMON))
    try:
        yield
    finally:
        sys.path[:] = path
        _taken_out()
        sys.modules.update(former)


def load_script() -> Any:
    """The extension's script, as hosts load it."""
    spec = importlib.util.spec_from_file_location("loratorio.py", SCRIPT)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return extension


def _taken_out() -> dict[str, Any]:
    """Takes the host's modules, and the extension's that import them, out of what is imported."""
    taken = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in _HOST_MODULES or name.startswith(_IMPORTING_THEM)
    }
    for name in taken:
        del sys.modules[name]
        package, _, attribute = name.rpartition(".")
        if name.startswith(_IMPORTING_THEM) and package in sys.modules:
            sys.modules[package].__dict__.pop(attribute, None)
    return taken


class RunningHost:
    """A running WebUI: its modules, its model, and the extension's script."""

    parts: ClassVar[dict[str, str]] = {
        **{name: name for name in ("gradio", "networks", "model")},
        **{
            name: f"modules.{name}"
            for name in (
                "shared",
                "errors",
                "processing",
                "prompt_parser",
                "sd_samplers",
                "scripts",
                "script_callbacks",
            )
        },
        "text": "lib_loratorio.hosts.webui.text",
    }

    def __init__(self, **parts: str):
        """`parts` are modules that only this host has, and the extension's for it."""
        self.extension = load_script()
        for name, module in {**self.parts, **parts}.items():
            setattr(self, name, importlib.import_module(module))
        self.script_callbacks.ui_settings_callback()
        self.script_callbacks.before_ui_callback()
        self.script = self.extension.LoratorioScript()
        self.use()

    def use(self, **model) -> Any:
        """Has a new model as the checkpoint."""
        self.shared.sd_model = self.model.SdModel(**model)
        return self.shared.sd_model

    def own(self, settings) -> list[tuple[Any, tuple]]:
        """The extension's script with its arguments: one dict of settings, or nothing for a page without it."""
        if settings is None:
            return []
        return [(self.script, (settings,) if isinstance(settings, dict) else tuple(settings))]

    def request(self, prompt, settings=None, **fields) -> Any:
        """A request, with the script's arguments."""
        return self.processing.Processing(prompt, scripts=self.scripts.ScriptRunner(self.own(settings)), **fields)

    def generate(self, prompt, settings=None, **fields) -> tuple[Any, torch.Tensor]:
        p = self.request(prompt, settings, **fields)
        return p, self.processing.process_images(p)


class Host(RunningHost):
    def __init__(self):
        super().__init__(
            network="network",
            sd_samplers_timesteps="modules.sd_samplers_timesteps",
            sd_unet="modules.sd_unet",
            a1111="lib_loratorio.hosts.a1111",
            messages="lib_loratorio.hosts.webui.messages",
            pool="lib_loratorio.hosts.webui.pool",
            picker="lib_loratorio.page.pool_picker",
        )

    def module(
        self,
        kind: str,
        layer: torch.nn.Module,
        w: Mapping[str, torch.Tensor],
        unet=1.0,
        dyn=None,
        key="diffusion_model_layer",
    ) -> Any:
        """A network's module for one layer, as the host's loader makes it."""
        network = self.network.Network(kind, self.network.NetworkOnDisk(kind, {}))
        network.unet_multiplier, network.dyn_dim = unet, dyn
        return self.network.create_module(network, key, w, layer)

    def add(self, name: str, layers: Mapping[str, str], seed: int, size=0.4, embeddings=None, alias=None) -> Any:
        """Puts a file with random weights of these kinds, by layer, into the folder of networks."""
        generator = torch.Generator().manual_seed(seed)
        mapping = self.shared.sd_model.network_layer_mapping
        contents = {}
        for layer, kind in layers.items():
            like = mapping.get(layer, mapping["diffusion_model_to_q"])
            contents[layer] = random_weights(kind, like, generator, size)
        on_disk = self.network.NetworkOnDisk(name, contents, embeddings, alias)
        self.networks.available_networks[name] = on_disk
        self.networks.available_network_aliases.update({name: on_disk, on_disk.alias: on_disk})
        return on_disk
