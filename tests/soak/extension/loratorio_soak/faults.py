"""One fault at a time, armed by the test for its next request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from modules import shared

from loratorio_soak import model

EXCEPTION = "soak: another script's exception"
OUT_OF_MEMORY = "soak: out of memory. Tried to allocate 2.00 GiB"


@dataclass
class Fault:
    """What is to happen, where, and at which call of it, counted from 1.

    kind: `exception`, `oom`, `interrupt`, `skip`; `none` only counts. where: `model`, `text`, or one of the WebUI's
    callbacks. call: 0 is every one. rows: of the model's calls only those with more rows count; 0 is all.
    """

    kind: str = "none"
    where: str = "model"
    call: int = 1
    rows: int = 0
    calls: int = 0
    fired: int = 0


_fault: Fault | None = None
_handles: list[Any] = []


def arm(**fault) -> None:
    global _fault
    disarm()
    _fault = Fault(**fault)
    _handles.append(model.unet().register_forward_pre_hook(_of("model")))
    _handles.append(model.text_encoder().register_forward_pre_hook(_of("text")))


def disarm() -> dict[str, int]:
    """Takes the fault away; tells how often its place was met, and how often it happened."""
    global _fault
    while _handles:
        _handles.pop().remove()
    told = {"calls": _fault.calls, "fired": _fault.fired} if _fault else {"calls": 0, "fired": 0}
    _fault = None
    return told


def _of(where: str):
    def hook(module, inputs: tuple) -> None:
        at(where, inputs[0].shape[0] if inputs and isinstance(inputs[0], torch.Tensor) else 0)

    return hook


def at(where: str, rows: int = 0) -> None:
    """A place that faults can happen at."""
    fault = _fault
    if fault is None or fault.where != where or (fault.rows and rows <= fault.rows):
        return
    fault.calls += 1
    if fault.call not in (0, fault.calls) or fault.kind == "none":
        return
    fault.fired += 1
    if fault.kind == "exception":
        raise RuntimeError(EXCEPTION)
    if fault.kind == "oom":
        raise torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)
    {"interrupt": shared.state.interrupt, "skip": shared.state.skip}[fault.kind]()
