"""`<lora:name:te:unet:dyn>` tags: taken out of the prompts, and acted upon."""

import re

import networks

TAG = re.compile(r"<(\w+):([^>]+)>")


registered = {}


class ExtraNetwork:
    def __init__(self, name):
        self.name = name


def register_extra_network(network):
    registered[network.name] = network


class ExtraNetworkParams:
    def __init__(self, items):
        self.items = items
        self.positional = [item for item in items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in items if "=" in item)


def parse_prompts(prompts):
    """The prompts without tags, and the first one's tags by kind."""
    found = {}
    for kind, content in TAG.findall(prompts[0]):
        found.setdefault(kind, []).append(ExtraNetworkParams(content.split(":")))
    return [TAG.sub("", prompt).strip() for prompt in prompts], found


def activate(p, data):
    for kind in data.keys() - {"lora", "lyco"}:
        registered[kind].activate(p, data[kind])
    wanted = []
    for params in [*data.get("lora", []), *data.get("lyco", [])]:
        name, *numbers = params.positional
        te = float(params.named.get("te", numbers[0] if numbers else 1))
        unet = float(params.named.get("unet", numbers[1] if len(numbers) > 1 else te))
        dyn = params.named.get("dyn", numbers[2] if len(numbers) > 2 else None)
        wanted.append((name, te, unet, None if dyn is None else int(dyn)))
    networks.load_networks(*([list(column) for column in zip(*wanted)] or [[]]))
