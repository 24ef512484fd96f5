"""What one request keeps from one pass and batch to the next, and what its user is told about it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.engine.sampler_call import larger_error
from lib_loratorio.engine.scout import Scout
from lib_loratorio.errors import LoratorioError, told
from lib_loratorio.hosts.webui.maps import SHARES, Panels
from lib_loratorio.hosts.webui.messages import NOTE, note
from lib_loratorio.loras.tag import Part, part
from lib_loratorio.settings import INFOTEXT, POOL, Settings

VERIFY = "LoRAtorio verify"


@dataclass
class Verified:
    """What verification has found so far, over all passes and batches of a request."""

    calls: int = 0
    worst: float = 0.0

    def add(self, prediction, reference) -> None:
        self.worst = larger_error(self.worst, prediction, reference)

    def report(self, p) -> None:
        text = (
            f"max relative error {self.worst:.1e} over {self.calls} calls"
            if self.calls
            else "nothing was composed, so nothing was verified"
        )
        p.extra_generation_params[VERIFY] = text
        for comment in [comment for comment in p.comments if comment.startswith(VERIFY)]:
            del p.comments[comment]
        p.comment(f"{VERIFY}: {text}")


@dataclass
class RequestState:
    """What one request keeps on its `p` from one pass and batch to the next."""

    composed: bool = False
    verified: Verified = field(default_factory=Verified)
    bank: AdapterBank | None = None
    bank_key: Hashable = None
    panels: Panels | None = None
    adapters: dict = field(default_factory=dict)
    refused: dict[Hashable, list[str]] = field(default_factory=dict)
    """By checkpoint, the pool's LoRAs that do not suit it."""


def start(p) -> None:
    """A request begins: nothing is left of an earlier one that a script may have made with the same `p`."""
    p.loratorio = RequestState()
    for key in (NOTE, VERIFY, SHARES, POOL):
        p.extra_generation_params.pop(key, None)


def begin_maps(p, settings: Settings, adapters: Sequence) -> None:
    """A pass that is composed of these LoRAs begins; from here on its weights are kept for the maps, where they are
    wanted.
    """
    kept = p.loratorio
    if settings.maps and settings.method != "loratorio":
        note(
            p,
            f"there are no weight maps with the method {settings.method}, which does not weigh LoRAs by place.",
        )
    elif settings.maps:
        kept.panels = kept.panels or Panels()
        kept.panels.begin(
            {number: adapter.name for number, adapter in enumerate(adapters) if adapter.part.role == "local"},
            settings.patch_size,
        )


def picture_done(p, picture: Image) -> None:
    """The host has made the batch's next picture."""
    if p.loratorio and p.loratorio.panels:
        try:
            p.loratorio.panels.picture(picture)
        except Exception as error:
            note(
                p,
                f"the weight maps could not be drawn: {type(error).__name__}: {error}. Please report "
                "this with the console's output.",
            )
            raise


def hand_over(p, processed) -> None:
    """The host has made all pictures of a request."""
    if p.loratorio and p.loratorio.panels:
        p.loratorio.panels.hand_over(p, processed)


def leave_alone(p, message: str) -> None:
    """Tells why the pass about to start is the host's ordinary one."""
    if not p.loratorio.composed:
        p.extra_generation_params.pop(INFOTEXT, None)
    passes = "the hires pass" if p.is_hr_pass else "the first pass" if getattr(p, "enable_hr", False) else "the picture"
    note(p, f"{message} This makes {passes} the WebUI's ordinary one.")


def extra_network_data(p) -> dict:
    """The prompt's tags, parsed by the host, for the pass about to start."""
    return (getattr(p, "hr_extra_network_data", None) if p.is_hr_pass else p.extra_network_data) or {}


def names(data: dict) -> list[str]:
    """The names of the LoRAs among the prompt's tags."""
    return [params.positional[0] for kind in ("lora", "lyco") for params in data.get(kind, []) if params.positional]


def parts_by_name(data: dict) -> dict[str, Iterator[Part]]:
    """For each LoRA of the prompt, by name, what its tags say, in their order. Raises SettingsError."""
    found: dict[str, list[Part]] = {}
    for params in (params for kind in ("lora", "lyco") for params in data.get(kind, []) if params.positional):
        found.setdefault(params.positional[0], []).append(part(params.named, params.positional[0]))
    return {name: iter(parts) for name, parts in found.items()}


def require(wanted: Sequence[str], present) -> None:
    """Raises LoratorioError for the names that `present(name)` denies."""
    missing = [name for name in wanted if not present(name)]
    if missing:
        raise LoratorioError(
            f"LoRA not found or not readable: {', '.join(missing)}. "
            "Check the names in the prompt, or refresh the list of LoRAs if a file is new."
        )


def matches_nothing(name: str) -> LoratorioError:
    return LoratorioError(
        f"the LoRA '{name}' matches nothing in this model; "
        "it was made for another kind of model. Take it out of the prompt or change the checkpoint."
    )


class MisfitsError(Exception):
    """LoRAs of a pool, by `names`, of which fewer layers can be applied to this model than cannot."""

    def __init__(self, names: Sequence[str]):
        super().__init__(", ".join(names))
        self.names = names


def report_failures(p, adapters: Sequence, bank: AdapterBank) -> None:
    """Tells which layers of the LoRAs are left out, and why. Raises MisfitsError, and LoratorioError for a LoRA of
    which none is left.
    """
    for adapter, failures in zip(adapters, bank.failures):
        for layer, reason in failures.items():
            logging.info(told(f"LoRA {adapter.name}, layer {layer}: {reason}"))
    left = list(zip(adapters, bank.failures, bank.counts))
    misfits = [adapter.name for adapter, failures, applied in left if adapter.pooled and applied < len(failures)]
    if misfits:
        raise MisfitsError(misfits)
    for adapter, failures, applied in left:
        if failures:
            _report(p, adapter.name, failures, applied, adapter.changes_text)


def _report(p, name: str, failures: dict[str, str], applied: int, changes_text: bool) -> None:
    half = any("not implemented for 'Half'" in reason for reason in failures.values())
    reasons = {reason for reason in failures.values() if reason.startswith("quantised")}
    if half:
        why = "a half-precision file of this kind cannot be computed on a CPU; use a float32 file"
    else:
        first = next(iter(failures.values()))
        why = (
            reasons.pop()
            if len(reasons) == 1
            else f"they are for another kind of model, or in a form that the WebUI cannot merge ({first})"
        )
    if not applied and not changes_text:
        raise LoratorioError(
            f"none of the {len(failures)} layers of the LoRA '{name}' could be applied to this model: {why}."
        )
    note(
        p,
        f"{len(failures)} of {len(failures) + applied} layers of the LoRA '{name}' could not be "
        f"applied and are left out: {why}.",
    )


def tell_what_merge_leaves_out(p, adapters: Sequence) -> None:
    """With this method the sampling is the WebUI's own, with the prompt's LoRAs."""
    if any((adapter.part.start, adapter.part.end) != (0, 1) for adapter in adapters):
        note(
            p,
            "with the method merge, ltstart and ltend have no effect; the WebUI merges LoRAs for the whole sampling.",
        )
    if any(adapter.pooled for adapter in adapters):
        note(p, "the method merge has no pool; only the prompt's LoRAs are merged.")


def report_pool(p, names: Sequence[str], scout: Scout) -> None:
    """Tells which LoRAs of a pool were chosen in this pass, and from which step on, behind what is told of a batch's
    first pass.
    """
    if not scout.pool:
        return
    p.extra_generation_params[POOL] = "; ".join(filter(None, [p.extra_generation_params.get(POOL), scout.told(names)]))


def step_now(denoiser) -> tuple[float, int]:
    """The fraction of the sampling at the model call about to be made, and the sampling step it belongs to."""
    calls = max(denoiser.total_steps, 1)
    return denoiser.step / calls, denoiser.step * denoiser.steps // calls
