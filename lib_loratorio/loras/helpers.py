"""LoRAs that do not draw anything of their own, but change how the model samples, or how strong something is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.loras.metadata import metadata_of
from lib_loratorio.settings import Settings

ACCELERATES = ("lcm", "lightning", "hyper", "turbo", "dmd", "dmd2", "pcm", "tcd", "sdxl-lightning", "hyper-sd")
SLIDER = "slider"

TOLD_BY = ("modelspec.title", "ss_output_name", "ss_training_comment")


def acts_everywhere(path: str) -> bool:
    """Whether a file is an acceleration LoRA (LCM, Lightning, Hyper, Turbo and the like) or a slider.

    Told by its name or its metadata. Such a LoRA is meant for the whole image, so it should not compete for patches.
    """
    metadata = metadata_of(path)
    texts = [Path(path).stem, *(str(metadata.get(key, "")) for key in TOLD_BY)]
    words = {word for text in texts for word in re.split(r"[^a-z0-9]+", _spaced(text).lower())}
    return not words.isdisjoint(ACCELERATES) or any(word.startswith(SLIDER) for word in words)


def role_advice(adapters: Sequence[Adapter]) -> str:
    """What is told of LoRAs that compete for patches though they are meant for the whole image; empty without."""
    competing = [adapter for adapter in adapters if adapter.competes]
    names = [adapter.name for adapter in competing if acts_everywhere(adapter.path)]
    if not names or len(competing) == 1:
        return ""
    return (
        f"{', '.join(names)}: acceleration LoRAs and sliders are meant for the whole picture, but compete for "
        "places here like any other; write :lt=global into the tag."
    )


def place_advice(settings: Settings, adapters: Sequence[Adapter]) -> str:
    """What is told of regions and shares where they have no effect; empty where they have."""
    names = ", ".join(dict.fromkeys(adapter.name for adapter in adapters if adapter.tag.has_place))
    if not (names or settings.mask) or (settings.traits.apart and (settings.start, settings.end) == (0, 1)):
        return ""
    where = "outside of Start and End" if settings.traits.apart else f"with the method {settings.method}"
    what = f"ltbox, ltat and ltshare in the tag of {names} have" if names else "the mask has"
    return f"{what} no effect {where}: there LoRAs are merged."


def _spaced(text: str) -> str:
    """Words that only capitals divide, as in `AgeSlider`, apart."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
