"""LoRAs that cannot be applied to the model at hand, in part or at all, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import DeltaError
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.loras import kinds
from lib_loratorio.loras.adapter import Adapter

LEAST = 0.1
"""The least share of a file's layers for a UNet or transformer that must fit, for it to be one for this model."""


class LeftOutError(Exception):
    """Adapters that a pass goes on without: of the pool those that do not suit the model, and any without effect."""

    def __init__(self, adapters: Sequence[Adapter]):
        super().__init__(", ".join(adapter.name for adapter in adapters))
        self.adapters = adapters


def matches_nothing(name: str, path: str, layouts: Sequence[str]) -> LoratorioError:
    """The error for a file that matches nothing in this model, where the WebUI reads files of these layouts."""
    return unreadable(name, path, layouts) or LoratorioError(
        f"the LoRA '{name}' matches nothing in this model; "
        "it was made for another kind of model. Take it out of the prompt or change the checkpoint."
    )


def unreadable(name: str, path: str, layouts: Sequence[str]) -> LoratorioError | None:
    """The error for a file in another layout than those that the WebUI reads; None for one in these, or damaged."""
    layout = kinds.layout(path)
    if layout is None or layout in layouts:
        return None
    return LoratorioError(
        f"the layout of the LoRA '{name}' is not readable for this WebUI: its layers have {layout} names. "
        "Convert the file to kohya's layout, or take it out of the prompt."
    )


def report_failures(p, adapters: Sequence[Adapter], bank: AdapterBank, layouts: Sequence[str]) -> None:
    """Tells which layers of the LoRAs are left out, and why.

    Raises LeftOutError, and LoratorioError for a LoRA of the prompt that is damaged or made for another model.
    """
    for adapter, failures in zip(adapters, bank.failures):
        for layer, error in failures.items():
            logging.info(told(f"LoRA {adapter.name}, layer {layer}: {error}"))
    found = list(zip(adapters, bank.failures, bank.counts, bank.damaged))
    left_out = [
        adapter
        for adapter, failures, applied, damaged in found
        if adapter.pooled and (damaged or applied < len(failures) or not _suits(adapter, applied))
    ]
    for adapter, failures, applied, damaged in found:
        if adapter in left_out:
            continue
        if damaged:
            raise _damaged(adapter, damaged)
        if failures:
            _report(p, adapter, failures, applied)
        elif not _suits(adapter, applied):
            raise matches_nothing(adapter.name, adapter.path, layouts)
    left_out += [
        adapter
        for adapter, effective in zip(adapters, bank.effective)
        if not effective and not adapter.changes_text and adapter not in left_out
    ]
    if left_out:
        raise LeftOutError(left_out)


def tell_left_out(p, adapters: Sequence[Adapter]) -> None:
    """Tells of those of the prompt's LoRAs that have no effect; those of a pool are told of together."""
    for adapter in adapters:
        if not adapter.pooled:
            note(p, f"the LoRA '{adapter.name}' changes nothing, as all its values are zero, and is left out.")


def _suits(adapter: Adapter, applied: int) -> bool:
    """Whether enough of a file fits this model: text-encoder layers alone may fit many kinds of models."""
    in_file = kinds.layers(adapter.path)
    fitting = applied + adapter.switched_off
    return not adapter.denoiser_strength or in_file is None or fitting >= LEAST * in_file.denoiser


def _damaged(adapter: Adapter, layers: Sequence[str]) -> LoratorioError:
    return LoratorioError(
        f"the LoRA '{adapter.name}' holds values that are no numbers (NaN or infinity) in {len(layers)} of its layers, "
        f"such as {layers[0]}: its file is damaged. Take it out of the prompt, or get the file anew."
    )


def _report(p, adapter: Adapter, failures: Mapping[str, RuntimeError], applied: int) -> None:
    why = _reason(list(failures.values()))
    if not applied and not adapter.changes_text:
        raise LoratorioError(
            f"none of the {len(failures)} layers of the LoRA '{adapter.name}' could be applied to this model: {why}."
        )
    note(
        p,
        f"{len(failures)} of {len(failures) + applied} layers of the LoRA '{adapter.name}' could not be "
        f"applied and are left out: {why}.",
    )


def _reason(errors: Sequence[RuntimeError]) -> str:
    known = next((error for error in errors if isinstance(error, DeltaError)), None)
    if known:
        return str(known)
    return f"they are for another kind of model, or in a form that the WebUI cannot merge ({errors[0]})"
