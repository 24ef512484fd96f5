"""Everything inside `lib_loratorio` that the contract's tests take hold of, by name and for every host alike.

What they take from here is either public to users (settings, errors) or a place where a test breaks the extension to
see what happens then.
"""

import importlib

from lib_loratorio.engine.methods import METHODS
from lib_loratorio.engine.scout import Scout
from lib_loratorio.errors import LoratorioError
from lib_loratorio.page.live import price
from lib_loratorio.presets import CUSTOM, PRESETS, START
from lib_loratorio.settings import Settings

__all__ = ["CUSTOM", "PRESETS", "START", "LoratorioError", "Settings", "price"]

WEBUI = "lib_loratorio.hosts.webui"


class OddError(Exception):
    """Raised by tests only."""


def module(name):
    """Of those that import the host's; each stand-in has its own."""
    return importlib.import_module(f"lib_loratorio.hosts.{name}")


def entry_points(host):
    """The host's module, which the script hands every sampling over to."""
    return module(host.package)


def running_pass(host):
    """What the host's callbacks go to while a pass is composed, else None."""
    return module(f"{host.package}.sampling")._current


def state_of(p):
    """What the extension keeps on a request while that runs, else None."""
    return module("webui.state").known_state(p)


def is_ours(value):
    """Whether it is an object or function of the extension's."""
    return getattr(value, "__module__", type(value).__module__ or "").startswith("lib_loratorio")


def instead_of_sampling():
    """The function by which a sampler's next sampling is replaced."""
    return module("webui.messages").instead_of_sampling


def entries_are_called(host, monkeypatch):
    """Names of the entry points that change or tell anything, as they are called."""
    called = []
    for name in ("prepare", "stop", "note"):
        monkeypatch.setattr(entry_points(host), name, lambda *args, name=name: called.append(name))
    return called


def fail_when_deltas_are_made(host, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(module(f"{host.package}.deltas"), "_deltas", fail)


def change_factors(host, monkeypatch, factor):
    """Low-rank deltas become `factor` times what they are."""
    deltas = module(f"{host.package}.deltas")
    if host.package == "a1111":
        low_rank = deltas._low_rank

        def changed(*args):
            right = low_rank(*args)
            return type(right)(right.down, right.up * factor, right.scale)

        monkeypatch.setattr(deltas, "_low_rank", changed)
    else:
        factors = deltas.backend.factors

        def changed(patch):
            right = factors(patch)
            return right and right._replace(up=right.up * factor)

        monkeypatch.setattr(deltas.backend, "factors", changed)


def name_blocks(monkeypatch, blocks):
    """Layers whose name has such a part are of these blocks."""
    block_weights = importlib.import_module("lib_loratorio.loras.block_weights")
    monkeypatch.setattr(
        block_weights,
        "block_of",
        lambda layer: next((block for part, block in blocks.items() if part in layer), None),
    )


def break_method(monkeypatch, where, error):
    """LoRAtorio's own method raises it where it plans a step, or combines one's predictions."""

    def fail(*args):
        raise error

    monkeypatch.setitem(METHODS, "loratorio", type("Broken", (METHODS["loratorio"],), {where: fail}))


def plans(monkeypatch, method):
    """`(step, adapters)` of each call that the method plans."""
    planned, plan = [], METHODS[method].plan

    def noted(self, adapters, step):
        planned.append((step, tuple(adapters)))
        return plan(self, adapters, step)

    monkeypatch.setattr(METHODS[method], "plan", noted)
    return planned


def scouted_weights(monkeypatch):
    """The patch weights that the scout learns of, by call."""
    weighed, learn = [], Scout.learn

    def noted(self, adapters, weights):
        weighed.append(weights)
        return learn(self, adapters, weights)

    monkeypatch.setattr(Scout, "learn", noted)
    return weighed


def set_trigger_words(monkeypatch, by_name):
    """What the files tell of their trigger words."""
    monkeypatch.setattr(
        module("webui.text"), "trigger_words", lambda path: by_name[path.rpartition("/")[2].partition(".")[0]]
    )


def name_files(monkeypatch, by_name):
    """What the files tell of their trigger words, where a pool is chosen by them."""
    trigger_words = importlib.import_module("lib_loratorio.loras.trigger_words")
    monkeypatch.setattr(
        trigger_words, "trigger_words", lambda path: by_name.get(path.rpartition("/")[2].partition(".")[0], "")
    )


def paths_of_networks():
    """All of the host's networks by name, as paths within its folders."""
    return module("webui.pool").known()


def make_paths(monkeypatch, kind):
    """Paths are of another system's kind."""
    monkeypatch.setattr(module("webui.pool"), "PurePath", kind)


def base_weight(layer, parameter):
    """A layer's weight or bias as the Forge family's member at hand computes with it."""
    return module("forge.loader").backend.base_weight(layer, parameter)
