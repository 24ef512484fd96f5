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


def ramp_advice(settings: Settings, adapters: Sequence[Adapter]) -> str:
    """What is told of strengths that change where LoRAs are merged, at one strength each; empty where nothing is."""
    if settings.traits.apart:
        merged, where = ((0.0, settings.start), (settings.end, 1.0)), "outside of Start and End"
    else:
        merged, where = ((0.0, 1.0),), f"with the method {settings.method}"
    changing = [adapter.name for adapter in adapters if not all(adapter.tag.is_whole(*part) for part in merged)]
    if not changing:
        return ""
    names = ", ".join(dict.fromkeys(changing))
    return (
        f"ltstart, ltend and ltw in the tag of {names} have no effect {where}: there LoRAs are merged, at the "
        "strengths of their tags."
    )


def _spaced(text: str) -> str:
    """Words that only capitals divide, as in `AgeSlider`, apart."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
