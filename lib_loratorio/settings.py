"""Every setting, declared once: all that checks, shows, writes, reads or explains settings comes from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote

from lib_loratorio.declaration import (
    Axis,
    Choice,
    Entries,
    Flag,
    Number,
    Picture,
    Setting,
    Slider,
    Traits,
    Whole,
    setting,
)
from lib_loratorio.errors import SettingsError

METHODS = {
    "loratorio": Traits(weighs=True, apart=True, several=True),
    "composite": Traits(apart=True, several=True),
    "switch": Traits(apart=True),
    "merge": Traits(),
}
"""What each method does; its class is in `lib_loratorio.engine.methods`."""

WEIGHS, APART, SEVERAL = Traits(weighs=True), Traits(apart=True), Traits(several=True)

GROUPS = ("Places", "Pool", "Weighing", "Text", "Steps", "Checks")
"""The accordion's groups, in the order they are shown."""

INFOTEXT = "LoRAtorio"
"""The infotext field that holds all settings."""

POOL = "LoRAtorio pool"
"""The infotext field that tells which adapters of a pool were evaluated from which step on."""


def within(fraction: float, start: float, end: float) -> bool:
    """Whether a fraction of the sampling is in `[start, end)`; an end of 1 includes the last step, and samplers may run
    past it.
    """
    return start <= fraction and (fraction < end or end == 1.0)


@dataclass(frozen=True)
class Settings:
    """All settings of one generation. Field order is the positional API form.

    `start` and `end` are fractions of the sampling: outside `[start, end)` the host's ordinary merged LoRAs apply.
    """

    enabled: bool = setting(
        False,
        Flag(),
        label="LoRAtorio",
        help="Keeps the LoRAs of the prompt apart: each is evaluated alone, and in each part of the picture the one "
        "that changes it most decides.",
        axis=Axis(1, "off/on"),
        option=False,
        in_infotext="never",
    )
    method: str = setting(
        "loratorio",
        Choice(METHODS),
        label="Method",
        help="loratorio: in each place the LoRA decides that changes it most; composite: the average of all; switch: "
        "one at a time, in turns; merge: as the WebUI does it",
        meaning="loratorio weighs LoRAs by place; composite averages them; switch takes one at a time, the next every "
        "5 steps; merge is the host's own",
        place=("Weighing", 1, 1),
        axis=Axis(2),
        in_infotext="always",
        in_presets=True,
        priced=True,
    )
    patch_size: int = setting(
        1,
        Whole(1, 256),
        label="Patch size",
        help="edge of the squares that are decided one by one; 1 is 8 pixels of the picture",
        meaning="edge of the places that are weighed, in latent pixels (8 picture pixels each)",
        unit="latent pixels",
        uses=WEIGHS,
        place=("Weighing", 2, 2),
        slider=Slider(1, 32, 1),
        axis=Axis(4),
        in_infotext="always",
        in_presets=True,
    )
    temperature: float = setting(
        0.1,
        Number(1e-6),
        label="Temperature",
        help="low: one LoRA decides each place; high: all have a say everywhere",
        meaning="low: one LoRA wins each place; high: all share it",
        uses=WEIGHS,
        place=("Weighing", 2, 1),
        slider=Slider(0.001, 1, 0.001),
        axis=Axis(3),
        in_infotext="always",
        in_presets=True,
    )
    lam: float = setting(
        0.5,
        Number(0, 1),
        label="Base weight (lambda)",
        help="what the picture is guided away from: 1, the model without LoRAs; 0, with them; 1 is the fastest",
        meaning="share of the bare model in the re-centred unconditional prediction; 1 needs N + 2 evaluations a step "
        "instead of 2N + 2",
        unit="share",
        uses=WEIGHS,
        place=("Weighing", 3, 1),
        slider=Slider(0, 1, 0.05),
        axis=Axis(5),
        in_infotext="always",
        in_presets=True,
        priced=True,
    )
    top_k: int = setting(
        0,
        Whole(0),
        label="LoRAs per place (top k)",
        help="at most so many LoRAs decide each place; 0: all",
        meaning="keeps only the k most divergent LoRAs in each place; 0: all",
        unit="LoRAs",
        uses=WEIGHS,
        place=("Weighing", 3, 2),
        slider=Slider(0, 16, 1),
        axis=Axis(6),
        in_presets=True,
    )
    start: float = setting(
        0.0,
        Number(0, 1),
        label="Start",
        help="share of the steps that are made before, with the LoRAs merged as usual; 0: none",
        meaning="fraction of the sampling; before it LoRAs are merged as usual",
        unit="fraction",
        uses=APART,
        place=("Steps", 1, 1),
        slider=Slider(0, 1, 0.01),
        axis=Axis(7, "Step range (0.2-0.8)", until="end"),
    )
    end: float = setting(
        1.0,
        Number(0, 1),
        label="End",
        help="share of the steps after which the LoRAs are merged as usual; 1: never",
        meaning="fraction of the sampling; after it LoRAs are merged as usual",
        unit="fraction",
        uses=APART,
        place=("Steps", 1, 2),
        slider=Slider(0, 1, 0.01),
    )
    text_encoder: str = setting(
        "own",
        Choice(("own", "merged")),
        label="Text encoder",
        help="own: each LoRA reads the prompt in its own way; merged: all read it as the WebUI does",
        meaning="own: a LoRA with text-encoder weights reads the prompt with them, alone; merged: all share the host's "
        "ordinary conditions",
        uses=APART,
        place=("Text", 1, 1),
        axis=Axis(8),
    )
    adapters_per_pass: int = setting(
        0,
        Whole(0),
        label="Evaluations per pass",
        help="how much is computed at once; fewer need less memory; 0: as many as fit",
        meaning="how many of {base, LoRAs} share one model call; 0: as many as fit into memory",
        unit="evaluations",
        uses=SEVERAL,
        place=("Checks", 1, 2),
        slider=Slider(0, 16, 1),
    )
    verify: bool = setting(
        False,
        Flag(),
        label="Verify (slow)",
        help="compares every evaluation with the WebUI's own merge, and tells the largest difference",
        meaning="recomputes every prediction with the host's own merge, one LoRA at a time, and reports the largest "
        "relative error",
        uses=APART,
        place=("Checks", 1, 1),
    )
    maps: bool = setting(
        False,
        Flag(),
        label="Show weight maps",
        help="beside each picture, where which LoRA decided",
        meaning="adds a panel behind each picture: where each LoRA weighed most, with its share, and who wins where; "
        "saved as grids are",
        uses=WEIGHS,
        place=("", 1, 1),
        option=False,
    )
    pool: str = setting(
        "",
        Entries(),
        label="LoRAs in the pool",
        help="besides the prompt's: name, name:0.8 or folder/*, with commas between them",
        meaning="LoRAs besides the prompt's: name, name:0.8 or folder/*, divided by commas",
        uses=APART,
        place=("Pool", 2, 1),
        option=False,
        priced=True,
    )
    pool_mode: str = setting(
        "exact",
        Choice(("exact", "scout", "named")),
        label="Pool",
        help="exact: all of its LoRAs in every step; scout: all at first, then those that matter; named: those whose "
        "trigger words are in the prompt",
        meaning="exact: all LoRAs of the pool in every step; scout: all at first, then those that matter; named: those "
        "whose trigger words stand in the prompt",
        uses=APART,
        place=("Pool", 1, 1),
        axis=Axis(9, "Pool mode"),
        priced=True,
    )
    scout: float = setting(
        0.2,
        Number(0, 1),
        label="Scout until",
        help="share of the steps in which the whole pool takes part at first",
        meaning="fraction of the sampling in which all of the pool take part",
        unit="fraction",
        uses=WEIGHS,
        place=("Pool", 3, 1),
        slider=Slider(0, 1, 0.05),
        axis=Axis(10),
    )
    scout_every: int = setting(
        0,
        Whole(0),
        label="Scout again every",
        help="steps until the whole pool takes part again; 0: never",
        meaning="steps until all of the pool take part again; 0: never",
        unit="steps",
        uses=WEIGHS,
        place=("Pool", 3, 2),
        slider=Slider(0, 50, 1),
    )
    scout_share: float = setting(
        0.7,
        Number(0, 1),
        label="Scout's least share",
        help="how much of the picture one of the pool must decide to stay, against the strongest LoRA; lower keeps "
        "more",
        meaning="share of the strongest LoRA's places that one of the pool needs to stay, each in the region of the "
        "picture where it has most",
        unit="share",
        uses=WEIGHS,
        place=("Pool", 4, 1),
        slider=Slider(0, 1, 0.01),
        axis=Axis(11),
    )
    trigger_words: bool = setting(
        False,
        Flag(),
        label="Trigger words",
        help="adds each LoRA's own, from its file, to the prompt that it alone reads",
        meaning="appends each LoRA's own (what its file names, or its activation text in the WebUI) to the prompt that "
        "it alone reads",
        uses=APART,
        place=("Text", 2, 1),
    )
    guidance_every: int = setting(
        1,
        Whole(1),
        label="Negative prompt every",
        help="so many steps apart the negative prompt is evaluated with each LoRA; 1: in every step, more is faster",
        meaning="evaluates the negative prompt with each LoRA in every so many steps; between these its last known "
        "difference from the base is used",
        unit="steps",
        uses=SEVERAL,
        place=("Steps", 2, 2),
        slider=Slider(1, 10, 1),
        axis=Axis(12),
        priced=True,
    )
    feather: float = setting(
        0.05,
        Number(0, 1),
        label="Soft edges of regions",
        help="how softly a LoRA's region ends, as a share of the picture's shorter edge; a tag gives its LoRA a "
        "region: ltat=left or ltbox=0,0,0.5,1",
        meaning="width of the soft edge of a LoRA's region (`ltat`, `ltbox`), as a share of the picture's shorter edge",
        unit="share",
        uses=APART,
        place=("Places", 1, 1),
        slider=Slider(0, 0.5, 0.01),
        axis=Axis(13),
    )

    mask: str = setting(
        "",
        Picture(),
        label="Mask",
        help="where each LoRA may be, in their colours",
        meaning="an image (base64) in which places are painted in the LoRAs' colours, those of the weight maps: where "
        "each may be; in a picture's parameters its hash",
        uses=APART,
        option=False,
    )

    refresh_every: int = setting(
        1,
        Whole(1),
        label="Each LoRA alone every",
        help="so many steps apart each LoRA is evaluated alone; 1: in every step, more is faster. In those between, "
        "all go on together from there",
        meaning="evaluates each LoRA alone in every so many steps; in those between, the prediction with all of them "
        "merged is moved by what composing had made of it",
        unit="steps",
        uses=SEVERAL,
        place=("Steps", 2, 1),
        slider=Slider(1, 10, 1),
        axis=Axis(14),
        in_presets=True,
        priced=True,
    )

    def __post_init__(self) -> None:
        for name, declared in SETTINGS.items():
            object.__setattr__(self, name, declared.kind(name, getattr(self, name)))
        if not self.start < self.end:
            raise SettingsError(f"start is {self.start:g}; it must be below end, which is {self.end:g}.")

    @property
    def traits(self) -> Traits:
        """What the method does."""
        return METHODS[self.method]

    @property
    def merges_between(self) -> bool:
        """Whether there are steps in which all LoRAs are evaluated at once, and not each alone."""
        return self.refresh_every > 1 and self.traits.several

    def active(self, fraction: float) -> bool:
        """Whether the step at this fraction of the sampling is composed; samplers may run past 1."""
        return within(fraction, self.start, self.end)

    @classmethod
    def from_api(cls, values: Mapping[str, Any]) -> Settings:
        """From one dict; missing keys take their defaults. Raises SettingsError."""
        unknown = [str(key) for key in values if key not in SETTINGS]
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(SETTINGS)}.")
        return cls(**values)

    @classmethod
    def from_args(cls, args: Sequence[Any]) -> Settings:
        """From a script's arguments: one dict first, or the values in field order. Raises SettingsError."""
        return cls.from_api(cls.named(args))

    @classmethod
    def named(cls, args: Sequence[Any]) -> dict[str, Any]:
        """A script's arguments as one dict, unchecked: what they say of settings by name."""
        if args and isinstance(args[0], Mapping):
            return dict(args[0])
        return dict(zip(SETTINGS, args))

    @staticmethod
    def is_off(args: Sequence[Any]) -> bool:
        """Whether a script's arguments leave the extension off, in which case the other values do not matter."""
        enabled = Settings.named(args).get("enabled", False)
        return enabled is False or str(enabled).strip().lower() == "false"

    def to_api(self) -> dict[str, Any]:
        return asdict(self)

    def to_infotext(self) -> str:
        """`name=value` pairs: what is central always, the rest where it differs from its default."""
        pairs = []
        for name, declared in SETTINGS.items():
            value = getattr(self, name)
            if declared.in_infotext == "always" or (declared.in_infotext == "changed" and value != declared.default):
                pairs.append(f"{name}={_text(declared.kind.written(value))}")
        return " ".join(pairs)

    @classmethod
    def from_infotext(cls, text: str) -> Settings:
        """The settings that `to_infotext` wrote, enabled. Raises SettingsError."""
        values: dict[str, Any] = {"enabled": True}
        for pair in text.split():
            name, separator, value = pair.partition("=")
            if not separator:
                raise SettingsError(f"cannot read {pair!r} in the infotext; expected name=value.")
            values[name] = unquote(value)
        return cls.from_api(values)


SETTINGS: Mapping[str, Setting] = MappingProxyType({field.name: field.metadata[Setting] for field in fields(Settings)})
"""The declarations by name, in the order of the fields."""


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else quote(str(value), safe="/:,*?")


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the dict that the API takes."""
    properties = {
        name: {
            "title": declared.label,
            "description": declared.described,
            **declared.kind.schema(),
            "default": declared.default,
        }
        for name, declared in SETTINGS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": INFOTEXT,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
