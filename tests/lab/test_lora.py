"""The LoRA files' names: what kohya's format and the WebUIs expect."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from safetensors import safe_open

from lab import lora, model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    pipe = model.pipeline(model.autoencoder(4), model.text_encoder(), model.unet())
    lora.attach(pipe, with_text_encoder=True)
    path = tmp_path_factory.mktemp("lora") / "skill.safetensors"
    lora.save(pipe, path, {"ss_trigger_word": "zorbo"})
    with safe_open(path, "pt") as opened:
        return path, {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata()


def test_every_layer_has_down_up_and_alpha(file):
    _, state, metadata = file
    layers = {k.split(".")[0] for k in state}
    for layer in layers:
        down, up = state[f"{layer}.lora_down.weight"], state[f"{layer}.lora_up.weight"]
        assert down.shape[0] == up.shape[1] == lora.RANK and state[f"{layer}.alpha"] == lora.ALPHA
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0" in layers
    assert "lora_unet_up_blocks_1_resnets_2_conv2" in layers
    assert "lora_te_text_model_encoder_layers_2_mlp_fc2" in layers
    assert metadata["ss_trigger_word"] == "zorbo" and metadata["ss_network_dim"] == str(lora.RANK)


def test_diffusers_reads_every_layer(file):
    path, state, _ = file
    pipe = model.pipeline(model.autoencoder(4), model.text_encoder(), model.unet())
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="skill")
    loaded = sum(n.endswith("lora_A") for part in (pipe.unet, pipe.text_encoder) for n, _ in part.named_modules())
    assert loaded == len(state) / 3


def test_what_was_saved_is_restored_to_be_trained_on(file):
    path, state, _ = file
    torch.manual_seed(1)
    pipe = model.pipeline(model.autoencoder(4), model.text_encoder(), model.unet())
    lora.attach(pipe, with_text_encoder=True)
    other = lora.kohya(pipe.unet, "lora_unet")
    assert any(not torch.equal(other[key], state[key]) for key in other)
    lora.restore(pipe, path)
    restored = lora.kohya(pipe.unet, "lora_unet") | lora.kohya(pipe.text_encoder, "lora_te")
    assert restored.keys() == state.keys() and all(torch.equal(restored[key], state[key]) for key in state)


def test_layers_that_the_pipeline_lacks_are_told_while_restoring(file):
    pipe = model.pipeline(model.autoencoder(4), model.text_encoder(), model.unet())
    lora.attach(pipe, with_text_encoder=False)
    with pytest.raises(ValueError, match=r"skill\.safetensors.*lora_te_text_model"):
        lora.restore(pipe, file[0])
