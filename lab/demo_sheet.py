"""The demo's contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from lab import world
from lab.contact_sheet import Sheet, Tile, winners
from lab.demo_pictures import Picture
from lab.demo_plan import Section, Shot
from lab.demo_words import legend, told

BESIDE = "pool"  # the section that stands beside the one before


def sheet(sections: Sequence[Section], pictures: Mapping[Shot, Picture]) -> Sheet:
    page = Sheet()
    for section in sections:
        place = page.beside if section.name == BESIDE else page.row
        place(section.title, _tiles(section, pictures))
    return page


def _tiles(section: Section, pictures: Mapping[Shot, Picture]) -> list[Tile]:
    tiles: list[Tile] = []
    if section.asked:
        tiles.append((Image.fromarray(world.render(*section.asked)), ["what the caption asks for"]))
    for shot in section.shots:
        picture = pictures[shot]
        if section.name == "alone":
            lines = [f"{shot.title}  ({world.SKILLS[shot.title].trigger})"]
        else:
            lines = [shot.title, *told(shot, picture)]
        tiles.append((Image.fromarray(picture.image), lines))
    if section.mapped:
        shot = next(one for one in section.shots if one.title == section.mapped)
        tiles.append((map_of(pictures[shot]), [f"{shot.title}: who wins", *legend(pictures[shot])]))
    return tiles


def map_of(picture: Picture) -> Image.Image:
    """Who wins where in a picture, over the whole sampling."""
    return winners(Image.fromarray(picture.image), torch.from_numpy(picture.weights))
