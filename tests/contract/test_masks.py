"""Places painted in an image, on every host."""

import base64
import importlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from equations import assert_close
from internals import LoratorioError
from oracle import latents as by_equations
from PIL import Image
from samples import NOTE, ON, TAGS, A, B, one, verified

COLOURS = ((230, 159, 0), (86, 180, 233))


def mask(width=60, colours=COLOURS, file_format="PNG"):
    """The left half is the first LoRA's, the right half the second's."""
    picture = Image.new("RGB", (width, 50), colours[0])
    picture.paste(colours[1], (width // 2, 0, width, 50))
    file = io.BytesIO()
    picture.save(file, file_format)
    return base64.b64encode(file.getvalue()).decode()


def saved(basename):
    return [one for one in importlib.import_module("modules.images").saved if one["basename"] == basename]


@pytest.mark.parametrize("settings", [{}, {"method": "composite"}, {"lam": 0.0, "patch_size": 2}], ids=str)
@pytest.mark.parametrize("beginning", ["", "data:image/png;base64,"])
def test_loras_are_where_their_colours_are(host, settings, beginning):
    given = {**ON, **settings, "feather": 0.0, "verify": True, "mask": beginning + mask()}
    p, latents = host.generate(f"a cat {TAGS}", given)
    boxes = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings={**settings, "feather": 0.0}, boxes=boxes))
    assert verified(p) < 1e-9 and "mask=sha256-" in p.extra_generation_params["LoRAtorio"]
    assert len(p.extra_generation_params["LoRAtorio"]) < 200 and NOTE not in p.extra_generation_params
    (kept,) = saved("loratorio-mask")
    assert kept["image"].size == (60, 50) and (kept["extension"], kept["grid"]) == ("png", True)
    host.assert_clean(p)


def test_a_mask_that_parameters_name_is_found_again(host):
    p, latents = host.generate(f"a cat {TAGS}", {**ON, "mask": mask()})
    name = p.extra_generation_params["LoRAtorio"].partition("mask=")[2].split()[0]
    assert_close(host.generate(f"a cat {TAGS}", {**ON, "mask": name})[1], latents, 0)
    with pytest.raises(LoratorioError, match="mask is sha256-0123: a picture's parameters name its mask"):
        host.generate(f"a cat {TAGS}", {**ON, "mask": "sha256-0123"})


def test_a_mask_scales_and_is_saved_as_grids_are(host):
    host.shared.opts.grid_save = False
    fields = {"enable_hr": True, "steps": 1, "batch_size": 2, "n_iter": 2}
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True, "mask": mask(61), "maps": True}, **fields)
    assert verified(p) < 1e-9 and saved("loratorio-mask") == []
    host.assert_clean(p)


@pytest.mark.parametrize(
    "value, told",
    [
        ("aGFsbG8=", "mask is no image that can be read"),
        ("no base64!", "mask is 'nobase64!...'; it must be an image file as base64"),
        (
            mask(colours=((255, 0, 255), COLOURS[0])),
            "mask has the colour #ff00ff, which no LoRA has; #e69f00 is a's, #56b4e9",
        ),
        (mask(colours=(COLOURS[0], (0, 158, 115))), "mask has the colour #009e73 of LoRA number 3, which is not there"),
    ],
)
def test_what_is_no_mask_stops(host, value, told):
    with pytest.raises(LoratorioError) as error:
        host.generate(f"a cat {TAGS}", {**ON, "mask": value})
    assert told in str(error.value)


def test_where_a_mask_has_no_effect_is_told(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "mask": mask(), "method": "merge"})
    assert "the mask has no effect with the method merge" in p.extra_generation_params[NOTE]


def test_the_last_weight_map_is_a_mask(host):
    """In its own colours: with it, every LoRA is where it had won."""
    maps = importlib.import_module("lib_loratorio.hosts.webui.maps")
    host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    taken = importlib.import_module("lib_loratorio.page.places").as_mask(maps.last_map())["mask"]
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "mask": taken, "verify": True})
    assert verified(p) < 1e-9 and maps.last_map().size == (6, 5)


def test_weight_maps_outline_what_is_painted(host):
    """Of the part of the picture that is sampled: here its right half, which is the second LoRA's alone."""

    def right_half(p):
        p.init_images, p.paste_to = [SimpleNamespace(size=(200, 100))], (100, 0, 100, 100)

    def panel(before):
        p, _ = host.generate(f"a cat {TAGS}", {**ON, "mask": mask(), "maps": True}, before=before)
        return p.processed.images[-1]

    def outlined(panel, number, colour):
        left = 8 + number * (288 + 8)  # a tile is the picture of 48 x 40 pixels, six times
        pixels = np.asarray(panel.crop((left, 8, left + 288, 248)))
        return (pixels == COLOURS[colour]).all(-1)

    whole, half = panel([]), panel([right_half])
    assert outlined(whole, 1, 0)[100].nonzero()[0].tolist() == [0, 1, 142, 143]
    assert outlined(whole, 2, 1)[100].nonzero()[0].tolist() == [144, 145, 286, 287]
    assert not outlined(whole, 1, 1).any() and not outlined(whole, 2, 0).any()
    assert not outlined(half, 1, 0).any() and outlined(half, 2, 1)[100].nonzero()[0].tolist() == [0, 1, 286, 287]
