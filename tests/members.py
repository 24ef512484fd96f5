"""Adapters, as far as the course of a sampling is concerned."""

from typing import NamedTuple

from lib_loratorio.loras.tag import LOCAL, Part


class Member(NamedTuple):
    part: Part = LOCAL
    pooled: bool = False
