"""Masks: a setting's text, the colours in an image, and the places that they are."""

import base64
import io

import numpy as np
import pytest
import torch
from made_adapters import adapter
from PIL import Image

from lib_loratorio.engine.methods import BASE, Plan
from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.planner import Planner
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.mask_image import numbers_in, read_image
from lib_loratorio.loras.tag import LOCAL, LoraTag
from lib_loratorio.palette import COLOURS
from lib_loratorio.settings import Settings


def image(*columns, height=4):
    """One pixel a column."""
    return Image.fromarray(np.array([columns] * height, np.uint8))


def as_text(picture, **options):
    file = io.BytesIO()
    picture.save(file, **{"format": "PNG", **options})
    return base64.b64encode(file.getvalue()).decode()


A, B = COLOURS[:2]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


# The setting


def test_a_mask_is_named_by_its_hash_in_the_infotext():
    text = as_text(image(A, B))
    for given in (text, f"data:image/png;base64,{text}", f"{text[:9]}\n{text[9:]}"):
        settings = Settings(enabled=True, mask=given)
        assert settings.mask == text
        infotext = settings.to_infotext()
        assert "mask=sha256-" in infotext and text not in infotext and len(infotext) < 200
        assert Settings.from_infotext(infotext).to_infotext() == infotext
    assert "mask" not in Settings(enabled=True).to_infotext() and Settings(mask=None).mask == ""
    other = Settings(mask=as_text(image(B, A)))
    assert other.to_infotext() != settings.to_infotext()


@pytest.mark.parametrize("value", ["not base64!", "../../etc/passwd", 7])
def test_what_is_no_mask_is_refused(value):
    with pytest.raises(SettingsError, match=r"mask is .*; it must be an image file as base64"):
        Settings(mask=value)


def test_what_is_no_image_is_told():
    with pytest.raises(SettingsError, match="mask is no image that can be read"):
        read_image(base64.b64encode(b"nothing").decode())


# Colours


def test_colours_are_loras_and_black_white_and_transparent_are_nobodys():
    picture = image((*A, 255), (*B, 255), (*BLACK, 255), (*WHITE, 255), (*A, 0))
    assert numbers_in(picture, ["a", "b"])[0].tolist() == [0, 1, -1, -1, -1]


def test_compressed_colours_are_known():
    picture = Image.new("RGB", (64, 64), A)
    picture.paste(B, (32, 0, 64, 64))
    found = numbers_in(read_image(as_text(picture, format="JPEG", quality=60)), ["a", "b"])
    assert (found[:, :24] == 0).all() and (found[:, 40:] == 1).all()


def test_large_images_become_smaller():
    assert numbers_in(Image.new("RGB", (2000, 1000), A), ["a"]).shape == (256, 512)


@pytest.mark.parametrize(
    "columns, told",
    [
        (
            (A, (255, 0, 255)),
            "mask has the colour #ff00ff, which no LoRA has; #e69f00 is anna's, #56b4e9 is bob's; black",
        ),
        ((A, COLOURS[3]), "mask has the colour #f0e442 of LoRA number 4, which is not there; #e69f00 is anna's"),
        ((BLACK, WHITE), "mask has no LoRA's colour in it; #e69f00 is anna's"),
    ],
)
def test_colours_that_no_lora_has_are_told(columns, told):
    with pytest.raises(SettingsError) as error:
        numbers_in(image(*columns), ["anna", "bob"])
    assert told in str(error.value)


# Places


def painted(rows):
    return Painted(torch.tensor(rows))


def test_places_have_the_share_of_their_colour():
    mask = painted([[0, 0, 0, 1, -1, -1]] * 4)
    assert mask.painted == {0, 1}
    assert mask.mask(0, (2, 3)).tolist() == [[1, 0.5, 0]] * 2
    assert mask.mask(1, (2, 3)).tolist() == [[0, 0.5, 0]] * 2
    assert mask.mask(0, (1, 2), LoraTag.read({"ltbox": "0.5,0,1,1"}, "a").region.boxes[0]).tolist() == [[0, 0]]


def test_places_have_soft_edges_but_at_the_border():
    mask = painted([[0] * 10 + [1] * 10] * 10)
    soft = mask.mask(0, (10, 20), feather=0.4)[0]
    assert soft.tolist() == pytest.approx([1] * 8 + [0.8, 0.6, 0.4, 0.2] + [0] * 8)
    assert torch.allclose(soft + mask.mask(1, (10, 20), feather=0.4)[0], torch.ones(20, dtype=torch.float64))


def test_colours_are_those_of_the_loras_that_compete():
    adapters = [adapter(LoraTag(role="global")), adapter(), adapter(LoraTag.read({"ltat": "top"}, "a")), adapter()]
    planner = Planner(Settings(feather=0.0), adapters, painted=painted([[1, 1, -1, -1]] * 4))
    everywhere, region, both = (place.is_everywhere for place in planner.places[1:])
    assert (everywhere, region, both) == (True, False, True)
    assert planner.places[2].mask((4, 4), planner.ground).tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2


@pytest.mark.parametrize(
    "rows, plan", [([[0, 1]], Plan((BASE, 0, 1), (BASE, 0, 1))), ([[0, -1]], Plan((0, 1), (0, 1)))]
)
def test_the_base_is_there_where_all_have_colours(rows, plan):
    planner = Planner(Settings(method="composite"), [adapter(LOCAL), adapter(LOCAL)], painted=painted(rows))
    assert planner.step(0, 0).plan == plan


def test_a_mask_that_is_too_large_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr("lib_loratorio.loras.mask_image.MOST_PIXELS", 11)
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    with pytest.raises(SettingsError, match="4 x 3 pixels, which is too large; make it as large as the picture"):
        read_image(base64.b64encode(file.getvalue()).decode())
