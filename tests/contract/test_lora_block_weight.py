"""Block weights in tags: factors on layers, in text encoders, in notes, and beside the extension LoRA Block Weight."""

import importlib
import json
from types import SimpleNamespace

import internals
import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError
from oracle import latents as by_equations
from samples import NOTE, ON, SHARES, TEXT, VERIFY, B, one, verified

BLOCKS = {"conv_in": "IN01", "to_q": "IN02", "to_k": "M00", "conv_out": "OUT03", "to_v": "OUT04", "fc": "BASE"}
"""Of the stand-ins' layers. All others are of none."""

NUMBERS = {"BASE": 0.5, "IN01": 0.5, "IN02": -1, "M00": 0.25, "OUT03": 0, "OUT04": 1}
ORDER = "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split()
LBW = ",".join(str(NUMBERS.get(block, 0)) for block in ORDER)
FACTORS = {layer: NUMBERS[block] for layer, block in {**BLOCKS, "fc1": "BASE", "fc2": "BASE"}.items() if layer != "fc"}
"""What this makes of each layer."""


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    internals.name_blocks(monkeypatch, BLOCKS)


def weighted(host, *adapters):
    """These, of files whose layers are multiplied so."""
    for name, *_ in adapters:
        host.add_weighted(f"{name} weighted", name, FACTORS)
    return [(f"{name} weighted", *strengths) for name, *strengths in adapters]


@pytest.mark.parametrize("settings", [{}, {"lam": 0.0}, {"method": "composite"}], ids=str)
def test_factors_on_layers(host, settings):
    fields = {"sampler_name": "Heun", "negative_prompt": "bad"}
    tags = f"<lora:a:0.8: LBW = {LBW} > <lora:text:0.7:0.9> <lora:b:0.6>"
    p, latents = host.generate(f"a cat {tags}", {**ON, **settings, "verify": True}, **fields)
    adapters = [*weighted(host, ("a", 0.8, 0.8)), TEXT, B]
    right = by_equations(host, adapters, one("a cat"), "bad", sampler="Heun", settings=settings)
    assert_close(latents, right, host.dense_tolerance)
    assert verified(p) < host.dense_tolerance and NOTE not in p.extra_generation_params
    host.assert_clean(p)


def test_factors_on_text_encoders(host):
    tags = f"<lora:text:0.7:0.9:lbw={LBW}> <lora:b:0.6:lbw=ALL> <lora:other:1.5>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True})
    adapters = [*weighted(host, TEXT), ("b", 0.6, 0.6), ("other", 1.5, 1.5)]
    assert_close(latents, by_equations(host, adapters, one("a cat")), host.dense_tolerance)
    host.assert_clean(p)


def test_one_file_with_two_text_encoders(host):
    """Hosts know by name and strength what they have merged, and read both texts one after the other."""
    p, latents = host.generate(f"a cat <lora:text:0.7:0.9:lbw={LBW}> <lora:text:0.7:0.9:lbw=ALL>", ON)
    host.add_weighted("text all", "text", {layer: 1 for layer in FACTORS})
    adapters = [*weighted(host, TEXT), ("text all", 0.7, 0.9)]
    assert_close(latents, by_equations(host, adapters, one("a cat")), host.dense_tolerance)
    host.assert_clean(p)


def test_a_text_encoder_that_is_switched_off(host):
    """The WebUI's own conditions have the LoRA all the same."""
    off = ",".join(["0", *["1"] * 16])
    p, latents = host.generate(f"a cat <lora:text:0.7:0.9:lbw={off}> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(host, [("text", 0.0, 0.9), B], one("a cat")), host.dense_tolerance)
    host.assert_clean(p)


def test_a_global_lora_with_factors(host):
    tags = f"<lora:a:0.8:lt=global:lbw={LBW}> <lora:text:0.7:0.9> <lora:b:0.6>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True})
    everywhere = weighted(host, ("a", 0.8, 0.8))
    right = by_equations(host, [TEXT, B], one("a cat"), everywhere=everywhere)
    assert_close(latents, right, host.dense_tolerance)
    assert verified(p) < host.dense_tolerance
    host.assert_clean(p)


def test_one_file_with_two_lists(host):
    rest = ",".join(str(1 - NUMBERS.get(block, 0)) for block in ORDER)
    tags = f"<lora:b:0.6:lbw={LBW}> <lora:b:0.6:lbw={rest}> <lora:b:0.6>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True})
    host.add_weighted("b rest", "b", {layer: 1 - factor for layer, factor in FACTORS.items()})
    adapters = [*weighted(host, B), ("b rest", 0.6, 0.6), B]
    assert_close(latents, by_equations(host, adapters, one("a cat")), host.dense_tolerance)
    assert verified(p) < host.dense_tolerance


@pytest.mark.parametrize("batches", [1, 2])
def test_a_second_pass_with_other_numbers(host, batches):
    first, second = f"<lora:b:0.6:lbw={LBW}>", "<lora:b:0.6:lbw=ALL>"
    fields = {"enable_hr": True, "hr_prompt": f"a dog <lora:a:0.8> {second}", "n_iter": batches}
    p, latents = host.generate(f"a cat <lora:a:0.8> {first}", ON, **fields)
    a = ("a", 0.8, 0.8)
    x = torch.cat([by_equations(host, [a, *weighted(host, B)], one("a cat"), seed=seed + 1) for seed in range(batches)])
    x = torch.nn.functional.interpolate(x, scale_factor=2)
    right = by_equations(host, [a, B], one("a dog") * batches, x=x, size=(96, 80))
    assert_close(latents, right, host.dense_tolerance)
    host.assert_clean(p)


def test_nothing_left_of_a_lora_is_no_lora(host):
    host.add("some", {"conv_in": "lora", "to_q": "lora"})
    p, latents = host.generate("a cat <lora:some:0.8:lbw=NONE> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(host, [B], one("a cat")))
    host.assert_clean(p)


def test_random_numbers_come_again_with_the_seed(host):
    draws = "<lora:b:0.6:lbw=" + ",".join(["R"] * 17) + ">"
    first, again, other = (
        host.generate(f"a cat {draws} <lora:a:0.8>", {**ON, "lam": 0.0}, seed=seed)[1] for seed in (1, 1, 2)
    )
    _, plain = host.generate("a cat <lora:b:0.6> <lora:a:0.8>", {**ON, "lam": 0.0}, seed=1)
    assert torch.equal(first, again) and differs(first, plain) and differs(first, other)


def test_steps_of_tags(host):
    tags = "<lora:a:0.8:stop=4> <lora:text:0.7:0.9:step=2-6> <lora:b:0.6:start=3>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True}, steps=8)
    windows = [(0, 4 / 8), (2 / 8, 6 / 8), (3 / 8, 1)]
    a = ("a", 0.8, 0.8)
    assert_close(latents, by_equations(host, [a, TEXT, B], one("a cat"), steps=8, windows=windows))
    host.assert_clean(p)


# What is told


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("lbw=OUTAL", r"'a' has lbw=OUTAL, which is no preset \(did you mean OUTALL\?\)"),
        ("lbw=1,0,1", "'a' has lbw=1,0,1, which are 3 numbers; it must be 12 numbers"),
        ("lbw=FLUXALL", "'a' has lbw=FLUXALL, 61 numbers; this model needs 12, 17, 20 or 26"),
        ("start=0.3", "'a' has start=0.3; it must be a whole number of steps"),
    ],
)
def test_what_cannot_be_read_stops(host, tag, message):
    with pytest.raises(LoratorioError, match=message):
        host.generate(f"a cat <lora:a:0.8:{tag}> <lora:b:0.6>", ON)


@pytest.mark.parametrize(
    ("tag", "settings", "words"),
    [
        ("lbw=ALL0.5", {"method": "merge"}, "with the method merge"),
        ("stop=2", {"method": "merge"}, "with the method merge"),
        ("lbw=ALL0.5", {"start": 0.5}, "outside of Start and End"),
        ("step=0-2", {"end": 0.5}, "outside of Start and End"),
        ("lbw=ALL0.5", {"text_encoder": "merged"}, "on how the prompt is read"),
    ],
)
def test_where_the_webui_knows_nothing_of_block_weights(host, tag, settings, words):
    p, _ = host.generate(f"a cat <lora:a:0.8:{tag}> <lora:b:0.6>", {**ON, **settings})
    assert f"lbw, start, stop and step in tags have no effect {words}" in p.extra_generation_params[NOTE]
    p = with_extension(host.request(f"a cat <lora:a:0.8:{tag}> <lora:b:0.6>", {**ON, **settings}))
    host.processing.process_images(p)
    assert NOTE not in p.extra_generation_params
    p = with_extension(host.request(f"a cat <lora:a:0.8:{tag}> <lora:b:0.6>", {**ON, **settings}), active=False)
    host.processing.process_images(p)
    assert words in p.extra_generation_params[NOTE]


def test_elements_are_told(host):
    p, latents = host.generate("a cat <lora:a:0.8:lbwe=ATTNON> <lora:b:0.6>", ON)
    assert "lbwe in the tag of a has no effect" in p.extra_generation_params[NOTE]
    assert_close(latents, by_equations(host, [("a", 0.8, 0.8), B], one("a cat")))


# Presets


def with_extension(p, presets="", active=True):
    """The request with the extension's script, as its page or the API has it."""
    script, other = (importlib.import_module("modules.scripts").Script() for _ in range(2))
    script.filename = "/extensions/lbw/scripts/lora_block_weight.py"
    p.scripts.scripts_and_args += [(other, ("", None)), (script, (presets, active, 0))]
    return p


def test_presets_of_the_extension(host, tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "lora_block_weight.py").touch()
    monkeypatch.setattr(
        internals.module("webui.block_weights").extensions, "extensions", [SimpleNamespace(path=tmp_path)]
    )
    prompt, settings = "a cat <lora:a:0.8:lbw=MINE> <lora:b:0.6>", ON
    right = by_equations(host, [*weighted(host, ("a", 0.8, 0.8)), B], one("a cat"))
    with pytest.raises(LoratorioError, match="lbw=MINE, which is no preset"):
        host.generate(prompt, settings)
    p = with_extension(host.request(prompt, settings), f"MINE:{LBW}")
    assert_close(host.processing.process_images(p), right, host.dense_tolerance)
    (tmp_path / "scripts" / "lbwpresets.txt").write_text(f"# mine\nMINE:{LBW}\nODD:1,2\n", "utf-8")
    _, latents = host.generate(prompt, settings)
    assert_close(latents, right, host.dense_tolerance)


# The extension at work on AUTOMATIC1111, where it changes the networks that are loaded


@pytest.fixture(params=[False, True], ids=["its callback last", "its callback first"])
def at_work(request, a1111, monkeypatch):
    """As the extension does: multiplies what networks hold, changes their names, and sets strengths in the sampling."""
    extra_networks = importlib.import_module("modules.extra_networks")
    networks, activate, steps, strengths = a1111.networks, extra_networks.activate, {}, {}

    def change(p, data):
        activate(p, data)
        steps.clear()
        for params in data.get("lora", []):
            numbers = (int(params.named.get(name, none)) for name, none in (("start", 0), ("stop", 99)))
            steps[params.positional[0]] = range(*numbers)
        if not any(params.named for params in data.get("lora", [])):
            return
        lists = {params.positional[0]: params.named.get("lbw") for params in data["lora"]}
        for number, network in enumerate(networks.loaded_networks):
            for name, module in network.modules.items() if lists[network.name] else ():
                module.up_model.weight = module.up_model.weight * FACTORS[name.rpartition("_model_")[2]]
            strengths[network.mentioned_name] = network.te_multiplier, network.unet_multiplier
            network.name += f"_in_LBW_0.{number}"

    def set_strengths(params):
        for network in networks.loaded_networks:
            if name := network.name.partition("_in_LBW_")[1] and network.mentioned_name:
                on = params.denoiser.step in steps[name]
                network.te_multiplier, network.unet_multiplier = strengths[name] if on else (0, 0)

    monkeypatch.setattr(extra_networks, "activate", change)
    script_callbacks = a1111.script_callbacks
    callbacks = script_callbacks.callback_map["callbacks_cfg_denoiser"]
    callbacks.insert(0 if request.param else len(callbacks), script_callbacks.ScriptCallback("", set_strengths))
    a1111.add("c", {"conv_in": "lora", "to_q": "lora", "to_k": "lora", "conv_out": "lora"}, seed=31)
    return a1111


@pytest.mark.parametrize("more", [f":lbw={LBW}", f":lbw={LBW}:stop=2", ":start=2", ":stop=2"])
def test_one_lora_is_as_the_extension_merges_it(at_work, more):
    prompt = f"a cat <lora:c:0.8{more}>"
    p, latents = at_work.generate(prompt, {**ON, "lam": 0.0}, steps=5, n_iter=2)
    assert_close(latents, at_work.merged_picture(prompt, steps=5, n_iter=2))
    assert differs(latents, at_work.merged_picture("a cat <lora:c:0.8>", steps=5, n_iter=2))
    assert NOTE not in p.extra_generation_params and at_work.errors.reported == []


def test_strengths_that_the_extension_sets_in_merged_steps(at_work):
    prompt = "a cat <lora:c:0.8:start=2>"
    p, latents = at_work.generate(prompt, {**ON, "lam": 0.0, "start": 0.4, "verify": True}, steps=5)
    assert_close(latents, at_work.merged_picture(prompt, steps=5))
    assert p.extra_generation_params[VERIFY].endswith("over 3 calls") and verified(p) < 1e-9


def test_several_loras_that_the_extension_has_changed(at_work):
    at_work.add("d", {"conv_in": "lora", "to_v": "lora"}, seed=32)
    at_work.add("d2", {"fc1": "lora"}, seed=33)
    settings = {**ON, "verify": True, "pool": "d2:0.5", "maps": True}
    fields = {"n_iter": 2, "enable_hr": True, "steps": 4}
    p, latents = at_work.generate(f"a cat <lora:c:0.8:lbw={LBW}:stop=3> <lora:d:0.6>", settings, **fields)
    adapters, windows = (
        [*weighted(at_work, ("c", 0.8, 0.8)), ("d", 0.6, 0.6), ("d2", 0.5, 0.5)],
        [(0, 3 / 4), (0, 1), (0, 1)],
    )
    same = {"windows": windows, "steps": 4}
    x = torch.cat([by_equations(at_work, adapters, one("a cat"), seed=seed, **same) for seed in (1, 2)])
    x = torch.nn.functional.interpolate(x, scale_factor=2)
    assert_close(latents, by_equations(at_work, adapters, one("a cat") * 2, x=x, size=(96, 80), **same))
    assert verified(p) < 1e-9 and "_in_LBW_" not in str(p.extra_generation_params)
    assert {"c", "d", "d2"} == set(json.loads(p.extra_generation_params[SHARES])[0]["mean"])
    assert at_work.errors.reported == []


def test_elements_are_the_extensions_own(at_work):
    p, _ = at_work.generate(f"a cat <lora:c:0.8:lbw={LBW}:lbwe=ATTNON> <lora:b:0.6>", ON)
    assert NOTE not in p.extra_generation_params


def test_steps_that_the_extension_has_not_come_to_are_not_the_next_requests(at_work):
    p = with_extension(at_work.request("a cat <lora:c:0.8:stop=2>", ON))
    script = p.scripts.alwayson_scripts[-1]
    script.starts, script.stops = {"c": [1, 0.8, 0.8]}, {"c": 2}
    at_work.processing.process_images(p)
    assert (script.starts, script.stops) == ({}, {})
