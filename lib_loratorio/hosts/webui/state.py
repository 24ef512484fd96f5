"""What is kept for a request while that runs; none of it is on the request, which others copy and serialise."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from PIL.Image import Image

from lib_loratorio.beside import Beside
from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.engine.composer import Tally
from lib_loratorio.hosts.webui.maps import Panels
from lib_loratorio.loras.adapter import Adapter


@dataclass
class RequestState:
    """What is kept for one request from one pass and batch to the next.

    params: the request's `extra_generation_params`, by which a copy of it is known.
    composed: whether any pass was. tally: over all passes and batches. adapters: those loaded so far, by what the host
    was asked for. refused: by checkpoint, the pool's LoRAs that do not suit it. without_effect: of the prompt's LoRAs,
    the keys of those that change nothing. mask: the image in which places are painted.
    """

    params: dict
    composed: bool = False
    tally: Tally = field(default_factory=Tally)
    bank: AdapterBank | None = None
    bank_key: Hashable = None
    panels: Panels | None = None
    adapters: dict[Hashable, Adapter] = field(default_factory=dict)
    refused: dict[Hashable, list[str]] = field(default_factory=dict)
    without_effect: set[Hashable] = field(default_factory=set)
    mask: Image | None = None


_states: Beside[RequestState] = Beside()


def state_of(p) -> RequestState:
    """The request's state, from the first time that it is asked for until it is over."""
    return _states.get_or_make(p, lambda: RequestState(p.extra_generation_params))


def known_state(p) -> RequestState | None:
    """The request's state, if anything was kept for it."""
    return _states.get(p)


def is_copy(p) -> bool:
    """Whether its infotext is another request's, which is not over."""
    own = known_state(p)
    return any(state.params is p.extra_generation_params for state in _states.values() if state is not own)


def forget_state(p) -> None:
    _states.drop(p)
