"""Requests with their faults: how each is carried out, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import files
from grammar import STYLE
from host import VERIFY, Answer, Host

CLOSE = 1e-4
"""Largest error of verification."""

Request = dict[str, Any]


@dataclass
class Result:
    """What came of a request.

    outcome: `composed`, `ordinary`, `refused` with the message that the fault calls for, `stopped` with the fault's own
    error, or `host` where the WebUI fails with LoRAtorio off, too. fired: how often an armed fault happened.
    """

    answer: Answer
    fired: int = 0
    outcome: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float | None:
        return max((error for error, _ in self.answer.verified), default=None)


@dataclass
class Stage:
    """Where requests are carried out: the WebUI, its LoRA files, and the checkpoint that they are for."""

    host: Host
    folder: Path
    checkpoint: dict[str, Any]


def carry_out(stage: Stage, request: Request) -> Result:
    """A request with its fault, and what is wrong with what came of it."""
    fault = request["fault"] or {"kind": "none"}
    result = HOW.get(fault["kind"], _armed if "arm" in fault else _plainly)(stage, request)
    _judge(stage, request, fault, result)
    return result


# How


def _plainly(stage: Stage, request: Request) -> Result:
    return Result(stage.host.generate(request))


ARMED = {"out of memory": "oom", "little memory": "oom", "exception in a callback": "exception"}


def _armed(stage: Stage, request: Request, ordinary: bool = False) -> Result:
    fault = request["fault"]
    with stage.host.armed(ARMED.get(fault["kind"], fault["kind"]), **fault["arm"]) as told:
        answer = stage.host.generate(request, ordinary)
    return Result(answer, told["fired"])


def _reload(stage: Stage, request: Request) -> Result:
    stage.host.reload()
    stage.host.add_style(STYLE)
    return _plainly(stage, request)


def _with_options(stage: Stage, request: Request) -> Result:
    options = request["fault"]["options"]
    now = stage.host.options()
    stage.host.set_options(options)
    try:
        return _plainly(stage, request)
    finally:
        stage.host.set_options({name: now[name] for name in options})


def _with_checkpoint(stage: Stage, request: Request) -> Result:
    fault = request["fault"]
    if fault["how"] == "options":
        stage.host.set_options({"sd_model_checkpoint": fault["title"]})
    try:
        return _plainly(stage, request)
    finally:
        stage.host.set_options({"sd_model_checkpoint": stage.checkpoint["title"]})


def _with_replaced_file(stage: Stage, request: Request) -> Result:
    """Before, after, and with the former contents again: the composed picture sees what the ordinary one sees."""
    fault = request["fault"]

    def both() -> tuple[Answer, Answer]:
        return stage.host.generate(request), stage.host.generate(request, ordinary=True)

    def replace(kind: str, seed: int) -> None:
        files.replace(stage.checkpoint["filename"], stage.folder, fault["file"], kind, seed)

    seed = request["fields"]["seed"]
    replace("lora", 100 + seed)
    composed, ordinary = both()
    replace(fault["kind_of_lora"], 5000 + seed)
    composed_after, ordinary_after = both()
    replace("lora", 100 + seed)
    result = Result(stage.host.generate(request))
    answers = (composed, ordinary, composed_after, ordinary_after, result.answer)
    if all(answer.status == 200 for answer in answers):
        seen = not ordinary.same_pictures(ordinary_after)
        if seen and composed.same_pictures(composed_after):
            result.problems.append("a file replaced on disk changes the ordinary picture, but not the composed one")
        if seen and not composed.same_pictures(result.answer):
            result.problems.append("a file with its former contents again does not make its former picture")
    else:
        result.problems += [f"a replaced file: {answer.error}" for answer in answers[:-1] if answer.error]
    return result


def _with_two_clients(stage: Stage, request: Request) -> Result:
    """Each client's picture is the one that it gets alone."""
    other = request["fault"]["other"]
    alone = [stage.host.generate(one) for one in (request, other)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(stage.host.generate, (request, other)))
    result = Result(together[0])
    for which, (one, another) in enumerate(zip(alone, together)):
        if (one.status, one.error) != (another.status, another.error):
            result.problems.append(f"client {which}: alone {one.error or 'a picture'}, together {another.error}")
        elif not one.same_pictures(another):
            result.problems.append(f"client {which}: another picture than alone")
    return result


HOW: dict[str, Callable[[Stage, Request], Result]] = {
    "Reload UI": _reload,
    "options": _with_options,
    "checkpoint switch": _with_checkpoint,
    "replaced file": _with_replaced_file,
    "two clients": _with_two_clients,
}

# What has to come of it


def _judge(stage: Stage, request: Request, fault: dict[str, Any], result: Result) -> None:
    answer, settings = result.answer, request["settings"]
    if "report this" in answer.message:
        result.problems.append(f"it takes a user's slip for a bug of its own: {answer.message}")
    words = _words(fault)
    if words:
        missing = [word for word in words if word not in answer.message]
        if missing and answer.error and settings is not None and _ordinary(stage, request).error == answer.error:
            result.outcome = "host"
            return
        if missing:
            result.problems.append(f"the message does not tell {missing}: {answer.message or 'there is none'}")
        tolerated = fault.get("goes_on") or fault.get("where") == "pool"
        if not answer.error and not tolerated:
            result.problems.append(f"{fault['kind']} made a picture, though generations are stopped on errors")
        result.outcome = "refused" if answer.error else _outcome(result)
        return
    if answer.error:
        result.outcome = _failure(stage, request, fault, result)
        return
    result.outcome = _outcome(result)
    if settings is not None:
        _judge_picture(stage, request, fault, result)


def _words(fault: dict[str, Any]) -> list[str]:
    """What the message has to tell."""
    if "name" in fault:
        return [fault["name"]]
    return fault.get("words", [])


OWN_ERRORS = {
    "exception": "soak: another script's exception",
    "out of memory": "memory",
    "little memory": "memory",
}
"""What an armed fault that has happened may stop a generation with."""


def _failure(stage: Stage, request: Request, fault: dict[str, Any], result: Result) -> str:
    """What a generation was stopped by, which it should not have been, or only by its fault."""
    expected = OWN_ERRORS.get(fault["kind"])
    if result.fired and expected and expected in result.answer.error.lower():
        return "stopped"
    if request["settings"] is not None:
        again = _armed(stage, request, True).answer if "arm" in fault else _ordinary(stage, request)
        # A host that fails amid a merge keeps a part of it until other LoRAs are asked for.
        for prompt in ("a cat", "a cat <lora:soak_lora:1>"):
            stage.host.ordinary(prompt)
        if again.error:
            return "host"
        result.problems.append(f"it stops with {result.answer.error!r}; the ordinary picture does not")
    else:
        return "host"
    return "failed"


def _ordinary(stage: Stage, request: Request) -> Answer:
    """The same with LoRAtorio off, in the same circumstances."""
    plain = {**request, "settings": None}
    return HOW.get((request["fault"] or {}).get("kind"), _plainly)(stage, plain).answer


def _outcome(result: Result) -> str:
    return "composed" if any(calls for _, calls in result.answer.verified) else "ordinary"


def _judge_picture(stage: Stage, request: Request, fault: dict[str, Any], result: Result) -> None:
    """A picture that LoRAtorio was asked for."""
    answer, settings = result.answer, request["settings"]
    if result.worst is not None and not result.worst < CLOSE:
        result.problems.append(f"verification finds {result.worst:.1e}")
    plot = "plot" in request
    stopped = result.fired and (plot or fault["kind"] in ("interrupt", "skip"))  # a plot goes on without what failed
    told = VERIFY in answer.params or answer.message or settings["method"] == "merge" or plot or stopped
    if not told:
        result.problems.append("it was neither composed nor told why not")
    if not answer.images and not stopped:
        result.problems.append("there is no picture")
    if any(image.std() < 0.5 for image in answer.images) and not stopped:
        ordinary = _ordinary(stage, request)
        if not any(image.std() < 0.5 for image in ordinary.images):
            result.problems.append("a picture is flat; the ordinary one is not")
