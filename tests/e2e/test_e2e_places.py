"""Regions, masks, strengths over the sampling and words of its own on a running WebUI."""

import base64
import io

import pytest
from PIL import Image
from webui_server import CLOSE, VISIBLE, check_composed, difference, lora

from lib_loratorio.palette import COLOURS

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

HALVES = f"a cat {lora('lora', '0.8:ltat=left')} {lora('locon', '0.8:ltat=right')}"
SWAPPED = f"a cat {lora('lora', '0.8:ltat=right')} {lora('locon', '0.8:ltat=left')}"


def mask():
    picture = Image.new("RGB", (64, 64), COLOURS[0])
    picture.paste(COLOURS[1], (32, 0, 64, 64))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("settings", [{}, {"method": "composite"}, {"method": "switch"}, {"lam": 1.0}], ids=str)
def test_regions(webui, settings):
    check_composed(webui, HALVES, settings, calls=4)
    assert difference(webui.generate(HALVES, settings), webui.generate(SWAPPED, settings)) >= VISIBLE


def test_regions_in_a_hires_pass(webui):
    check_composed(webui, HALVES, enable_hr=True, hr_scale=2, denoising_strength=0.7)


def test_a_mask_is_what_regions_are(webui):
    pair = f"a cat {lora('lora', 0.8)} {lora('locon', 0.8)}"
    masked = webui.generate(pair, {"mask": mask(), "feather": 0.0})
    assert difference(masked, webui.generate(HALVES, {"feather": 0.0})) <= CLOSE
    assert "mask=sha256-" in masked.infotext and mask() not in masked.infotext


def test_a_global_lora_with_a_region(webui):
    check_composed(webui, f"a cat {lora('lora', 0.8)} {lora('te', '0.8:lt=global:ltat=top')}", calls=4)


@pytest.mark.parametrize("kind", ["lora", "locon", "loha", "lokr", "dora", "te", "oft"])
def test_strengths_over_the_sampling(webui, kind):
    if not webui.applies(kind):
        pytest.skip(f"the WebUI itself does not apply {kind}")
    check_composed(webui, f"a cat {lora(kind, '0.8:ltw=0.25@0,1@0.5,0.5@1')} {lora('cp', 0.7)}", calls=4)


def test_words_are_the_loras_own(webui):
    """With lambda 0 one adapter's picture is that of its own prediction."""
    alone = lora("lora", 0.8)
    own = webui.generate(f"a cat {alone} <ltp:e2e_lora:(red hat:1.3), at 12:30>", {"lam": 0.0})
    all_read = webui.generate(f"a cat, (red hat:1.3), at 12:30 :1 {alone}", {"lam": 0.0})
    assert (
        difference(own, all_read) <= CLOSE and difference(own, webui.generate(f"a cat {alone}", {"lam": 0.0})) > CLOSE
    )
    assert "<ltp:e2e_lora:(red hat:1.3), at 12:30>" in own.infotext
    assert difference(webui.generate(f"a cat {alone} <ltp:e2e_lora:red>"), webui.generate(f"a cat {alone}")) == 0


@pytest.mark.parametrize(
    "tags, told",
    [
        (lora("lora", "0.8:ltbox=0,0,3,1"), "ltbox=0,0,3,1; it must be four fractions"),
        (lora("lora", "0.8:ltat=leftish"), "ltat=leftish; it must be one of left"),
        (lora("lora", "0.8:ltw=1@0.5,0@0.2"), "ltw=1@0.5,0@0.2; it must be factor@fraction"),
        (f"{lora('lora')} <ltp:horse:red>", "there is no LoRA 'horse'; there is e2e_lora"),
    ],
)
def test_what_cannot_be_read_stops(webui, tags, told):
    assert told in webui.complaint(f"a cat {tags}", {})
