"""Every way of generating a picture: the composed predictions are the host's own, one adapter at a time."""

import lora_files
import pytest
from PIL import Image, ImageDraw
from webui_server import CLOSE, VISIBLE, assert_identical, check_composed, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"

CALLS = {
    "Heun": 7,
    "DPM2": 7,
    "DPM2 a": 7,
    "DPM++ 2S a": 7,
    "DPM++ SDE": 7,
    "Restart": 7,
    "DDIM": 3,
    "DDIM CFG++": None,
    "DPM adaptive": None,
}
"""How often a sampler calls the model in 4 steps, where that is not 4 times; None where it depends, on the picture or
the WebUI.
"""


def require_options(webui, options):
    missing = [option for option in options if not webui.offers(option)]
    if missing:
        pytest.skip(f"the WebUI has no option {missing[0]}")


def gradient(width=64, height=64):
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def square_mask():
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 48, 48), fill=255)
    return mask


def test_two_loras(webui):
    composed = check_composed(webui, PAIR, calls=4)
    assert "LoRAtorio: " in composed.infotext
    assert "LoRAtorio verify: max relative error " in composed.infotext


@pytest.mark.parametrize("kind", [kind for kind in lora_files.KINDS if kind != "lora"])
def test_each_kind_beside_a_plain_lora(webui, kind):
    prompt = f"a cat {lora('lora', 0.8)} {lora(kind, 0.7)}"
    if not webui.applies(kind):
        assert f"e2e_{kind}" in webui.complaint(prompt, {})
        pytest.skip(f"the WebUI itself does not apply {kind}, and LoRAtorio says so")
    check_composed(webui, prompt, calls=4)


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "boft"])
def test_one_adapter_alone(webui, kind):
    if not webui.applies(kind):
        pytest.skip(f"the WebUI itself does not apply {kind}")
    check_composed(webui, f"a cat {lora(kind, 0.8)}", calls=4)


@pytest.mark.parametrize(
    "kinds", [("lora", "locon", "loha"), ("lora", "cp", "full", "norm"), ("lora", "locon", "te", "lokr", "ia3")]
)
def test_more_adapters(webui, kinds):
    kinds = [kind for kind in kinds if webui.applies(kind)]
    assert len(kinds) >= 3
    check_composed(webui, "a cat " + " ".join(lora(kind, 0.7) for kind in kinds), calls=4)


@pytest.mark.parametrize("strength", [-0.7, 1.6, 0.05])
def test_strengths(webui, strength):
    no_low_rank = next(kind for kind in ("oft", "dora") if webui.applies(kind))
    check_composed(webui, f"a cat {lora('lora', 0.8)} {lora(no_low_rank, strength)} {lora('locon', strength)}", calls=4)


@pytest.mark.parametrize(
    "sampler, scheduler, steps",
    [
        ("Euler", "Automatic", 4),
        ("LMS", "Automatic", 4),
        ("Heun", "Automatic", 4),
        ("DPM2", "Automatic", 4),
        ("DPM2 a", "Automatic", 4),
        ("DPM++ 2S a", "Automatic", 4),
        ("DPM++ 2M", "Karras", 4),
        ("DPM++ SDE", "Automatic", 4),
        ("DPM++ 2M SDE", "Automatic", 4),
        ("DPM++ 2M SDE Heun", "Automatic", 4),
        ("DPM++ 3M SDE", "Exponential", 4),
        ("DPM fast", "Automatic", 4),
        ("DPM adaptive", "Automatic", 4),
        ("Restart", "Automatic", 4),
        ("Restart", "Automatic", 20),
        ("LCM", "Automatic", 4),
        ("DDIM", "Automatic", 4),
        ("DDIM CFG++", "Automatic", 4),
        ("PLMS", "Automatic", 4),
        ("UniPC", "Automatic", 4),
    ],
)
def test_samplers(webui, sampler, scheduler, steps):
    if sampler not in webui.samplers:
        pytest.skip("the WebUI has no such sampler and would take another")
    calls = CALLS.get(sampler, 4) if steps == 4 else None
    check_composed(webui, PAIR, calls=calls, sampler_name=sampler, scheduler=scheduler, steps=steps)


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_batch(webui, sampler):
    composed = check_composed(webui, PAIR, batch_size=2, sampler_name=sampler)
    assert len(composed.images) == 2


def test_batch_count(webui):
    composed = check_composed(webui, PAIR, n_iter=2, calls=8)
    assert len(composed.images) == 2


@pytest.mark.parametrize("size", [(96, 72), (64, 104)])
def test_sizes_that_patches_do_not_divide(webui, size):
    check_composed(webui, PAIR, {"patch_size": 5}, calls=4, width=size[0], height=size[1])


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_guidance_scale_1(webui, sampler):
    check_composed(webui, PAIR, cfg_scale=1.0, sampler_name=sampler)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", ["locon", "te"])
def test_and_prompts(webui, kind, batch_size):
    prompt = f"a cat {lora('lora', 0.8)} AND a red dog :0.6 AND a blue bird {lora(kind, 0.6)} :0.4"
    check_composed(webui, prompt, calls=4, batch_size=batch_size)


@pytest.mark.parametrize("kind", ["locon", "te"])
def test_prompt_editing(webui, kind):
    check_composed(webui, f"a [cat:dog:0.5] in a [red|blue] hat {lora('lora', 0.8)} {lora(kind, 0.6)}", calls=4)


LONG = {
    "positive": {"prompt": " ".join(["red cat"] * 75), "negative_prompt": "dark"},
    "negative": {"prompt": "a cat", "negative_prompt": " ".join(["dark dog"] * 75)},
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad_cond_uncond": True},
        {"batch_cond_uncond": False},
        {"pad_cond_uncond": True, "batch_cond_uncond": False},
    ],
    ids=lambda options: " ".join(options) or "default",
)
@pytest.mark.parametrize("which", LONG)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_150_tokens(webui, which, options, batch_size):
    require_options(webui, options)
    texts = LONG[which]
    prompt = f"{texts['prompt']} {lora('lora', 0.8)} {lora('te', 0.6)}"
    check_composed(
        webui,
        prompt,
        calls=4,
        negative_prompt=texts["negative_prompt"],
        override_settings=options,
        batch_size=batch_size,
    )


def test_long_prompt_parts_of_and(webui):
    prompt = f"{LONG['positive']['prompt']} {lora('lora', 0.8)} AND a dog {lora('locon', 0.6)} :0.5"
    check_composed(webui, prompt, calls=4)


def test_cond_and_uncond_in_separate_calls(webui):
    require_options(webui, ["batch_cond_uncond"])
    check_composed(webui, PAIR, calls=4, override_settings={"batch_cond_uncond": False}, batch_size=2)


def test_skipped_early_guidance(webui):
    composed = check_composed(webui, PAIR, calls=4, override_settings={"skip_early_cond": 0.4})
    assert "Skip Early CFG" in composed.params


@pytest.mark.parametrize("sampler, calls", [("Euler a", 4), ("Heun", 7)])
def test_negative_guidance_minimum_sigma(webui, sampler, calls):
    # Some WebUIs look at the request's field only, others at the setting only.
    composed = check_composed(
        webui, PAIR, calls=calls, s_min_uncond=10.0, override_settings={"s_min_uncond": 10.0}, sampler_name=sampler
    )
    assert "NGMS" in composed.params


def test_hires_fix_with_the_same_networks(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    composed = check_composed(webui, PAIR, calls=8, **hires)
    assert composed.image.shape in ((96, 96, 3), (128, 128, 3))  # Neo rounds to multiples of 64


def test_hires_fix_with_its_own_prompt_and_networks(webui):
    prompt = f"a dog {lora('te', 0.7)} {lora('lora', 0.4)} {lora('dora', 0.5)}"
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_prompt": prompt}
    check_composed(webui, PAIR, calls=8, **hires)


def test_hires_fix_without_networks(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_prompt": "a dog"}
    composed = webui.generate(PAIR, {"verify": True}, **hires)
    error, calls = composed.verification
    assert 0 < error < 1e-4
    assert calls == 4


@pytest.mark.parametrize("sampler, calls", [("Euler a", 4), ("DDIM", 2), ("DPM++ SDE", 7)])
def test_img2img(webui, sampler, calls):
    check_composed(webui, PAIR, calls=calls, init_images=[gradient()], denoising_strength=0.8, sampler_name=sampler)


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_inpainting(webui, sampler, only_masked):
    check_composed(
        webui,
        PAIR,
        calls={"Euler a": 4, "DDIM": 2}[sampler],
        init_images=[gradient()],
        mask=square_mask(),
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=only_masked,
        denoising_strength=0.8,
        sampler_name=sampler,
    )


@pytest.mark.parametrize("text_encoder", ["own", "merged"])
@pytest.mark.parametrize("kind", ["te", "te_only"])
def test_text_encoder_adapters(webui, kind, text_encoder):
    check_composed(webui, f"a cat {lora('lora', 0.8)} {lora(kind, 0.9)}", {"text_encoder": text_encoder}, calls=4)


def test_named_strengths(webui):
    strengths = "te=0.5:unet=0.7:dyn=2"
    average = {"method": "composite", "lam": 0.0}
    composed = check_composed(webui, f"a cat {lora('te', strengths)} {lora('locon', '0.6:0.9')}", average, calls=4)
    for other in ("te=0.5:unet=0.2:dyn=2", "te=1.5:unet=0.7:dyn=2"):
        changed = webui.generate(f"a cat {lora('te', other)} {lora('locon', '0.6:0.9')}", average)
        assert difference(composed, changed) > VISIBLE, other
    alone = f"a cat {lora('te', strengths)}"
    assert difference(webui.generate(alone, average), webui.generate(alone)) <= CLOSE


def test_rank_counts_as_it_does_for_the_webui_itself(webui):
    average = {"method": "composite", "lam": 0.0}

    def lower_rank_shows(settings):
        whole, part = (
            webui.generate(f"a cat {lora('te', tag)}", settings) for tag in ("te=0.5:unet=0.7", "te=0.5:unet=0.7:dyn=2")
        )
        return difference(whole, part) > VISIBLE

    assert lower_rank_shows(average) == lower_rank_shows(None)


def test_networks_applied_in_each_forward(webui):
    if not webui.offers("lora_functional"):
        pytest.skip("the WebUI has no such mode")
    # In this mode the host does not take out weights that it merged before: start from unmerged ones.
    webui.generate("a cat")
    check_composed(webui, PAIR, calls=4, override_settings={"lora_functional": True})


@pytest.mark.parametrize("adapters_per_pass", [1, 2])
def test_split_into_passes(webui, adapters_per_pass):
    prompt = f"a cat {lora('lora', 0.8)} {lora('te', 0.6)} {lora('loha', 0.6)}"
    check_composed(webui, prompt, {"adapters_per_pass": adapters_per_pass}, calls=4, batch_size=2)


@pytest.mark.parametrize("method", ["loratorio", "composite", "switch"])
def test_methods(webui, method):
    check_composed(webui, PAIR, {"method": method}, calls=4)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_recentring_weights(webui, lam):
    check_composed(webui, PAIR, {"lam": lam}, calls=4)


def test_step_range(webui):
    sampling = {"sampler_name": "DDIM", "steps": 8}
    merged = webui.generate(PAIR, **sampling)
    whole = webui.generate(PAIR, {}, **sampling)
    for settings, calls in (({"start": 0.5}, 3), ({"end": 0.5}, 4), ({"start": 0.25, "end": 0.75}, 4)):
        part = webui.generate(PAIR, {**settings, "verify": True}, **sampling)
        error, composed_calls = part.verification
        assert 0 < error < 1e-4
        assert composed_calls == calls, settings
        assert difference(part, whole) > CLOSE, settings
        assert difference(part, merged) > CLOSE, settings
    assert_identical(webui.generate(PAIR, **sampling), merged)


def test_adapters_within_their_windows(webui):
    sampling = {"sampler_name": "Euler", "steps": 8}

    def one(window):
        return webui.generate(f"a cat {lora('te', '0.8' + window)}", {"lam": 0.0, "verify": True}, **sampling)

    bare, whole = webui.generate("a cat", **sampling), webui.generate(f"a cat {lora('te', 0.8)}", **sampling)
    assert difference(one(""), whole) <= CLOSE
    assert difference(one(":ltstart=0.99"), bare) <= CLOSE
    early, late = one(":ltend=0.5"), one(":ltstart=0.5")
    for part in (early, late):
        assert 0 < part.verification[0] < 1e-4
        assert min(difference(part, other) for other in (bare, whole)) > CLOSE
    assert difference(early, late) > CLOSE
