"""LoRAs of which some layers, or all, cannot be applied to the model at hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import DeltaError
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.loras.adapter import Adapter


class MisfitsError(Exception):
    """LoRAs of a pool, by `names`, of which fewer layers can be applied to this model than cannot."""

    def __init__(self, names: Sequence[str]):
        super().__init__(", ".join(names))
        self.names = names


def report_failures(p, adapters: Sequence[Adapter], bank: AdapterBank) -> None:
    """Tells which layers of the LoRAs are left out, and why.

    Raises MisfitsError, and LoratorioError for a LoRA of which none is left.
    """
    for adapter, failures in zip(adapters, bank.failures):
        for layer, error in failures.items():
            logging.info(told(f"LoRA {adapter.name}, layer {layer}: {error}"))
    found = list(zip(adapters, bank.failures, bank.counts))
    misfits = [adapter.name for adapter, failures, applied in found if adapter.pooled and applied < len(failures)]
    if misfits:
        raise MisfitsError(misfits)
    for adapter, failures, applied in found:
        if failures:
            _report(p, adapter, failures, applied)


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
