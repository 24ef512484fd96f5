"""The contact sheet's parts."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from PIL import Image

from lab import demo, world


def test_captions_of_the_demo_ask_for_its_skills():
    assert [len(skills) for skills in demo.SKILLS] == [2, 2, 4, 4]
    for skills in demo.SKILLS:
        shown = world.content(skills, demo.SEED)
        assert all(world.SKILLS[name].trigger in shown.caption for name in skills)


def test_winner_of_each_patch_has_its_colour():
    weights = torch.zeros(2, 2, 2)
    weights[0, :, 0] = weights[1, :, 1] = 1  # the first adapter on the left, the second on the right
    tinted = np.asarray(demo.winners(Image.new("RGB", (8, 8), (100, 100, 100)), weights)).astype(int)
    for column, colour in ((0, demo.COLOURS[0]), (7, demo.COLOURS[1])):
        assert np.abs(tinted[:, column] - (0.45 * 100 + 0.55 * np.array(colour))).max() <= 1


def test_summary_tells_what_was_found_and_what_it_cost():
    totals = {way: {"found": 9, "asked": 12, "complete": 1, "seconds": 2.25} for way in demo.WAYS}
    table = demo.summary(totals)
    assert (
        "| Merge | 9 of 12 | 1 of 4 | 2.2 | 2 / 2 |" in table
        and "| LoRAtorio | 9 of 12 | 1 of 4 | 2.2 | 6 / 10 |" in table
    )


def test_sheet_has_room_for_all_rows():
    sheet = demo.Sheet()
    tile = Image.new("RGB", (4, 4), (255, 0, 0))
    sheet.row("three", [(tile, ["a"])] * 3)
    sheet.row("one", [(tile, ["a", ("b", (0, 255, 0))])])
    page = np.asarray(sheet.image())
    assert page.shape[1] == demo.GAP + 3 * (demo.TILE + demo.GAP)
    assert (page == (255, 0, 0)).all(-1).sum() == 4 * demo.TILE**2 and (page == (0, 255, 0)).all(-1).any()
