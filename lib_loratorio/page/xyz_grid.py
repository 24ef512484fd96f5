"""Axes for the host's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lib_loratorio.beside import Beside
from lib_loratorio.declaration import Choice, Flag, Whole
from lib_loratorio.settings import SETTINGS, Settings

PREFIX = "[LoRAtorio] "

_axes: Beside[dict[str, Any]] = Beside()
"""The values that a plot has set on a request."""


def with_axes(p: Any, args: Sequence[Any]) -> Sequence[Any]:
    """A script's arguments with the values that the axes of an X/Y/Z plot have set on the request `p`."""
    axes = _axes.get(p)
    return [{**Settings.named(args), **axes}] if axes else args


def _apply(*names: str, read: Callable[[Any], Iterable[Any]] = lambda x: (x,)) -> Callable:
    def apply(p, x, xs) -> None:
        _axes.set(p, {**(_axes.get(p) or {}), **dict(zip(names, read(x), strict=True))})

    return apply


def _range(text: str) -> tuple[str, str]:
    """`0.2-0.8` to its two ends; what is none is told by the settings' own message."""
    start, separator, end = text.partition("-")
    return start.strip(), end.strip() if separator else "1"


def axes(option: type) -> list:
    """The axes as the host's `AxisOption`s."""
    names = [name for name in SETTINGS if SETTINGS[name].axis]
    return [_axis(option, name) for name in sorted(names, key=lambda name: SETTINGS[name].axis.number)]


def _axis(option: type, name: str) -> Any:
    declared = SETTINGS[name]
    label, until = PREFIX + (declared.axis.label or declared.label), declared.axis.until
    if until:
        return option(label, str, _apply(name, until, read=_range))
    if isinstance(declared.kind, Flag):
        return option(label, str, _apply(name), choices=lambda: ["False", "True"])
    if isinstance(declared.kind, Choice):
        return option(label, str, _apply(name), choices=lambda: list(declared.kind.choices))
    return option(label, int if isinstance(declared.kind, Whole) else float, _apply(name))


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
