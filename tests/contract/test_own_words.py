"""Words that one LoRA reads alone, on every host."""

import internals
import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError
from oracle import latents as by_equations
from samples import NOTE, ON, TAGS, TEXT, A, B, one

OWN = "<ltp:a:(red hat:1.3), 12:30>"
WORDS = "(red hat:1.3), 12:30"


def test_words_are_in_the_loras_own_prompt(host, sampler):
    p, latents = host.generate(f"a cat {TAGS} {OWN}", ON, sampler_name=sampler, negative_prompt="bad")
    assert_close(latents, by_equations(host, [A, B], one("a cat"), "bad", sampler=sampler, words=(WORDS, "")))
    assert differs(latents, by_equations(host, [A, B], one("a cat"), "bad", sampler=sampler))
    assert NOTE not in p.extra_generation_params and host.errors.reported == []
    host.assert_clean(p)


def test_words_beside_trigger_words_and_sub_prompts(host, monkeypatch):
    internals.set_trigger_words(monkeypatch, {"a": "word of a", "b": ""})
    prompt = f"a cat AND a dog :0.5 {TAGS} <ltp:b:blue> <ltp:a:red> <ltp:a:hat>"
    _, latents = host.generate(prompt, {**ON, "trigger_words": True})
    right = by_equations(host, [A, B], [[("a cat", 1.0), ("a dog", 0.5)]], words=("word of a, red, hat", "blue"))
    assert_close(latents, right)


def test_words_of_a_lora_with_a_text_encoder_and_of_one_in_the_pool(host):
    host.add_alias("b", "bert")
    _, latents = host.generate(
        "a cat <lora:a:0.8> <lora:text:0.7:0.9> <ltp:text:red> <ltp:bert:blue>", {**ON, "pool": "b:0.6"}
    )
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat"), words=("", "red", "blue")))


def test_a_second_pass_has_its_own(host):
    fields = {"enable_hr": True, "hr_prompt": f"a dog {TAGS} <ltp:b:blue>", "steps": 2}
    _, latents = host.generate(f"a cat {TAGS} {OWN}", ON, **fields)
    first = by_equations(host, [A, B], one("a cat"), words=(WORDS, ""), steps=2)
    x = torch.nn.functional.interpolate(first, scale_factor=2)
    right = by_equations(host, [A, B], one("a dog"), x=x, size=(96, 80), steps=2, words=("", "blue"))
    assert_close(latents, right)


def test_a_global_lora_with_a_region_has_words(host):
    tags = "<lora:a:0.8> <lora:b:0.6:lt=global:ltat=top> <ltp:b:blue>"
    _, latents = host.generate(f"a cat {tags}", ON)
    right = by_equations(host, [A, B], one("a cat"), boxes=[None, (0, 0, 1, 0.5)], gated=[1], words=("", "blue"))
    assert_close(latents, right)


@pytest.mark.parametrize(
    "tag, told",
    [
        ("<ltp:horse:red>", "<ltp:horse:...>, but there is no LoRA 'horse'; there is a, b."),
        ("<ltp:a>", "<ltp:a>; it must be <ltp:NAME:words>"),
        ("<ltp:a: >", "<ltp:a: >; it must be <ltp:NAME:words>"),
        ("<ltp::red>", "<ltp::red>; it must be <ltp:NAME:words>"),
        ("<ltp:a:red AND blue>", "it must not hold AND"),
        ("<lora:text:1:lt=global> <ltp:text:red>", "the LoRA 'text' is global"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"method": "merge"}], ids=str)
def test_what_cannot_be_read_stops(host, tag, told, settings):
    with pytest.raises(LoratorioError) as error:
        host.generate(f"a cat {TAGS} {tag}", {**ON, **settings})
    assert told in str(error.value)


def test_words_of_a_lora_that_is_switched_off_are_none(host):
    _, latents = host.generate("a cat <lora:a:0> <lora:b:0.6> <ltp:a:red>", ON)
    assert_close(latents, by_equations(host, [B], one("a cat")))


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"method": "merge"}, "has no effect with the method merge"),
        ({"text_encoder": "merged"}, "has no effect with 'Text encoder' set to 'merged'"),
        ({"end": 0.5}, "has no effect outside of Start and End"),
    ],
)
def test_where_words_have_no_effect_is_told(host, settings, told):
    p, _ = host.generate(f"a cat {TAGS} {OWN}", {**ON, **settings})
    assert told in p.extra_generation_params[NOTE]


def test_without_the_extension_the_tag_is_nothing(host):
    assert torch.equal(host.merged_picture(f"a cat {TAGS} {OWN}"), host.merged_picture(f"a cat {TAGS}"))
