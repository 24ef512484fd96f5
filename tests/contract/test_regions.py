"""Regions of LoRAs: where each may be, on every host."""

from types import SimpleNamespace

import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError
from oracle import latents as by_equations
from samples import NOTE, ON, TEXT, A, B, one, verified

LEFT, RIGHT, TOP, PART = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0.25, 0.25, 0.75, 1)

TAGS = "<lora:a:0.8:ltat=left> <lora:text:0.7:0.9> <lora:b:0.6:ltbox=0.25,0.25,0.75,1>"
APART = "<lora:a:0.8:ltat=left> <lora:b:0.6:ltbox=0.25,0.25,0.75,1>"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"feather": 0.0},
        {"feather": 0.5, "lam": 1.0},
        {"lam": 0.0, "adapters_per_pass": 1},
        {"patch_size": 2},
        {"top_k": 1},
        {"method": "composite"},
        {"method": "switch"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tags", [TAGS, APART], ids=["one everywhere", "none everywhere"])
def test_adapters_take_part_in_their_regions(host, sampler, settings, tags):
    steps = 6 if settings.get("method") == "switch" else 2
    p, latents = host.generate(f"a cat {tags}", {**ON, **settings, "verify": True}, sampler_name=sampler, steps=steps)
    adapters, boxes = ([A, TEXT, B], [LEFT, None, PART]) if tags == TAGS else ([A, B], [LEFT, PART])
    fields = {"settings": settings, "sampler": sampler, "steps": steps}
    assert_close(latents, by_equations(host, adapters, one("a cat"), boxes=boxes, **fields))
    assert differs(latents, by_equations(host, adapters, one("a cat"), **fields))
    assert verified(p) < 1e-9 and NOTE not in p.extra_generation_params
    host.assert_clean(p)


def test_regions_in_a_batch_with_sub_prompts(host):
    prompts = [f"a cat AND a dog:0.4 {TAGS}", "a bird AND a fish:0.4"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 0.4)]]
    right = by_equations(host, [A, TEXT, B], subprompts, "bad", steps=2, boxes=[LEFT, None, PART])
    fields = {"batch_size": 2, "negative_prompt": "bad", "steps": 2, "portions": host.extreme_portions}
    for _, latents in host.in_portions(prompts, ON, **fields):
        assert_close(latents, right)


def test_regions_scale_with_a_second_pass(host):
    p, latents = host.generate(f"a cat {APART}", ON, enable_hr=True, hr_second_pass_steps=2)
    boxes = [LEFT, PART]
    x = torch.nn.functional.interpolate(by_equations(host, [A, B], one("a cat"), boxes=boxes), scale_factor=2)
    assert_close(latents, by_equations(host, [A, B], one("a cat"), x=x, steps=2, size=(96, 80), boxes=boxes))
    host.assert_clean(p)


@pytest.mark.parametrize("settings", [{}, {"lam": 1.0}, {"method": "composite"}, {"guidance_every": 2}], ids=str)
def test_a_global_lora_with_a_region_is_added_there(host, settings):
    tags = "<lora:a:0.8> <lora:text:0.7:0.9:lt=global:ltat=top> <lora:b:0.6:ltat=right>"
    p, latents = host.generate(f"a cat {tags}", {**ON, **settings, "verify": True})
    right = by_equations(host, [A, TEXT, B], one("a cat"), settings=settings, boxes=[None, TOP, RIGHT], gated=[1])
    assert_close(latents, right, 1e-6 if "guidance_every" in settings else 1e-9)
    assert verified(p) < 1e-9
    host.assert_clean(p)


def test_the_region_of_inpainting_only_what_is_masked_is_the_whole_pictures(host):
    """The host says where it will paste what it samples; the cut-out is a part of the picture."""

    def cut_out(p):
        p.init_images, p.paste_to = [SimpleNamespace(size=(200, 100))], (50, 20, 120, 60)

    _, latents = host.generate(f"a cat {APART}", ON, before=[cut_out])
    window = (50 / 200, 20 / 100, 170 / 200, 80 / 100)
    assert_close(latents, by_equations(host, [A, B], one("a cat"), boxes=[LEFT, PART], window=window))


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"method": "merge"}, "in the tag of a, b have no effect with the method merge"),
        ({"end": 0.5}, "in the tag of a, b have no effect outside of Start and End"),
    ],
)
def test_where_regions_have_no_effect_is_told(host, settings, told):
    p, _ = host.generate(f"a cat {APART}", {**ON, **settings})
    assert told in p.extra_generation_params[NOTE]


def test_a_region_that_cannot_be_read_stops(host):
    with pytest.raises(LoratorioError, match="the LoRA 'a' has ltbox=0,0,3,1; it must be four fractions"):
        host.generate("a cat <lora:a:0.8:ltbox=0,0,3,1>", ON)


def test_maps_have_what_is_left_to_the_base_in_no_share(host):
    import json

    p, _ = host.generate(f"a cat {APART}", {**ON, "maps": True, "feather": 0}, steps=1)
    (share,) = json.loads(p.extra_generation_params["LoRAtorio shares"])
    assert 0 < sum(share["mean"].values()) < 0.9
