"""What the user is told: bad input, notes, verification, and what the infotext says."""

import math
from copy import copy
from dataclasses import astuple
from types import SimpleNamespace

import internals
import pytest
import torch
from equations import assert_close
from internals import LoratorioError, Settings
from oracle import latents as by_equations
from samples import NOTE, ON, TAGS, TEXT_TAGS, VERIFY, A, B, one, verified

# Bad input

BAD = {
    "value": (f"a cat {TAGS}", {**ON, "temperature": -1}, ["temperature", "-1", "1e-06"]),
    "name": (f"a cat {TAGS}", {**ON, "temprature": 1}, ["temprature", "temperature"]),
    "unknown": (f"a cat {TAGS} <lora:nowhere:1>", ON, ["nowhere"]),
    "unreadable": (f"a cat {TAGS} <lora:broken:1>", ON, ["broken"]),
    "foreign": (f"a cat {TAGS} <lora:foreign:1>", ON, ["foreign", "matches nothing"]),
}
MISFIT = f"a cat {TAGS} <lora:misfit:1>", ON, ["misfit", "none of the 1 layers"]


def add_bad_networks(host):
    host.add_broken("broken")
    host.add("misfit", {"to_q": "misfit"})


@pytest.mark.parametrize(("prompt", "settings", "words"), [*BAD.values(), MISFIT], ids=[*BAD, "misfit"])
def test_bad_input_stops(host, prompt, settings, words):
    add_bad_networks(host)
    p = host.request(prompt, settings)
    with pytest.raises(LoratorioError) as raised:
        host.processing.process_images(p)
    assert all(word in str(raised.value) for word in words), raised.value
    assert str(raised.value) in host.gradio.warnings
    assert not [message for message, _ in host.errors.reported if "LoRAtorio" in message]
    assert "launch_sampling" not in vars(p.sampler)
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert_close(latents, by_equations(host, [A, B], one("a cat")))
    host.assert_clean(p)


@pytest.mark.parametrize(("prompt", "settings", "words"), BAD.values(), ids=BAD)
def test_bad_input_may_go_on(host, prompt, settings, words):
    add_bad_networks(host)
    ordinary = host.merged_picture(prompt)
    host.gradio.warnings.clear()
    by_host = {message for message, _ in host.errors.reported}
    host.shared.opts.loratorio_stop_on_error = False
    p, latents = host.generate(prompt, settings)
    assert torch.equal(latents, ordinary)
    (message,) = p.comments
    assert p.extra_generation_params == {NOTE: message}
    assert message.endswith("This makes the picture the WebUI's ordinary one.")
    assert all(word in message for word in words), message
    assert message in host.gradio.warnings
    assert {message for message, _ in host.errors.reported} == by_host
    host.assert_clean(p)
    host.shared.opts.loratorio_stop_on_error = True
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], by_equations(host, [A, B], one("a cat")))


def test_a_network_missing_in_the_second_pass_stops_the_first(host, monkeypatch):
    rows = host.count_rows(monkeypatch)
    with pytest.raises(LoratorioError, match="nowhere"):
        host.generate(f"a cat {TAGS}", ON, enable_hr=True, hr_prompt="a cat <lora:nowhere:1>")
    assert rows == []


def test_mistyped_windows_stop_the_sampling(host):
    with pytest.raises(
        LoratorioError,
        match="'ltbegin', which is not known; the names are ltstart, ltend, lt, ltbox, ltat, ltshare, ltw",
    ):
        host.generate("a cat <lora:a:1:ltbegin=0.5>", ON)


def test_without_a_page_there_are_no_options_and_errors_still_stop(host):
    for name in [name for name in vars(host.shared.opts) if name.startswith("loratorio")]:
        delattr(host.shared.opts, name)
    with pytest.raises(LoratorioError, match="patch_size is 0"):
        host.generate(f"a cat {TAGS}", {**ON, "patch_size": 0})
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], by_equations(host, [A, B], one("a cat")))


def test_a_file_whose_values_are_no_numbers_is_refused_by_name(host, monkeypatch):
    internals.change_factors(host, monkeypatch, math.nan)
    with pytest.raises(LoratorioError, match="'a' holds values that are no numbers"):
        host.generate(f"a cat {TAGS}", ON)


def test_a_text_of_values_that_are_no_numbers_is_the_loras_that_makes_it(host):
    host.add("endless", {"fc1": "lora"}, size=math.inf)
    with pytest.raises(LoratorioError, match="the prediction with the LoRA 'endless' holds values") as raised:
        host.generate(f"a cat {TAGS} <lora:endless:0.8>", ON)
    assert "without any LoRA" not in str(raised.value)


# Notes


def test_layers_that_cannot_be_applied_are_counted(host):
    host.add("half", {"conv_in": "lora", "to_out": "misfit"})
    p, _ = host.generate("a cat <lora:half:1> <lora:b:0.6>", ON)
    assert "1 of 2 layers of the LoRA 'half'" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize("prompt", ["a cat", "a cat <lora:a:0>"])
def test_no_network_is_an_ordinary_picture_and_a_note(host, prompt):
    p, latents = host.generate(prompt, ON)
    host.assert_clean(p)
    assert torch.equal(latents, host.merged_picture(prompt))
    assert "no LoRA" in p.extra_generation_params[NOTE]
    assert list(p.comments) == [p.extra_generation_params[NOTE]] == host.gradio.warnings


def test_networks_switched_off_are_an_ordinary_picture_and_a_note(host):
    p, latents = host.generate(f"a cat {TAGS}", ON, disable_extra_networks=True)
    assert torch.equal(latents, host.merged_picture(f"a cat {TAGS}", disable_extra_networks=True))
    assert p.extra_generation_params == {
        NOTE: "LoRAtorio did nothing: LoRAs are switched off for this generation. "
        "This makes the picture the WebUI's ordinary one."
    }


def test_a_model_that_edits_pictures_is_an_ordinary_picture_and_a_note(host):
    host.shared.sd_model.cond_stage_key = "edit"
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert torch.equal(latents, host.merged_picture(f"a cat {TAGS}"))
    assert "InstructPix2Pix" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize(
    ("prompts", "ordinary", "composed"),
    [
        (("a cat", f"a cat {TAGS}"), "the first pass", True),
        ((f"a cat {TAGS}", "a cat"), "the hires pass", True),
        (("a cat", "a dog"), "the first pass", False),
    ],
)
def test_notes_name_the_pass_and_infotext_tells_whether_anything_was_composed(host, prompts, ordinary, composed):
    p, _ = host.generate(prompts[0], ON, enable_hr=True, hr_prompt=prompts[1])
    assert f"This makes {ordinary} the WebUI's ordinary one." in p.extra_generation_params[NOTE]
    assert ("LoRAtorio" in p.extra_generation_params) == composed


def test_a_note_is_written_once(host):
    p, _ = host.generate("a cat", ON, n_iter=3)
    assert p.extra_generation_params[NOTE].count("no LoRA") == 1


def test_notes_of_an_earlier_request_do_not_stay(host):
    p, _ = host.generate("a cat", {**ON, "verify": True})
    p.prompt = f"a cat {TAGS}"
    host.processing.process_images(p)
    assert NOTE not in p.extra_generation_params and VERIFY in p.extra_generation_params


def test_merge_says_that_windows_have_no_effect(host):
    p, _ = host.generate("a cat <lora:a:1:ltend=0.5>", {**ON, "method": "merge"})
    assert (
        "ltstart, ltend and ltw in the tag of a have no effect with the method merge" in p.extra_generation_params[NOTE]
    )


# Verification


def test_verify_reports_the_error(host):
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, n_iter=2)
    (comment,) = p.comments
    assert comment == f"LoRAtorio verify: {p.extra_generation_params[VERIFY]}"
    assert p.extra_generation_params[VERIFY].startswith("max relative error ")
    assert p.extra_generation_params[VERIFY].endswith("over 6 calls")
    assert verified(p) < 1e-12
    host.assert_clean(p)
    assert torch.equal(latents, host.generate(f"a cat {TEXT_TAGS}", ON, n_iter=2)[1])


def test_verify_finds_a_wrong_delta(host, monkeypatch):
    internals.change_factors(host, monkeypatch, 1.5)
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True})
    assert verified(p) > 1e-3


def test_verify_says_when_there_was_nothing_to_verify(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True, "start": 0.9})
    assert p.extra_generation_params[VERIFY] == "nothing was composed, so nothing was verified"


# Infotext and API


def test_infotext_round_trip(host):
    settings = Settings(
        enabled=True,
        method="loratorio",
        patch_size=3,
        temperature=0.1,
        lam=0.25,
        top_k=2,
        start=0.1,
        end=0.9,
        text_encoder="merged",
        adapters_per_pass=2,
        verify=True,
    )
    p, _ = host.generate(f"a cat {TAGS}", list(astuple(settings)))
    host.script.ui(False)
    pasted = [read({"LoRAtorio": p.extra_generation_params["LoRAtorio"]}) for _, read in host.script.infotext_fields]
    assert tuple(pasted) == astuple(settings)
    assert "," not in p.extra_generation_params["LoRAtorio"], "a comma would end the field"
    without = [read({}) for _, read in host.script.infotext_fields]
    assert without == [False, *[None] * (len(without) - 1)]


def test_one_dict_equals_the_positional_form(host):
    settings = Settings(enabled=True, temperature=0.2, lam=0.3)
    p, latents = host.generate(f"a cat {TAGS}", {"enabled": True, "temperature": 0.2, "lam": 0.3})
    q, same = host.generate(f"a cat {TAGS}", list(astuple(settings)))
    assert torch.equal(latents, same)
    assert p.extra_generation_params == q.extra_generation_params == {"LoRAtorio": settings.to_infotext()}


def test_defaults_are_the_page_s_and_not_a_request_s(host):
    host.shared.opts.loratorio_default_temperature = 0.7
    p, _ = host.generate(f"a cat {TAGS}", ON)
    assert p.extra_generation_params["LoRAtorio"] == Settings(enabled=True).to_infotext()


class PreparesAnew:
    """What ADetailer does with all scripts and copies of the request, when an image is there."""

    def __init__(self, host):
        self.script = host.scripts.Script()
        self.script.postprocess_image = self.postprocess_image
        self.told = []

    def postprocess_image(self, p, pp):
        p.scripts.run("postprocess", copy(p), SimpleNamespace(images=[], infotexts=[], index_of_first_image=0))
        p.scripts.run("before_process", copy(p))
        self.told.append(dict(p.extra_generation_params))


def test_what_is_told_stays_where_an_extension_has_scripts_prepare_themselves_anew(host):
    p = host.request(f"a cat {TAGS}", {**ON, "verify": True, "maps": True, "method": "switch"})
    anew = PreparesAnew(host)
    p.scripts.scripts_and_args.append((anew.script, ()))
    host.processing.process_images(p)
    assert anew.told == [p.extra_generation_params]
    assert "over 3 calls" in anew.told[0][VERIFY] and "no weight maps" in anew.told[0][NOTE]
    assert host.errors.reported == []
