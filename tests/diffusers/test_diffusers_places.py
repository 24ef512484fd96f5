"""Regions of LoRAs in a pipeline: in one step each pixel of the latents comes of its own prediction alone."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_pipelines as tiny
import torch

from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.loras.tag import LoraTag
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


def latents(pipe, loras, steps=1, **settings):
    with composed(pipe, loras, Settings(verify=True, lam=0.0, feather=0.0, **settings)) as composition:
        found = pipe(
            prompt="a red cat",
            negative_prompt="blurry",
            height=tiny.SIZE,
            width=tiny.SIZE,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images
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
