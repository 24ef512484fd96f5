"""What has to hold after every request, after every 25th, and of a whole campaign."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from host import Answer, Host

EVERY = 25
"""Requests after which ordinary pictures are compared."""

GROWTH = 0.05
"""By how much the memory that is held may grow over the second half of a campaign."""

ORDINARY = (
    "a cat",
    "a cat <lora:soak_lora:0.8> <lora:soak_locon:0.6>",
    "a dog <lora:soak_te:0.7>",
    "a [cat:dog:0.5] AND a red bird <lora:soak_full:0.7> <lora:soak_lora:-0.4>",
)

SINGLE = (
    "lib_loratorio.settings.",
    "lib_loratorio.declaration.",
    "lib_loratorio.beside.",
    "lib_loratorio.hosts.webui.other_scripts.Other",
    "lib_loratorio.page.accordion.Control",
    "lib_loratorio.loras.region.Box",
    "lib_loratorio.loras.tag.LoraTag",
)
"""Objects of ours that modules hold for as long as they are loaded."""


@dataclass
class Baseline:
    """What the WebUI was at first: of each checkpoint the weights and hooks, and the ordinary pictures."""

    host: Host
    weights: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, dict[str, int]] = field(default_factory=dict)
    ordinary: list[Answer] = field(default_factory=list)

    def begin(self) -> None:
        self.ordinary = [self.host.ordinary(prompt) for prompt in ORDINARY]
        self.after(self.host.state(thorough=True))

    def after(self, state: dict[str, Any]) -> list[str]:
        """What is wrong with the WebUI after a request; a checkpoint that is met first is taken as it is."""
        checkpoint = state["checkpoint"]
        if checkpoint is None:
            return []
        found = [f"left behind: {trace}" for trace in state["left"]]
        found += [f"the host's loaded LoRAs: {change}" for change in state["networks"]]
        found += [f"the host's cached conditions are not its own: {where}" for where in state["wrong_conditions"]]
        if self.weights.setdefault(checkpoint, state["weights"]) != state["weights"]:
            found.append(f"the weights of {checkpoint} are {state['weights']}, were {self.weights[checkpoint]}")
            self.weights[checkpoint] = state["weights"]  # one failure tells of it
        before = self.hooks.setdefault(checkpoint, state["hooks"])
        if before != state["hooks"]:
            changed = {name for name in before.keys() | state["hooks"].keys()}
            changed = {name for name in changed if before.get(name) != state["hooks"].get(name)}
            found.append(f"the hooks of {checkpoint} have changed: {sorted(changed)}")
            self.hooks[checkpoint] = state["hooks"]
        found += [
            f"{count} objects {name} are held"
            for name, count in state.get("instances", {}).items()
            if count > 1 and not name.startswith(SINGLE)
        ]
        return found

    def changed_pictures(self) -> list[str]:
        """The ordinary pictures that are not what they were."""
        found = []
        for prompt, before in zip(ORDINARY, self.ordinary):
            now = self.host.ordinary(prompt)
            if not before.same_pictures(now) or before.infotexts != now.infotexts:
                found.append(f"the ordinary picture of {prompt!r} is not what it was {now.error}")
        return found


def memory(records: list[dict[str, Any]]) -> tuple[int, int, int, int]:
    """What is held at the start, in the middle and at the end of some requests in bytes; and by how much the second
    half's Reload UIs alone have added to it, each of which leaves its former page in the WebUI's memory.

    Each is the middle of several requests', as what is held depends on the request, too.
    """
    measured = [(at, record["rss"]) for at, record in enumerate(records) if record.get("rss")]
    if not measured:
        return 0, 0, 0, 0
    sizes = [size for _, size in measured]
    few, half = max(1, len(sizes) // 10), len(sizes) // 2
    start, middle, end = sizes[:few], sizes[max(0, half - few) : half + few + 1], sizes[-few:]
    pages = sum(record.get("page", 0) for record in records[len(records) // 2 :])
    return int(median(start)), int(median(middle)), int(median(end)), pages


def growth(records: list[dict[str, Any]]) -> float:
    """By which share memory has grown over the second half, beyond what the WebUI itself adds with each Reload UI."""
    _, middle, end, pages = memory(records)
    return (end - pages - middle) / middle if middle else 0.0
