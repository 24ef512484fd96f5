"""Strengths that change over the sampling, on every host."""

import internals
import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError
from oracle import latents as by_equations
from samples import NOTE, ON, TEXT, A, B, one, verified


def up(fraction):
    """`ltw=0.25@0,1@0.5,0.5@1`."""
    return 0.25 + 1.5 * fraction if fraction <= 0.5 else 1.5 - fraction


def down(fraction):
    """`ltw=1@0,-0.5@1`."""
    return 1 - 1.5 * fraction


UP, DOWN = "ltw=0.25@0,1@0.5,0.5@1", "ltw=1@0,-0.5@1"


@pytest.mark.parametrize("settings", [{}, {"adapters_per_pass": 1}, {"method": "composite"}, {"lam": 1.0}], ids=str)
def test_strengths_follow_their_ramps(host, every_sampler, settings):
    tags = f"<lora:a:0.8:{UP}> <lora:text:0.7:0.9:{DOWN}> <lora:b:0.6>"
    fields = {"sampler_name": every_sampler, "steps": 4}
    p, latents = host.generate(f"a cat {tags}", {**ON, **settings, "verify": True}, **fields)
    fields = {"settings": settings, "sampler": every_sampler, "steps": 4}
    tolerance = max(host.dense_tolerance, 1e-9)
    right = by_equations(host, [A, TEXT, B], one("a cat"), ramps=[up, down, None], **fields)
    assert_close(latents, right, tolerance)
    assert differs(latents, by_equations(host, [A, TEXT, B], one("a cat"), **fields))
    assert verified(p) < tolerance and NOTE not in p.extra_generation_params
    host.assert_clean(p)


def test_a_global_lora_has_a_ramp(host):
    tags = f"<lora:text:0.7:0.9:lt=global:{DOWN}> <lora:b:0.6:{UP}>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True}, steps=4)
    fields = {"everywhere": [TEXT], "of_everywhere": [down], "ramps": [up], "steps": 4}
    assert_close(latents, by_equations(host, [B], one("a cat"), **fields), max(host.dense_tolerance, 1e-9))
    assert verified(p) < 1e-5
    host.assert_clean(p)


def test_every_kind_has_a_ramp(host):
    """Also those that read the weight that they change."""
    host.add("under", host.under, seed=7)
    host.add("over", host.over, seed=8)
    p, latents = host.generate(f"a cat <lora:over:0.6:{UP}> <lora:under:0.5:{DOWN}>", {**ON, "verify": True}, steps=4)
    adapters = [("over", 0.6, 0.6), ("under", 0.5, 0.5)]
    assert_close(latents, by_equations(host, adapters, one("a cat"), ramps=[up, down], steps=4), host.dense_tolerance)
    assert verified(p) < 1e-5
    host.assert_clean(p)


def test_kinds_that_are_not_in_proportion_to_their_strength(forge):
    forge.add("odd", {"to_q": "squared", "to_k": "lora", "to_out": "squared"})
    p, latents = forge.generate(f"a cat <lora:odd:0.9:{UP}> <lora:b:0.6>", {**ON, "verify": True}, steps=4)
    right = by_equations(forge, [("odd", 0.9, 0.9), B], one("a cat"), ramps=[up, None], steps=4)
    assert_close(latents, right, forge.dense_tolerance)
    assert verified(p) < 1e-5
    forge.assert_clean(p)


def test_a_ramp_of_0_and_1_is_a_window(host):
    ramp, window = (
        host.generate(f"a cat <lora:a:0.8:{part}> <lora:b:0.6>", ON, steps=4)[1]
        for part in ("ltw=0@0,0@0.25,1@0.25,1@0.75,0@0.75", "ltstart=0.25:ltend=0.75")
    )
    assert_close(ramp, window, 1e-15)


def test_a_ramp_beside_block_weights(host, monkeypatch):
    internals.name_blocks(monkeypatch, {"conv_in": "IN00", "conv_out": "OUT11"})
    lbw = ",".join(["1", "0.5", *["1"] * 23, "0"])
    tags = f"<lora:a:0.8:lbw={lbw}:ltw=0.5@0> <lora:b:0.6>", f"<lora:a:0.4:lbw={lbw}> <lora:b:0.6>"
    (p, ramped), (_, right) = (host.generate(f"a cat {tag}", {**ON, "verify": True}) for tag in tags)
    assert_close(ramped, right, 1e-9)
    assert verified(p) < 1e-9


def test_a_ramp_starts_anew_in_a_second_pass(host):
    tags = f"<lora:a:0.8:{UP}> <lora:b:0.6>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True}, enable_hr=True, steps=2)
    first = by_equations(host, [A, B], one("a cat"), steps=2, ramps=[up, None])
    fields = {"x": torch.nn.functional.interpolate(first, scale_factor=2), "steps": 2, "size": (96, 80)}
    assert_close(latents, by_equations(host, [A, B], one("a cat"), ramps=[up, None], **fields))
    assert verified(p) < 1e-9


def test_a_ramp_that_cannot_be_read_stops(host):
    with pytest.raises(LoratorioError, match=r"the LoRA 'a' has ltw=1@0\.5,0@0\.2; it must be factor@fraction"):
        host.generate("a cat <lora:a:0.8:ltw=1@0.5,0@0.2>", ON)


def test_merge_has_no_ramps(host):
    p, _ = host.generate(f"a cat <lora:a:0.8:{UP}>", {**ON, "method": "merge"})
    assert "ltw in the tag of a have no effect with the method merge" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize("settings", [{"start": 0.5}, {"end": 0.5}, {"start": 0.25, "end": 0.75}], ids=str)
def test_outside_of_start_and_end_the_hosts_merge_has_the_tags_strength(host, settings):
    """And so it is told, for the LoRA whose ramp is another there."""
    composed = f"ltw=1@{settings.get('start', 0)},0.5@0.5,1@{settings.get('end', 1)}"
    tags = f"<lora:a:0.8:ltw=0.5@0> <lora:b:0.6:{composed}>"
    p, _ = host.generate(f"a cat {tags}", {**ON, **settings, "verify": True}, steps=4)
    note = p.extra_generation_params[NOTE]
    assert "ltw in the tag of a have no effect outside of Start and End: there LoRAs are merged, at the str" in note
    assert verified(p) < 1e-9
    host.assert_clean(p)


def test_merged_steps_are_those_without_a_ramp(host):
    """In the merged second half a ramp makes no difference."""
    p, latents = host.generate("a cat <lora:a:0.8:ltw=1@0,1@0.5,0@0.5> <lora:b:0.6>", {**ON, "end": 0.5}, steps=4)
    _, plain = host.generate("a cat <lora:a:0.8> <lora:b:0.6>", {**ON, "end": 0.5}, steps=4)
    assert_close(latents, plain, 1e-15)
    assert "have no effect outside of Start and End" in p.extra_generation_params[NOTE]
