"""The original SD layout: diffusers' own converters must find their way back."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers.loaders import single_file_utils

from lab import export, model


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return model.pipeline(model.autoencoder(4), model.text_encoder(), model.unet())


def _same(converted, expected):
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[k].flatten(), expected[k].flatten()) for k in expected)


def test_converters_of_diffusers_give_the_same_weights_back(pipe):
    state = export.original_layout(pipe)
    _same(single_file_utils.convert_ldm_unet_checkpoint(state, dict(pipe.unet.config)), pipe.unet.state_dict())
    _same(single_file_utils.convert_ldm_vae_checkpoint(state, dict(pipe.vae.config)), pipe.vae.state_dict())
    text = {
        k.removeprefix("cond_stage_model.transformer.text_model."): v
        for k, v in state.items()
        if k.startswith("cond_stage_model.")
    }
    _same(text, {k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()})


def test_yaml_says_what_the_model_is(pipe):
    params = export.webui_config(pipe, "models/x")["model"]["params"]
    unet = params["unet_config"]["params"]
    assert (unet["model_channels"], unet["channel_mult"], unet["attention_resolutions"], unet["num_heads"]) == (
        64,
        [1, 2],
        [2],
        4,
    )
    assert unet["context_dim"] == model.TEXT_WIDTH and params["scale_factor"] == pipe.vae.config.scaling_factor
    assert params["first_stage_config"]["params"]["ddconfig"]["ch_mult"] == [1, 1, 1, 1]
