"""The LoRAs and prompts of the contract's tests, and how a request is told of them."""

A, B, TEXT = ("a", 0.8, 0.8), ("b", 0.6, 0.6), ("text", 0.7, 0.9)
"""`(name, text encoder's strength, UNet's)`; every host has LoRAs of these names, made of kinds that it knows."""

TAGS = "<lora:a:0.8> <lora:b:0.6>"
TEXT_TAGS = "<lora:a:0.8> <lora:text:0.7:0.9> <lora:b:0.6>"
GLOBAL_TAGS = "<lora:text:0.7:0.9:lt=global> <lora:a:0.8> <lora:b:0.6>"
BOTH_TAGS = {"unet": TAGS, "text": TEXT_TAGS}
"""Without and with a LoRA that changes the text encoder."""

ON = {"enabled": True}
LONG = "a very long prompt about many cats"
NOTE, VERIFY, POOL, SHARES = "LoRAtorio note", "LoRAtorio verify", "LoRAtorio pool", "LoRAtorio shares"


def of_tags(tags):
    return {TAGS: [A, B], TEXT_TAGS: [A, TEXT, B]}[tags]


def one(text):
    """The prompts of one picture that is made of one text."""
    return [[(text, 1.0)]]


def verified(p):
    """The largest relative error that verification has found."""
    return float(p.extra_generation_params[VERIFY].split()[3])
