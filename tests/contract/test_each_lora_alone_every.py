"""Each LoRA alone in some steps only, against the equations on both hosts."""

import pytest
import torch
from equations import assert_close, differs
from oracle import latents as by_equations
from samples import ON, TAGS, TEXT, A, B, one, verified

CLOSE = 1e-6  # what is kept is in single precision
TEXT_TAGS = "<lora:text:0.7:0.9> <lora:a:0.8> <lora:b:0.6>"
"""In the order in which A1111's merge is the sum: kinds that change the weight they find are each layer's first."""

FAST = {"lam": 1.0, "refresh_every": 3}


@pytest.mark.parametrize(
    "settings",
    [
        {"refresh_every": 2},
        {"refresh_every": 3, "lam": 0.0},
        {"refresh_every": 2, "guidance_every": 3, "top_k": 1, "patch_size": 4},
        {"refresh_every": 2, "method": "composite"},
        {"refresh_every": 2, "text_encoder": "merged"},
        {"refresh_every": 2, "start": 0.3, "end": 0.9, "lam": 1.0},
        FAST,
    ],
    ids=str,
)
def test_every_setting(host, settings, sampler):
    """With LoRAs that read the prompt by themselves; all together read what the host reads with all of them."""
    fields = {"steps": 5, "negative_prompt": "bad", "sampler_name": sampler}
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **settings, "verify": True}, **fields)
    right = by_equations(host, [TEXT, A, B], one("a cat"), "bad", settings=settings, sampler=sampler, steps=5)
    assert_close(latents, right, CLOSE)
    assert differs(latents, by_equations(host, [TEXT, A, B], one("a cat"), "bad", sampler=sampler, steps=5))
    assert verified(p) < 1e-9
    host.assert_clean(p)


def test_rows_of_each_step(host, monkeypatch):
    rows = host.count_rows(monkeypatch)
    host.generate(f"a cat {TAGS}", {**ON, **FAST}, steps=5)
    assert rows == [5, 2, 2, 5, 2]
    rows.clear()
    host.generate(f"a cat {TAGS}", {**ON, "refresh_every": 2}, steps=3)
    assert rows == [7, 2, 7]


def test_every_step_is_the_picture_without_the_setting(host):
    _, without = host.generate(f"a cat {TEXT_TAGS}", ON)
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "refresh_every": 1})
    assert torch.equal(latents, without)


def test_where_a_step_takes_two_calls(host):
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **FAST}, sampler_name="Heun", steps=5)
    right = by_equations(host, [TEXT, A, B], one("a cat"), settings=FAST, sampler="Heun", steps=5)
    assert_close(latents, right, CLOSE)


def test_batches_with_sub_prompts_in_any_portions(host):
    prompts = [f"a cat AND a dog:0.4 {TEXT_TAGS}", "a bird AND a fish:0.4"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 0.4)]]
    settings = {"refresh_every": 2}
    right = by_equations(host, [TEXT, A, B], subprompts, "bad", settings=settings)
    fields = {"batch_size": 2, "negative_prompt": "bad", "portions": host.extreme_portions}
    for _, latents in host.in_portions(prompts, {**ON, **settings}, **fields):
        assert_close(latents, right, CLOSE)


def test_loras_that_come_and_go(host):
    """All are evaluated alone in the step in which others take part than before."""
    tags = "<lora:text:0.7:0.9:ltend=0.5> <lora:a:0.8> <lora:b:0.6>"
    _, latents = host.generate(f"a cat {tags}", {**ON, **FAST}, steps=6)
    windows = [(0, 0.5), (0, 1), (0, 1)]
    right = by_equations(host, [TEXT, A, B], one("a cat"), settings=FAST, steps=6, windows=windows)
    assert_close(latents, right, CLOSE)


def test_global_loras_and_regions(host):
    tags = "<lora:text:0.7:0.9:lt=global:ltat=top> <lora:a:0.8> <lora:b:0.6:ltat=right>"
    p, latents = host.generate(f"a cat {tags}", {**ON, **FAST, "verify": True}, steps=4)
    boxes = [(0, 0, 1, 0.5), None, (0.5, 0, 1, 1)]
    right = by_equations(host, [TEXT, A, B], one("a cat"), settings=FAST, steps=4, boxes=boxes, gated=[0])
    assert_close(latents, right, CLOSE)
    assert verified(p) < 1e-9
    _, latents = host.generate(f"a cat {TAGS} <lora:text:0.7:0.9:lt=global>", {**ON, **FAST}, steps=4)
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings=FAST, steps=4, everywhere=[TEXT]), CLOSE)


def test_strengths_over_steps(host):
    """All together have the strengths of the step at hand."""
    p, latents = host.generate(
        "a cat <lora:a:0.8:ltw=1@0,0.25@1> <lora:b:0.6>", {**ON, **FAST, "verify": True}, steps=4
    )
    ramps = [lambda fraction: 1 - 0.75 * fraction, None]
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings=FAST, steps=4, ramps=ramps), CLOSE)
    assert verified(p) < 1e-9


def test_a_second_pass_begins_with_each_lora_alone(host):
    p, latents = host.generate(f"a cat {TAGS}", {**ON, **FAST}, enable_hr=True, hr_second_pass_steps=2, steps=2)
    first = by_equations(host, [A, B], one("a cat"), settings=FAST, steps=2)
    x = torch.nn.functional.interpolate(first, scale_factor=2)
    assert_close(latents, by_equations(host, [A, B], one("a cat"), x=x, steps=2, size=(96, 80), settings=FAST), CLOSE)
    host.assert_clean(p)


def test_a_merge_that_depends_on_the_order_is_not_verified(host, monkeypatch):
    """Two LoRAs by rules of the layer's own weight: what they change together is the sum of what each changes."""
    from lib_loratorio.deltas.bank import AdapterBank

    p, _ = host.generate(f"a cat {TAGS}", {**ON, **FAST, "verify": True}, steps=2)
    everything = verified(p)
    monkeypatch.setattr(AdapterBank, "adds_up", lambda self, adapters: False)
    compared = host.count_rows(monkeypatch)
    host.generate(f"a cat {TAGS}", {**ON, **FAST, "verify": True}, steps=2)
    assert everything < 1e-9 and sum(compared) == 5 + 2 + 4 + 1


@pytest.mark.parametrize("settings", [FAST, {"refresh_every": 2}], ids=str)
def test_without_guidance(host, settings):
    """As distilled models have it: there is no negative prompt."""
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **settings}, cfg_scale=1.0, steps=4)
    assert_close(latents, by_equations(host, [TEXT, A, B], one("a cat"), cfg=1.0, settings=settings, steps=4), CLOSE)
