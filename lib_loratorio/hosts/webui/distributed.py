"""Batches that the extension Distributed (papuSpartan) divides among several machines.

It sends a request's fields and every script's arguments to each worker's API, and appends the answers' pictures to
its own last batch. What LoRAtorio tells and draws there would be lost, or appended as pictures: it is taken out of the
answers before, and told and shown here.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from lib_loratorio.errors import untold
from lib_loratorio.hosts.webui.maps import SHARES, Drawn, Panels
from lib_loratorio.hosts.webui.messages import NOTE, note
from lib_loratorio.hosts.webui.other_scripts import script_titled
from lib_loratorio.hosts.webui.request import VERIFY
from lib_loratorio.hosts.webui.state import state_of
from lib_loratorio.settings import INFOTEXT

TITLE = "Distribute"
FAILED = re.compile(r"'(?P<worker>.*)' response: Code <\d+> (?P<answer>.*)", re.DOTALL)
"""What Distributed logs of a worker's answer that is none, and tells nobody."""


class _Failures(logging.Handler):
    """What workers have last answered in place of pictures, by the workers' names."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.answers: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if found := FAILED.match(record.getMessage()):
            self.answers[found["worker"]] = found["answer"]


_failures = _Failures()


def listen(p) -> None:
    """A request begins: what workers answer from now on is about it."""
    if script_titled(p, TITLE):
        _failures.answers.clear()
        logging.getLogger("distributed").addHandler(_failures)  # once, however often


def collect(p, batch: int | None) -> None:
    """The batch of this number is made here: after the last one, waits for the workers and takes in what they tell.

    `batch` is None where nothing is made here, but all by workers.
    """
    if batch is not None and batch != p.n_iter - 1:
        return
    for job in _jobs(p):
        job.thread.join()
        if isinstance(job.worker.response, dict) and job.worker.response.get("images"):
            _take_in(p, job.worker.label, job.worker.response)
        else:
            pictures = job.batch_size * p.n_iter
            note(
                p, f"the worker '{job.worker.label}' made none of its {pictures} pictures: {_reason(job.worker.label)}"
            )


def _jobs(p) -> Sequence[Any]:
    """What of this request other machines make."""
    script = script_titled(p, TITLE)
    world = script and script.world
    if world is None or world.p is not p:  # it keeps an earlier request's jobs while it is switched off
        return ()
    return [job for job in world.jobs if job.thread is not None and job.batch_size > 0 and not job.worker.master]


def _take_in(p, worker: str, answer: dict) -> None:
    info = json.loads(answer["info"])
    told = info["extra_generation_params"]
    shares = json.loads(told.get(SHARES, "[]"))
    state, drawn = state_of(p), {share["panel"] for share in shares}
    for number, share in enumerate(shares):
        state.panels = state.panels or Panels()
        panel = Image.open(io.BytesIO(base64.b64decode(answer["images"][share["panel"]])))
        state.panels.elsewhere.append(Drawn(panel, share, info["all_seeds"][number], info["all_prompts"][number]))
    answer["images"] = [image for place, image in enumerate(answer["images"]) if place not in drawn]
    _tell(p, worker, told)


def _tell(p, worker: str, told: dict[str, Any]) -> None:
    params = p.extra_generation_params
    notes = told.get(NOTE)
    if notes and notes != params.get(NOTE):
        note(p, f"the worker '{worker}' says: {untold(notes)}")
    elif not notes and INFOTEXT not in told:
        note(
            p,
            f"the worker '{worker}' has not composed its pictures. Install LoRAtorio there too, and have Distributed "
            "look for its workers anew.",
        )
    elif INFOTEXT in params and told.get(INFOTEXT, params[INFOTEXT]) != params[INFOTEXT]:
        note(
            p,
            f"the worker '{worker}' has composed with other settings ({told[INFOTEXT]}). Axes of a plot do not reach "
            "workers; use the same version of LoRAtorio everywhere.",
        )
    if VERIFY in told:
        params[VERIFY] = "; ".join(filter(None, [params.get(VERIFY), f"worker '{worker}': {told[VERIFY]}"]))
        p.comment(f"{VERIFY}: worker '{worker}': {told[VERIFY]}")


def _reason(worker: str) -> str:
    answer = _failures.answers.get(worker)
    if answer is None:
        return "it gave no answer. Look at its console."
    try:
        errors = json.loads(answer)
    except ValueError:
        return answer
    return untold(str(errors.get("errors") or errors.get("detail") or answer))
