"""Block weights on the layers of a pipeline."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import re

import tiny_pipelines as tiny
import torch
from safetensors.torch import load_file, save_file

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.hosts.diffusers.blocks import name_in_webui
from lib_loratorio.loras.block_weights import block_of
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

UNET_BLOCKS = {
    "conv_in": "IN00",
    "down_blocks.0.resnets.0.conv1": "IN01",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": "IN02",
    "down_blocks.0.downsamplers.0.conv": "IN03",
    "down_blocks.1.attentions.0.proj_in": "IN04",
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2": "IN08",
    "down_blocks.3.resnets.1.conv2": "IN11",
    "mid_block.attentions.0.proj_in": "M00",
    "mid_block.resnets.1.time_emb_proj": "M00",
    "up_blocks.0.resnets.0.conv1": "OUT00",
    "up_blocks.0.upsamplers.0.conv": "OUT02",
    "up_blocks.1.attentions.0.proj_out": "OUT03",
    "up_blocks.2.attentions.2.proj_out": "OUT08",
    "up_blocks.3.resnets.2.conv_shortcut": "OUT11",
    "time_embedding.linear_1": None,
    "conv_out": None,
}


@pytest.mark.parametrize(("layer", "block"), UNET_BLOCKS.items())
def test_blocks_of_a_unet(layer, block):
    assert block_of(name_in_webui("unet", layer)) == block


@pytest.mark.parametrize(
    ("layer", "block"),
    [("text_model.encoder.layers.3.mlp.fc1", "BASE"), ("encoder.layers.0.q_proj", "BASE"), ("text_projection", None)],
)
def test_blocks_of_text_encoders(layer, block):
    assert block_of(name_in_webui("text_encoder_2", layer)) == block


PARTS = {
    "te": 2.0,
    "down_blocks_0": 0.5,
    "down_blocks_1": 0.0,
    "mid_block": -1.0,
    "up_blocks_0": 0.25,
    "up_blocks_1": 1.0,
}
LBW = ",".join(map(str, [2, 9, *[0.5] * 3, *[0] * 2, *[9] * 6, -1, *[0.25] * 3, *[1] * 3, *[9] * 6]))
"""26 numbers; those of blocks that the small UNet has not are 9."""


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def pipe(request):
    return getattr(tiny, request.param)()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    """A LoRA, and what the block weights make of it."""
    folder = tmp_path_factory.mktemp("files")
    layers = (*tiny.ATTENTION, *tiny.CONVOLUTIONS)
    path = tiny.write_lora(pipe, folder / "a.safetensors", 1, unet=layers, text=tiny.TEXT)
    weighted = load_file(path)
    for key in weighted:
        if key.endswith(".alpha"):
            part = re.search("(te)|((?:down|up)_blocks_.)|(mid_block)", key).group()
            weighted[key] = weighted[key] * PARTS[part]
    save_file(weighted, folder / "weighted.safetensors")
    return path, folder / "weighted.safetensors"


def latents(pipe, loras, settings):
    with composed(pipe, loras, settings):
        return tiny.latents(pipe, "a red cat", 4, negative_prompt="blurry", guidance_scale=4.0)


def tag(**named):
    return LoraTag.read(named, "a")


@pytest.mark.parametrize("settings", [{}, {"method": "merge"}, {"text_encoder": "merged"}], ids=str)
def test_factors_on_layers(pipe, files, settings, tmp_path):
    path, weighted = files
    other = tiny.write_lora(pipe, tmp_path / "b.safetensors", 2)
    found, expected, plain = (
        latents(pipe, [lora, Lora(other, 0.6)], Settings(**settings))
        for lora in (Lora(path, 0.8, tag(lbw=LBW)), Lora(weighted, 0.8), Lora(path, 0.8))
    )
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.01


def test_steps(pipe, files):
    """Of four."""
    path, _ = files
    loras = [Lora(path, 0.8, tag(step="2-3"))], [Lora(path, 0.8, LoraTag(0.5, 0.75))], [Lora(path, 0.8)]
    found, expected, whole = (latents(pipe, lora, Settings()) for lora in loras)
    assert torch.equal(found, expected) and not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ({"lbw": "NONE"}, "have no effect, as their factors, alphas or block weights are 0: a"),
        ({"lbw": "FLUXALL"}, "'a' has lbw=FLUXALL, 61 numbers; this model needs 12, 17, 20 or 26"),
        ({"lbw": ",".join("R" * 17)}, "R and U are for WebUIs only"),
        ({"lbwe": "ATTNON"}, "lbwe=ATTNON; of block weights only lbw is known"),
    ],
)
def test_what_cannot_be_done_is_told(pipe, files, named, match):
    with pytest.raises(LoratorioError, match=match), composed(pipe, [Lora(files[0], 0.8, tag(**named))]):
        pass
