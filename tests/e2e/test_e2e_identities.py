"""Pictures that must come out alike, whatever the adapters are."""

import lora_files
import pytest
from webui_server import CLOSE, SCRIPT, VISIBLE, difference, lora, pictures

from lib_loratorio.presets import START

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
TEXT_PAIR = f"a cat {lora('lora', 0.8)} {lora('te', 0.9)}"


@pytest.mark.parametrize("kind", lora_files.KINDS)
def test_one_adapter_without_recentring_is_the_ordinary_picture(webui, kind):
    if not webui.applies(kind):
        pytest.skip(f"the WebUI itself does not apply {kind}")
    prompt = f"a cat {lora(kind, 0.9)}"
    assert difference(webui.generate(prompt, {"lam": 0.0}), webui.generate(prompt)) <= CLOSE


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler_name": "DDIM"},
        {"sampler_name": "DPM++ SDE"},
        {"batch_size": 2},
        {"negative_prompt": " ".join(["dark dog"] * 75)},
        {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6},
    ],
    ids=["DDIM", "DPM++ SDE", "batch", "long negative prompt", "hires fix"],
)
def test_one_text_encoder_adapter_without_recentring_is_the_ordinary_picture(webui, fields):
    prompt = f"a [cat|dog] {lora('te', 0.9)}"
    assert difference(webui.generate(prompt, {"lam": 0.0}, **fields), webui.generate(prompt, **fields)) <= CLOSE


def test_merge_is_the_ordinary_picture(webui):
    assert difference(webui.generate(PAIR, {"method": "merge"}), webui.generate(PAIR)) <= CLOSE


def test_methods_differ(webui):
    made = [webui.generate(PAIR, {"method": method}) for method in ("loratorio", "composite", "switch", "merge")]
    for i, one in enumerate(made):
        for other in made[i + 1 :]:
            assert difference(one, other) > VISIBLE


def test_hot_weights_are_a_plain_average(webui):
    hot = webui.generate(PAIR, {"temperature": 1e9, "lam": 0.0})
    assert difference(hot, webui.generate(PAIR, {"method": "composite", "lam": 0.0})) <= CLOSE
    assert difference(hot, webui.generate(PAIR, {"temperature": 0.01, "lam": 0.0})) > VISIBLE


@pytest.mark.parametrize("setting", [{"patch_size": 8}, {"temperature": 0.01}, {"lam": 0.0}, {"top_k": 1}])
def test_settings_matter(webui, setting):
    reference = {"patch_size": 2, "temperature": 0.5, "lam": 0.5, "top_k": 0}
    assert difference(webui.generate(PAIR, reference), webui.generate(PAIR, {**reference, **setting})) > CLOSE


def test_keeping_all_adapters_is_keeping_as_many_as_there_are(webui):
    assert difference(webui.generate(PAIR, {"top_k": 2}), webui.generate(PAIR, {})) == 0


def test_cold_weights_are_the_most_divergent_adapter(webui):
    assert difference(webui.generate(PAIR, {"temperature": 1e-6}), webui.generate(PAIR, {"top_k": 1})) <= CLOSE


def test_order_does_not_matter(webui):
    swapped = f"a cat {lora('locon', 0.6)} {lora('lora', 0.8)}"
    assert difference(webui.generate(PAIR, {}), webui.generate(swapped, {})) <= CLOSE


def test_an_adapter_of_strength_0_is_no_adapter(webui):
    alone = f"a cat {lora('lora', 0.8)}"
    assert difference(webui.generate(f"{alone} {lora('locon', 0)}", {}), webui.generate(alone, {})) <= CLOSE


def test_passes_do_not_matter(webui):
    assert difference(webui.generate(TEXT_PAIR, {"adapters_per_pass": 1}), webui.generate(TEXT_PAIR, {})) <= CLOSE


def test_text_encoder_mode_matters_only_for_text_encoder_adapters(webui):
    assert difference(webui.generate(PAIR, {"text_encoder": "merged"}), webui.generate(PAIR, {})) == 0
    assert difference(webui.generate(TEXT_PAIR, {"text_encoder": "merged"}), webui.generate(TEXT_PAIR, {})) > VISIBLE


def test_same_seed_gives_the_same_picture(webui):
    first = webui.generate(TEXT_PAIR, {})
    webui.generate(f"a dog {lora('te', 0.5)} {lora('full', 0.4)}", {"patch_size": 4}, seed=7)
    assert difference(webui.generate(TEXT_PAIR, {}), first) == 0


@pytest.mark.parametrize("settings", [{}, {"method": "switch"}], ids=["loratorio", "switch"])
@pytest.mark.parametrize("together", ["batch_size", "n_iter"])
def test_two_pictures_at_once_are_the_two_single_ones(webui, together, settings):
    def spread(settings):
        both = webui.generate(TEXT_PAIR, settings, **{together: 2}).images
        singles = [webui.generate(TEXT_PAIR, settings, seed=seed).image for seed in (1, 2)]
        return max(int(abs(one - single).max()) for one, single in zip(both, singles, strict=True))

    assert spread(settings) <= max(CLOSE, spread(None))


def test_positional_form(webui):
    values = [True, "loratorio", 3, 0.2, 0.25, 1, 0.0, 1.0, "merged", 0, False, False]
    names = [
        "enabled",
        "method",
        "patch_size",
        "temperature",
        "lam",
        "top_k",
        "start",
        "end",
        "text_encoder",
        "adapters_per_pass",
        "verify",
        "maps",
    ]
    positional = webui.generate(TEXT_PAIR, alwayson_scripts={SCRIPT: {"args": values}})
    # The WebUI fills up what is missing with what the accordion starts with.
    rest = {name: value for name, value in START.to_api().items() if name not in names}
    named = webui.generate(TEXT_PAIR, {**rest, **dict(zip(names, values, strict=True))})
    assert difference(positional, named) == 0
    assert positional.infotext == named.infotext


def test_the_client_s_own_methods(webui):
    request = {
        "prompt": PAIR,
        "negative_prompt": "dark",
        "seed": 1,
        "steps": 4,
        "width": 64,
        "height": 64,
        "cfg_scale": 6.0,
        "sampler_name": "Euler a",
        "scheduler": "Automatic",
    }
    scripts = {SCRIPT: {"args": [{"enabled": True, "temperature": 0.2}]}}
    made = pictures(webui.client.txt2img(**request, alwayson_scripts=scripts))
    assert difference(made, webui.generate(PAIR, {"temperature": 0.2})) == 0
