"""What cannot be done ends in a message that names it, and loses nothing."""

import lora_files
import pytest
import torch
from webui_server import NOTE, SCRIPT, assert_identical, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras", "bad_loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
GO_ON = {"override_settings": {"loratorio_stop_on_error": False}}


@pytest.fixture(scope="module")
def bad_loras(webui, lora_dir):
    """Files that name no layer of the model, do not fit its layers, or are no adapter files at all."""
    generator = torch.Generator().manual_seed(0)
    layer = next(
        layer for layer in lora_files.layers_of(webui.current_checkpoint()["filename"]) if layer.name.endswith("to_q")
    )
    for name, target, shape in (
        ("e2e_nothing", "lora_unet_no_such_layer", layer.shape),
        ("e2e_misfit", layer.name, (layer.shape[0] + 8, layer.shape[1] + 8)),
    ):
        tensors = lora_files.build("lora", shape, generator)
        lora_files.write(
            {f"{target}.{part}": tensor for part, tensor in tensors.items()}, lora_dir / f"{name}.safetensors"
        )
    (lora_dir / "e2e_broken.safetensors").write_bytes(b"not a safetensors file")
    webui.refresh_loras()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"temperature": 0}, ["temperature", "0"]),
        ({"temperature": -1}, ["temperature", "-1"]),
        ({"temperature": "warm"}, ["temperature", "warm"]),
        ({"patch_size": 0}, ["patch_size", "0", "1"]),
        ({"patch_size": 1.5}, ["patch_size", "1.5", "whole"]),
        ({"lam": 1.5}, ["lam", "1.5", "0 to 1"]),
        ({"top_k": -1}, ["top_k", "-1"]),
        ({"method": "average"}, ["method", "average", "composite"]),
        ({"text_encoder": "none"}, ["text_encoder", "none", "own"]),
        ({"start": 0.8, "end": 0.2}, ["start", "0.8", "0.2"]),
        ({"temprature": 0.1}, ["temprature", "temperature"]),
    ],
    ids=str,
)
def test_bad_settings(webui, settings, words):
    before = webui.generate(PAIR)
    message = webui.refusal(PAIR, settings)
    assert SCRIPT in message
    assert [word for word in words if word not in message] == []
    assert_identical(webui.generate(PAIR), before)


BAD_TAGS = {
    "unknown": ("<lora:no_such_lora:1>", "no_such_lora"),
    "matches nothing": ("<lora:e2e_nothing:0.7>", "e2e_nothing"),
    "wrong shapes": ("<lora:e2e_misfit:0.7>", "e2e_misfit"),
    "broken file": ("<lora:e2e_broken:0.7>", "e2e_broken"),
}


@pytest.mark.parametrize("tag, name", BAD_TAGS.values(), ids=list(BAD_TAGS))
@pytest.mark.parametrize("others", ["", PAIR], ids=["alone", "beside others"])
def test_bad_lora(webui, others, tag, name):
    before = webui.generate(PAIR)
    message = webui.refusal(f"{others} {tag}", {})
    assert SCRIPT in message
    assert name in message
    assert_identical(webui.generate(PAIR), before)


def test_bad_lora_of_the_hires_pass(webui):
    before = webui.generate(PAIR)
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    assert "no_such_lora" in webui.refusal(PAIR, {}, hr_prompt=f"{PAIR} <lora:no_such_lora:1>", **hires)
    assert_identical(webui.generate(PAIR), before)


@pytest.mark.parametrize("prompt", ["a cat", f"a cat {lora('lora', 0)}"], ids=["no LoRA", "strength 0"])
def test_nothing_to_compose_is_an_ordinary_picture_with_a_note(webui, prompt):
    made = webui.generate(prompt, {})
    assert difference(made, webui.generate(prompt)) == 0
    assert "LoRA" in made.params[NOTE].replace(SCRIPT, "")
    assert NOTE in made.infotext


def test_going_on_in_spite_of_bad_settings(webui):
    made = webui.generate(PAIR, {"temperature": -1}, **GO_ON)
    assert difference(made, webui.generate(PAIR)) == 0
    assert "temperature" in made.params[NOTE]


@pytest.mark.parametrize("tag, name", BAD_TAGS.values(), ids=list(BAD_TAGS))
def test_going_on_in_spite_of_a_bad_lora(webui, tag, name):
    prompt = f"{PAIR} {tag}"
    if not webui.generates(prompt):
        pytest.skip("the WebUI itself makes no picture with such a LoRA")
    made = webui.generate(prompt, {}, **GO_ON)
    assert difference(made, webui.generate(prompt)) == 0
    assert name in made.params[NOTE]


def test_errors_are_ignored_while_off(webui):
    off = webui.generate(PAIR, alwayson_scripts={SCRIPT: {"args": [{"enabled": False}]}})
    assert_identical(off, webui.generate(PAIR))
    unknown = f"{PAIR} <lora:no_such_lora:1>"
    assert_identical(
        webui.generate(unknown, alwayson_scripts={SCRIPT: {"args": [{"enabled": False}]}}), webui.generate(unknown)
    )


def test_mistyped_windows_are_named(webui):
    message = webui.refusal(f"a cat {lora('lora', '0.8:ltsart=0.5')}", {})
    assert "'ltsart', which is not known" in message
