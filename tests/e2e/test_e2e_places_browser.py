"""The accordion's group *Places* on a running WebUI: painted, taken over from a weight map, generated, pasted back."""

import numpy as np
import pytest
from webui_server import VISIBLE, lora

from lib_loratorio.loras.mask_image import read_image
from lib_loratorio.palette import COLOURS
from lib_loratorio.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
SMALL = {"steps": 3, "width": 64, "height": 64, "seed": 1}


def opened(page):
    page.request(PAIR, **SMALL)
    page.tick.check()
    page.open()
    page.expect(page.places("swatch")).to_have_text(["e2e_lora", "e2e_locon", "nobody"])


def painted(page):
    """The mask's pixels `[h,w,4]`."""
    return np.asarray(read_image(Settings(mask=page.mask.input_value()).mask))


def pixels(page, source):
    return np.asarray(page.image(source).convert("RGB")).astype(int)


def test_painting_generating_and_pasting_back(page):
    opened(page)
    page.set("lam", 0)
    page.set("refresh_every", 1)
    page.expect(page.live).to_contain_text(": 5 model evaluations a step (ordinary: 2).")
    page.control("maps").check()
    everywhere, _ = page.generate()
    everywhere = pixels(page, everywhere)
    page.change_mask(page.places("fill").click)
    page.places("swatch").nth(1).click()
    page.paint(0.75, 0.05, 0.75, 0.95)
    mask = painted(page)
    height, width = mask.shape[:2]
    assert tuple(mask[height // 2, width // 4]) == (*COLOURS[0], 255)
    assert tuple(mask[height // 2, 3 * width // 4]) == (*COLOURS[1], 255)
    page.expect(page.live).to_contain_text(": 6 model evaluations a step (ordinary: 2).")
    first, panel = page.generate()
    page.expect(page.infotext).to_contain_text("mask=sha256-")
    assert abs(pixels(page, first) - everywhere).max() >= VISIBLE
    outlined = (pixels(page, panel) == COLOURS[1]).all(-1)
    assert outlined.sum() > 100, "the panel outlines the stroke, besides its legend"
    infotext, first = page.image(first).info["parameters"], pixels(page, first)

    page.places("clear").click()
    page.expect(page.mask).to_have_value("")
    page.set("lam", 0.5)
    page.fill("#TAB_prompt textarea", infotext)
    page.find("#TAB_tools #paste").click()
    page.expect(page.find("#TAB_prompt textarea")).to_have_value(PAIR)
    page.expect(page.mask).not_to_have_value("")
    page.check(lam=0)
    page.expect(page.places("message")).to_have_text("")
    assert (painted(page) == mask).all()
    page.expect(page.live).to_contain_text(": 6 model evaluations a step (ordinary: 2).")
    again, *_ = page.generate()
    assert abs(pixels(page, again) - first).max() <= 1


def test_the_last_weight_map_is_taken_over_and_corrected(page):
    opened(page)
    page.control("maps").check()
    page.generate()
    page.change_mask(page.places("take").click)
    mask = painted(page)
    assert mask.shape[:2] == (8, 8) and {tuple(colour) for colour in mask.reshape(-1, 4)[:, :3]} <= {*COLOURS[:2]}
    page.places("swatch").nth(2).click()
    page.paint(0.5, 0.05, 0.5, 0.95)
    corrected = painted(page)
    assert (corrected[:, corrected.shape[1] // 2, :3] == 0).mean() > 0.9
    left = corrected[:, : corrected.shape[1] * 3 // 8, :3].reshape(-1, 3)
    assert {tuple(colour) for colour in left} <= {*COLOURS[:2]}
    picture, _ = page.generate()
    page.expect(page.infotext).to_contain_text("mask=sha256-")
    assert page.image(picture).size == (64, 64)
