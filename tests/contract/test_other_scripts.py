"""Other extensions that are recognised: what is declined beside them, and what is told."""

import importlib

import pytest
import torch
from equations import assert_close
from internals import LoratorioError
from oracle import latents as by_equations
from samples import NOTE, ON, TAGS, A, B, one


def beside(host, title, args, prompt=f"a cat {TAGS}", settings=ON):
    """A request with another extension's script of this title, which does nothing."""
    p = host.request(prompt, settings)
    script = host.scripts.Script()
    script.title = lambda: title
    p.scripts.scripts_and_args.append((script, args))
    latents = host.processing.process_images(p)
    assert host.errors.reported == []
    return p, latents


@pytest.mark.parametrize("title", ["TeaCache", "Block Cache", "First Block Cache / TeaCache"])
def test_caches_of_one_models_results_are_declined(host, title):
    p, latents = beside(host, title, (True, 0.4))
    assert torch.equal(latents, host.merged_picture(f"a cat {TAGS}"))
    assert p.extra_generation_params[NOTE].startswith(f"LoRAtorio did nothing: {title} goes on with what one model")
    p, latents = beside(host, title, (False, 0.4))
    assert_close(latents, by_equations(host, [A, B], one("a cat")))
    assert NOTE not in p.extra_generation_params


def test_with_merge_nothing_is_declined(host):
    p, _ = beside(host, "TeaCache", (True,), settings={**ON, "method": "merge"})
    assert NOTE not in p.extra_generation_params


def told(host, *args, **fields):
    p, _ = beside(host, *args, **fields)
    return p.extra_generation_params.get(NOTE, "")


def test_composable_loras_rule(host):
    assert "Composable LoRA's rule has no effect" in told(host, "Composable Lora", (True, False))
    assert told(host, "Composable Lora", (False, True)) == ""


FACE = {"ad_model": "face_yolov8n.pt"}


@pytest.mark.parametrize(
    ("args", "options", "is_told"),
    [
        ((True, False, FACE), {}, True),
        ((FACE,), {}, True),
        ((False, False, FACE), {}, False),
        ((True, False, {"ad_model": "None"}), {}, False),
        ((True, False, FACE), {"ad_script_names": "dynamic_prompting, loratorio"}, False),
        ((True, False, FACE), {"ad_script_names": "dynamic_prompting"}, True),
        ((True, False, FACE), {"ad_only_selected_scripts": False}, False),
    ],
)
def test_adetailers_passes(host, monkeypatch, args, options, is_told):
    for name, value in options.items():
        monkeypatch.setattr(host.shared.opts, name, value, raising=False)
    assert ("add loratorio to 'Script names to apply to ADetailer'" in told(host, "ADetailer", args)) == is_told


# loractl, which puts other values in place of what the host has read from a tag


def with_loractl(monkeypatch):
    extra_networks = importlib.import_module("modules.extra_networks")
    activate = extra_networks.activate

    def replacing(p, data):
        loras = data.get("lora", [])
        if not any(mark in item for params in loras for item in params.items for mark in "@~"):
            activate(p, data)
        for params in loras:
            params.positional, params.named = [params.items[0], 1], {}

    monkeypatch.setattr(extra_networks, "activate", replacing)


@pytest.mark.parametrize("strength", ["1@0,0@0.5", "0@0;1@0.5", "unet=0~0,1~1", "0.8:hr=1@0,0@1"])
def test_schedules_are_refused_by_name(host, monkeypatch, strength):
    with_loractl(monkeypatch)
    with pytest.raises(LoratorioError, match=r"the LoRA 'a' has the strength .*, a schedule of loractl"):
        host.generate(f"a cat <lora:a:{strength}> <lora:b:0.6>", ON)


def test_tags_are_read_as_they_are_written(host, monkeypatch):
    tags = "<lora:a:0.8:ltend=0.5:hr=0.5> <lora:b:0.6>"
    with_loractl(monkeypatch)
    p, latents = host.generate(f"a cat {tags}", ON)
    assert_close(latents, by_equations(host, [A, B], one("a cat"), windows=[(0, 0.5), (0, 1)]))
    assert NOTE not in p.extra_generation_params
