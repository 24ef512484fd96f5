"""The contact sheet's parts."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from PIL import Image

from lab import contact_sheet
from lab.contact_sheet import BETWEEN, GAP, OF_LORAS, TILE, Sheet, winners
from lab.world import NAMES


def test_winner_of_each_patch_has_its_colour():
    weights = torch.zeros(2, 2, 2)
    weights[0, :, 0] = weights[1, :, 1] = 1  # the first adapter on the left, the second on the right
    tinted = np.asarray(winners(Image.new("RGB", (8, 8), (100, 100, 100)), weights)).astype(int)
    for column, colour in ((0, OF_LORAS[0]), (7, OF_LORAS[1])):
        assert np.abs(tinted[:, column] - (0.45 * 100 + 0.55 * np.array(colour))).max() <= 1


def test_each_of_the_nine_has_a_colour_of_its_own():
    assert len(set(OF_LORAS)) == len(NAMES)


def test_sheet_has_room_for_all_rows():
    sheet = Sheet()
    tile = Image.new("RGB", (4, 4), (255, 0, 0))
    sheet.row("three", [(tile, ["a"])] * 3)
    sheet.row("one", [(tile, ["a", ("b", (0, 255, 0))])])
    page = np.asarray(sheet.image())
    assert page.shape[1] == GAP + 3 * (TILE + GAP)
    assert (page == (255, 0, 0)).all(-1).sum() == 4 * TILE**2 and (page == (0, 255, 0)).all(-1).any()


def test_groups_stand_side_by_side_in_a_row():
    sheet = Sheet()
    sheet.row("one", [(Image.new("RGB", (4, 4), (255, 0, 0)), [])])
    sheet.beside("two", [(Image.new("RGB", (4, 4), (0, 0, 255)), ["a"])] * 2)
    page = np.asarray(sheet.image())
    assert page.shape[1] == GAP + TILE + BETWEEN + 2 * (TILE + GAP)
    assert (page == (255, 0, 0)).all(-1).sum() == TILE**2 and (page == (0, 0, 255)).all(-1).sum() == 2 * TILE**2
    assert (page == (255, 0, 0)).all(-1).any(1).tolist() == (page == (0, 0, 255)).all(-1).any(1).tolist()


def test_what_does_not_fit_is_found():
    sheet, tile = Sheet(), Image.new("RGB", (4, 4))
    sheet.row("W" * 100, [(tile, ["fits", "i" * 500, ("j" * 500, (0, 0, 0))])])
    assert sheet.too_long() == ["W" * 100, "i" * 500, "j" * 500]
    assert contact_sheet.LINE * 3 < sheet.image().height - TILE
