"""Files and prompts that people bring: composed as the WebUI merges them, or refused by a message that names them."""

import json
from pathlib import Path

import lora_files
import pytest
from webui_server import NOTE, SCRIPT, VERIFY, assert_identical, check_composed, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras", "odd_loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
GO_ON = {"override_settings": {"loratorio_stop_on_error": False}}


@pytest.fixture(scope="module")
def odd_loras(webui, lora_dir):
    lora_files.write_odd(webui.current_checkpoint()["filename"], lora_dir)
    webui.refresh_loras()


@pytest.mark.parametrize("place", ["alone", "first", "last"])
@pytest.mark.parametrize("strength", ["0,8", "0. 6", "1.1.", "OUTALL", "0@0,1@0.5", "", "nan", "inf"])
def test_a_strength_that_is_no_number_blames_its_lora_alone(webui, strength, place):
    tag = f"<lora:e2e_loha:{strength}>"
    prompt = {"alone": f"a cat {tag}", "first": f"a cat {tag} {PAIR}", "last": f"{PAIR} {tag}"}[place]
    before = webui.generate(PAIR)
    message = webui.refusal(prompt, {})
    assert f"'e2e_loha' has the strength '{strength}'" in message
    assert "e2e_locon" not in message and "e2e_lora" not in message and "report" not in message
    assert_identical(webui.generate(PAIR), before)


def test_a_strength_that_is_no_number_in_the_hires_prompt_stops_the_first_pass(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    message = webui.refusal(PAIR, {}, hr_prompt="a cat <lora:e2e_lora:0,8>", **hires)
    assert "'e2e_lora' has the strength '0,8'" in message


@pytest.mark.parametrize("written", ["LT=global", " lt=global", "lt = Global", "Lt=GLOBAL "])
def test_case_and_spaces_of_our_names_do_not_matter(webui, written):
    expected = webui.generate(f"a cat {lora('lora', 0.8)} {lora('locon', '0.6:lt=global')}", {})
    made = webui.generate(f"a cat {lora('lora', 0.8)} {lora('locon', f'0.6:{written}')}", {})
    assert difference(made, expected) == 0
    assert difference(made, webui.generate(PAIR, {})) > 0


@pytest.mark.parametrize("written", ["itstart=0.5", "LTSART=0.5", "ltstrat=0.5", "lend=0.5"])
def test_a_near_miss_of_our_names_is_named(webui, written):
    name = written.split("=")[0].lower()
    assert f"'{name}', which is not known" in webui.refusal(f"a cat {lora('lora', f'0.8:{written}')}", {})


def test_a_name_that_tags_cannot_hold_is_the_cause(webui):
    message = webui.refusal(f"{PAIR} <lora:e2e_a=b:0.8>", {})
    assert "'e2e_a=b' holds '='" in message and "e2e_locon" not in message


@pytest.mark.parametrize("name", ["nan", "inf_te"])
def test_values_that_are_no_numbers_are_refused_by_name(webui, name):
    before = webui.generate(PAIR)
    message = webui.refusal(f"{PAIR} {lora(name, 0.8)}", {})
    assert f"'e2e_{name}' holds values" in message or f"prediction with the LoRA 'e2e_{name}' holds values" in message
    assert_identical(webui.generate(PAIR), before)


@pytest.mark.parametrize("mode", ["exact", "scout"])
def test_a_pool_goes_on_without_damaged_and_unreadable_files(webui, mode):
    pool = "e2e_nan, e2e_peft, e2e_zero, e2e_other_model, e2e_loha:0.7"
    made = webui.generate(f"a cat {lora('lora', 0.8)}", {"pool": pool, "pool_mode": mode, "verify": True})
    assert 0 < made.verification[0] < 1e-4
    told = made.params[NOTE]
    assert [name for name in ("e2e_nan", "e2e_peft", "e2e_zero", "e2e_other_model") if name not in told] == []
    assert "e2e_loha" not in made.params[NOTE]


@pytest.mark.parametrize("name", ["zero", "alpha_0"])
def test_a_lora_without_effect_dilutes_no_other(webui, name):
    expected = webui.generate(PAIR, {})
    made = webui.generate(f"{PAIR} {lora(name, 0.8)}", {"maps": True})
    assert difference_of_first(made, expected) == 0
    assert f"'e2e_{name}' changes nothing" in made.params[NOTE]
    assert f"e2e_{name}" not in made.params["LoRAtorio shares"]


def difference_of_first(one, other):
    return abs(one.images[0] - other.images[0]).max()


def test_a_lora_without_effect_alone_is_the_ordinary_picture(webui):
    made = webui.generate(f"a cat {lora('zero', 0.8)}", {})
    assert difference(made, webui.generate("a cat")) == 0
    assert "'e2e_zero' changes nothing" in made.params[NOTE]


def test_files_stored_in_eight_bits_are_composed_as_the_webui_merges_them(webui):
    if not webui.generates(f"a cat {lora('fp8', 0.8)}"):
        pytest.skip("the WebUI itself cannot read such a file")
    check_composed(webui, f"a cat {lora('fp8', 0.8)} {lora('locon', 0.6)}")


@pytest.mark.parametrize("name", ["peft", "peft_named"])
def test_a_layout_that_the_webui_cannot_read_is_told_as_that(webui, name):
    if webui.applies(name):
        check_composed(webui, f"{PAIR} {lora(name, 0.8)}")
        return
    message = webui.refusal(f"{PAIR} {lora(name, 0.8)}", {})
    assert f"the layout of the LoRA 'e2e_{name}' is not readable" in message and "Convert the file" in message
    assert "another kind of model" not in message


def test_a_file_of_which_only_text_encoder_layers_fit_is_for_another_model(webui):
    message = webui.refusal(f"{PAIR} {lora('other_model', 0.8)}", {})
    assert "'e2e_other_model' matches nothing in this model; it was made for another kind of model" in message


def test_an_acceleration_lora_gets_a_suggestion(webui):
    made = webui.generate(f"{PAIR} {lora('lcm', 0.8)}", {})
    assert "e2e_lcm" in made.params[NOTE] and "lt=global" in made.params[NOTE]
    assert NOTE not in webui.generate(f"{PAIR} {lora('lcm', '0.8:lt=global')}", {}).params


def test_the_same_lora_twice_is_numbered(webui):
    made = webui.generate(f"a cat {lora('lora', 0.8)} {lora('lora', 0.3)} {lora('loha', 0.5)}", {"maps": True})
    (shares,) = json.loads(made.params["LoRAtorio shares"])
    assert abs(sum(shares["mean"].values()) - 1) < 1e-3
    names = sorted(shares["mean"])
    # A1111 loads a LoRA once, whatever number of tags it has.
    assert names in (["e2e_loha", "e2e_lora (1)", "e2e_lora (2)"], ["e2e_loha", "e2e_lora"])


def test_trigger_words_that_hold_a_tag_are_words_only(webui, lora_dir):
    noted = Path(lora_dir) / "e2e_te.json"
    settings, prompt = {"trigger_words": True}, f"a cat {lora('te', 0.8)} {lora('locon', 0.6)}"
    try:
        noted.write_text(json.dumps({"activation text": "a red hat"}))
        expected = webui.generate(prompt, settings)
        noted.write_text(json.dumps({"activation text": "<lora:e2e_loha:1> a red hat"}))
        assert difference(webui.generate(prompt, settings), expected) == 0
        noted.write_text(json.dumps({"activation text": "a blue hat"}))
        assert difference(webui.generate(prompt, settings), expected) > 0
    finally:
        noted.unlink()


@pytest.mark.parametrize("beside", ["", lora("locon", 0.6)], ids=["alone", "beside a tag"])
def test_a_lora_added_by_the_webuis_setting_is_composed(webui, beside):
    added = {"override_settings": {"sd_lora": "e2e_lora", "extra_networks_default_multiplier": 0.8}}
    if not webui.offers("sd_lora"):
        pytest.skip("this WebUI has no such setting")
    by_tag = webui.generate(f"a cat {beside} {lora('lora', 0.8)}", {"verify": True})
    made = webui.generate(f"a cat {beside}", {"verify": True}, **added)
    assert difference(made, by_tag) == 0
    assert 0 < made.verification[0] < 1e-4 and VERIFY in made.params


def test_going_on_in_spite_of_a_damaged_file_is_the_ordinary_picture(webui):
    prompt = f"{PAIR} {lora('peft', 0.8)}"
    made = webui.generate(prompt, {}, **GO_ON)
    assert difference(made, webui.generate(prompt)) == 0
    assert SCRIPT in made.params[NOTE] and "e2e_peft" in made.params[NOTE]
