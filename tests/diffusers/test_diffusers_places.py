"""Regions of LoRAs in a pipeline, where in one step each pixel of the latents comes of its own prediction alone; and
strengths that change over the sampling.
"""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import base64
import importlib
import io
from pathlib import Path

import tiny_pipelines as tiny
import torch
from PIL import Image

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.palette import COLOURS
from lib_loratorio.settings import Settings


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def pipe(request):
    return getattr(tiny, request.param)()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return [
        tiny.write_lora(pipe, folder / f"{name}.safetensors", seed, text=tiny.TEXT)
        for seed, name in ((1, "a"), (2, "b"))
    ]


def latents(pipe, loras, steps=1, prompt="a red cat", **settings):
    with composed(pipe, loras, Settings(verify=True, lam=0.0, feather=0.0, **settings)) as composition:
        found = tiny.latents(pipe, prompt, steps, negative_prompt="blurry", guidance_scale=4.0)
    assert 0 < composition.tally.worst < 1e-4
    return composition, found


def tag(**named):
    return LoraTag.read(named, "a")


@pytest.mark.parametrize("method", ["loratorio", "composite"])
def test_each_half_is_of_its_own_lora(pipe, files, method):
    loras = [Lora(file, 0.8, tag(ltat=word)) for file, word in zip(files, ("left", "right"))]
    composition, both = latents(pipe, loras, method=method)
    alone = [latents(pipe, [Lora(file, 0.8)], method=method)[1] for file in files]
    assert composition.tally.rows == 6
    expected = torch.cat([alone[0][..., :4], alone[1][..., 4:]], -1)
    assert torch.allclose(both, expected, atol=1e-4) and not torch.allclose(both, alone[0], atol=1e-2)
    assert composition.regions == [[(0, 0, 0.5, 1)], [(0.5, 0, 1, 1)]]


def test_a_global_lora_with_a_region_is_added_there(pipe, files):
    gated = Lora(files[1], 0.8, tag(lt="global", ltat="top"))
    composition, found = latents(pipe, [Lora(files[0], 0.8), gated])
    _, plain = latents(pipe, [Lora(files[0], 0.8)])
    assert composition.labels == ["a"]
    assert torch.allclose(found[..., 4:, :], plain[..., 4:, :], atol=1e-5)
    assert not torch.allclose(found[..., :4, :], plain[..., :4, :], atol=1e-2)


def test_where_regions_have_no_effect_is_told(pipe, files, caplog):
    with composed(pipe, [Lora(files[0], 0.8, tag(ltat="left"))], Settings(method="merge")):
        pass
    assert "in the tag of a have no effect with the method merge" in caplog.text


def test_where_ramps_have_no_effect_is_told(pipe, files, caplog):
    loras = [Lora(files[0], 0.8, tag(ltw="1@0,0@0.5")), Lora(files[1], 0.8, tag(ltw="0.5@0,1@0.5"))]
    with composed(pipe, loras, Settings(end=0.5)):
        pass
    assert "ltw in the tag of a have no effect outside of Start and End: there LoRAs are merged" in caplog.text


# Ramps


@pytest.fixture(scope="module", params=["plain", "dora"])
def of_unet(request, pipe, tmp_path_factory):
    """A LoRA without text encoders; DoRA's change is not in proportion to its strength."""
    file = tmp_path_factory.mktemp(request.param) / "u.safetensors"
    tiny.write_lora(pipe, file, 3, unet=("to_q", "conv1"), layout="diffusers")
    if request.param == "dora":
        tiny.as_dora(file)
    return file


def test_a_strength_times_its_factor(pipe, of_unet, files):
    other = Lora(files[0], 0.6)
    _, ramped = latents(pipe, [Lora(of_unet, 0.8, tag(ltw="0.5@0")), other], steps=3)
    _, half = latents(pipe, [Lora(of_unet, 0.4), other], steps=3)
    _, whole = latents(pipe, [Lora(of_unet, 0.8), other], steps=3)
    assert torch.allclose(ramped, half, atol=1e-4) and not torch.allclose(ramped, whole, atol=1e-2)


def test_a_strength_that_changes_from_step_to_step(pipe, of_unet, files):
    loras = [Lora(of_unet, 0.8, tag(ltw="0@0,1@0.5,0.25@1")), Lora(files[0], 0.6)]
    composition, _ = latents(pipe, loras, steps=4)
    assert composition.tally.rows == 2 + 3 * 5


# Words of its own


def test_a_lora_reads_words_alone(pipe, files):
    first, second = files
    _, own = latents(pipe, [Lora(first, 0.8, prompt="a blue hat")])
    _, all_read = latents(pipe, [Lora(first, 0.8)], prompt="a red cat, a blue hat")
    assert torch.allclose(own, all_read, atol=1e-5)
    halves = [Lora(first, 0.8, tag(ltat="left"), prompt="a blue hat"), Lora(second, 0.8, tag(ltat="right"))]
    _, both = latents(pipe, halves, method="composite")
    _, other = latents(pipe, [Lora(second, 0.8)])
    assert torch.allclose(both, torch.cat([own[..., :4], other[..., 4:]], -1), atol=1e-4)


def test_a_global_lora_has_no_words_of_its_own(pipe, files):
    lora = Lora(files[0], 0.8, tag(lt="global"), prompt="a hat")
    with pytest.raises(LoratorioError, match="is global, and has no prompt of its own"), composed(pipe, [lora]):
        pass


# Masks


def test_loras_are_where_their_colours_are(pipe, files):
    image = Image.new("RGB", (80, 80), COLOURS[0])
    image.paste(COLOURS[1], (40, 0, 80, 80))
    file = io.BytesIO()
    image.save(file, "PNG")
    mask = base64.b64encode(file.getvalue()).decode()
    composition, painted = latents(pipe, [Lora(path, 0.8) for path in files], mask=mask)
    _, named = latents(pipe, [Lora(path, 0.8, tag(ltat=word)) for path, word in zip(files, ("left", "right"))])
    assert torch.allclose(painted, named, atol=1e-5)
    (panel,) = composition.panels([Image.new("RGB", (256, 256))])
    of_a, of_b = 8 + 256 + 8, 8 + 2 * (256 + 8)
    assert [panel.getpixel((x, 100)) for x in (of_a + 127, of_b + 128)] == list(COLOURS[:2])


# A pool chosen by the prompt


def test_a_pool_that_the_prompt_names(pipe, files, monkeypatch):
    module = importlib.import_module("lib_loratorio.loras.trigger_words")
    monkeypatch.setattr(module, "trigger_words", lambda path: {"a": "blue", "b": "Red Cat"}[Path(path).stem])
    pool = [Lora(path, 0.8, pooled=True) for path in files]
    composition, found = latents(pipe, pool, pool_mode="named")
    _, alone = latents(pipe, [Lora(files[1], 0.8)])
    assert torch.allclose(found, alone, atol=1e-5) and composition.chosen == "step 1: b"
    with composed(pipe, pool, Settings(pool_mode="named")), pytest.raises(LoratorioError, match="give a prompt"):
        pipe.encode_prompt(None, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
