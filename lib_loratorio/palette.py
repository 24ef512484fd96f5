"""The LoRAs' colours, in weight maps and in masks: the first is that of the first LoRA that competes, and so on."""

from __future__ import annotations

COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 150, 150),
)
"""Okabe and Ito's palette, which colour-blind people can tell apart too."""


def hexadecimal(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
