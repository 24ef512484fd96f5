"""Axes for the host's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lib_loratorio.settings import METHODS, POOL_MODES, TEXT_ENCODER_MODES, Settings

PREFIX = "[LoRAtorio] "


def with_axes(p: Any, args: Sequence[Any]) -> Sequence[Any]:
    """A script's arguments with the values that the axes of an X/Y/Z plot have set on the request `p`."""
    axes = getattr(p, "loratorio_axes", None)
    return [{**Settings.named(args), **axes}] if axes else args


def _apply(*names: str, read: Callable[[Any], Iterable[Any]] = lambda x: (x,)) -> Callable:
    def apply(p, x, xs) -> None:
        # A new dict: the plot's requests are shallow copies of one.
        p.loratorio_axes = {**getattr(p, "loratorio_axes", {}), **dict(zip(names, read(x), strict=True))}

    return apply


def _range(text: str) -> tuple[str, str]:
    """`0.2-0.8` to its two ends; what is none is told by the settings' own message."""
    start, separator, end = text.partition("-")
    return start.strip(), end.strip() if separator else "1"


def axes(option: type) -> list:
    """The axes as the host's `AxisOption`s."""
    return [
        option(PREFIX + "off/on", str, _apply("enabled"), choices=lambda: ["False", "True"]),
        option(PREFIX + "Method", str, _apply("method"), choices=lambda: list(METHODS)),
        option(PREFIX + "Temperature", float, _apply("temperature")),
        option(PREFIX + "Patch size", int, _apply("patch_size")),
        option(PREFIX + "Base weight (lambda)", float, _apply("lam")),
        option(PREFIX + "LoRAs per place (top k)", int, _apply("top_k")),
        option(PREFIX + "Step range (0.2-0.8)", str, _apply("start", "end", read=_range)),
        option(PREFIX + "Text encoder", str, _apply("text_encoder"), choices=lambda: list(TEXT_ENCODER_MODES)),
        option(PREFIX + "Pool mode", str, _apply("pool_mode"), choices=lambda: list(POOL_MODES)),
        option(PREFIX + "Scout until", float, _apply("scout")),
        option(PREFIX + "Scout's least share", float, _apply("scout_share")),
        option(PREFIX + "Negative prompt every", int, _apply("guidance_every")),
    ]


def add_axes(scripts_data: Sequence[Any]) -> None:
    """Adds the axes to the X/Y/Z plot among the host's loaded scripts, once."""
    for data in scripts_data:
        plot = data.module
        if (
            hasattr(plot, "axis_options")
            and hasattr(plot, "AxisOption")
            and not any(option.label.startswith(PREFIX) for option in plot.axis_options)
        ):
            plot.axis_options.extend(axes(plot.AxisOption))
