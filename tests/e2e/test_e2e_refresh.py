"""Each LoRA alone in some steps only, and all merged in those between, on a running WebUI."""

import pytest
from webui_server import CLOSE, assert_identical, check_composed, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
FAST = {"lam": 1.0, "refresh_every": 3}


@pytest.mark.parametrize("settings", [FAST, {"refresh_every": 2}, {"refresh_every": 2, "method": "composite"}], ids=str)
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "Heun"])
def test_samplers(webui, sampler, settings):
    check_composed(webui, PAIR, settings, steps=6, sampler_name=sampler)
    every = webui.generate(PAIR, {**settings, "refresh_every": 1}, steps=6, sampler_name=sampler)
    assert difference(webui.generate(PAIR, settings, steps=6, sampler_name=sampler), every) > 0


@pytest.mark.parametrize("kind", ["lora", "te", "loha", "dora"])
def test_one_lora_is_the_picture_of_every_step(webui, kind):
    """All together are that one, so that nothing remains."""
    if not webui.applies(kind):
        pytest.skip(f"the WebUI itself does not apply {kind}")
    one = f"a cat {lora(kind, 0.8)}"
    merged_text = {"text_encoder": "merged"}  # otherwise the base's text is another, and so is what remains
    every = webui.generate(one, {**FAST, **merged_text, "refresh_every": 1}, steps=6)
    assert difference(webui.generate(one, {**FAST, **merged_text}, steps=6), every) <= CLOSE


def test_in_every_step_is_the_picture_without_the_setting(webui):
    assert_identical(webui.generate(PAIR, {"refresh_every": 1}), webui.generate(PAIR, {}))


@pytest.mark.parametrize(
    "prompt",
    [
        f"a cat {lora('te', 0.8)} {lora('lora', 0.6)} {lora('cp', 0.7)}",
        f"a cat AND a dog:0.4 {lora('te', 0.8)} {lora('locon', 0.6)}",
        f"a cat {lora('lora', '0.8:ltat=left')} {lora('te', '0.8:lt=global:ltat=top')} {lora('locon', 0.7)}",
        f"a cat {lora('lora', '0.8:ltw=0.25@0,1@1')} {lora('locon', '0.7:ltend=0.5')}",
    ],
)
def test_prompts(webui, prompt):
    check_composed(webui, prompt, FAST, steps=6, batch_size=2)


def test_a_hires_pass_and_a_pool(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.7}
    check_composed(webui, PAIR, FAST, steps=5, **hires)
    check_composed(webui, PAIR, {**FAST, "pool": "e2e_te", "pool_mode": "scout"}, steps=6)


def test_infotext_has_it(webui):
    made = webui.generate(PAIR, FAST)
    assert "refresh_every=3" in made.infotext
    assert "refresh_every" not in webui.generate(PAIR, {}).infotext
