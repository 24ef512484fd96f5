"""Adapters for tests of what is planned with them, without any host's."""

from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.tag import LOCAL


def adapter(tag=LOCAL, pooled=False, changes_text=False, name="lora"):
    return Adapter(name, f"{name}.safetensors", 1.0, 1.0, changes_text, True, None, tag=tag, pooled=pooled)
