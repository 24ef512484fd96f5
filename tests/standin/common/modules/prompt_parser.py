"""Prompts to conditions: `a AND b:0.5`, and one kind of editing, `[before:after:step]`."""

import re
from collections import namedtuple
from types import SimpleNamespace

import torch

ScheduledPromptConditioning = namedtuple("ScheduledPromptConditioning", ["end_at_step", "cond"])

_EDIT = re.compile(r"\[([^:\]]*):([^:\]]*):(\d+)\]")
re_AND = re.compile(r"\bAND\b")  # noqa: N816  (the host's own name)
re_weight = re.compile(r"^(.*?)(?::\s*([-+.\d]+))?\s*$", re.S)


class SdConditioning(list):
    """`distilled_cfg_scale` is what Forge has besides."""

    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, distilled_cfg_scale=None):
        super().__init__(prompts)
        self.is_negative_prompt, self.width, self.height, self.distilled_cfg_scale = (
            is_negative_prompt,
            width,
            height,
            distilled_cfg_scale,
        )

    def alike(self, texts):
        return SdConditioning(texts, self.is_negative_prompt, self.width, self.height, self.distilled_cfg_scale)


class DictWithShape(dict):
    @property
    def shape(self):
        return self["crossattn"].shape

    def advanced_indexing(self, item):
        """What the Forge family has besides."""
        return DictWithShape({key: value[item] for key, value in self.items()})


def _timeline(prompt, steps):
    edits = sorted({int(step) for _, _, step in _EDIT.findall(prompt)})
    for end in [*edits, steps]:
        yield end, _EDIT.sub(lambda edit, end=end: edit[1] if end <= int(edit[3]) else edit[2], prompt)


def get_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    schedules = []
    for prompt in prompts:
        ends, texts = zip(*_timeline(prompt, hires_steps or steps))
        encoded = model.get_learned_conditioning(prompts.alike(texts))
        schedules.append([ScheduledPromptConditioning(end, _row(encoded, place)) for place, end in enumerate(ends)])
    return schedules


def get_multicond_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    batch = []
    for prompt in prompts:
        subprompts = []
        for part in re.split(r"\bAND\b", prompt):
            text, weight = re_weight.match(part.strip()).groups() if not _EDIT.search(part) else (part.strip(), None)
            (schedules,) = get_learned_conditioning(model, prompts.alike([text]), steps, hires_steps)
            subprompts.append(SimpleNamespace(schedules=schedules, weight=1.0 if weight is None else float(weight)))
        batch.append(subprompts)
    return SimpleNamespace(shape=(len(prompts),), batch=batch)


def reconstruct_cond_batch(c, current_step):
    return _stacked([_now(schedules, current_step) for schedules in c])


def reconstruct_multicond_batch(c, current_step):
    places, conditions = [], []
    for subprompts in c.batch:
        places.append([(len(conditions) + number, subprompt.weight) for number, subprompt in enumerate(subprompts)])
        conditions += [_now(subprompt.schedules, current_step) for subprompt in subprompts]
    return places, _stacked(conditions)


def _now(schedules, step):
    return next((entry.cond for entry in schedules if step <= entry.end_at_step), schedules[0].cond)


def _row(encoded, place):
    return {key: value[place] for key, value in encoded.items()} if isinstance(encoded, dict) else encoded[place]


def _stacked(conditions):
    if isinstance(conditions[0], dict):
        return DictWithShape({key: _stacked([condition[key] for condition in conditions]) for key in conditions[0]})
    length = max(condition.shape[0] for condition in conditions)
    if conditions[0].dim() == 2:
        conditions = [
            torch.cat([condition, condition[-1:].expand(length - len(condition), -1)]) for condition in conditions
        ]
    return torch.stack(conditions)
