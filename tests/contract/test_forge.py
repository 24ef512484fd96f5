"""What only the Forge family does: patches of every kind and place, low bits, memory, failed merges."""

import math
import re

import internals
import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError, OddError
from oracle import latents as by_equations
from samples import BOTH_TAGS, NOTE, ON, TAGS, TEXT, TEXT_TAGS, A, B, of_tags, one, verified

SINGLE = 1e-5
"""Kinds without factors are computed in float32."""

Q, K, V = (0, 0, 8), (0, 8, 8), (0, 16, 8)
KINDS = {
    "loha": {"conv_in": "loha", "to_k": "loha", "to_q": "lora"},
    "dora": {"down": "dora", "to_v": "dora"},
    "full": {"conv_out": "full", "conv_out.bias": "full", "to_out.bias": "full"},
    "norms": {"norm": "full", "norm.bias": "full", "layer_norm": "full", "layer_norm.bias": "full"},
    "lora with bias": {"to_out": "lora", "to_out.bias": "full"},
    "fused": {("qkv", Q): "lora", ("qkv", K): "rank 3", ("qkv", V): "lora"},
    "part of the inputs": {("to_out", (1, 2, 5)): "lora"},
    "fused loha": {("qkv", K): "loha"},
    "fused kinds": {("qkv", Q): "lora", ("qkv", V): "loha"},
    "function": {("to_q", None, torch.tanh): "lora", ("qkv", V, torch.flipud): "lora"},
    "two": {"to_k": "lora", ("to_k", None): "rank 3"},
    "two kinds": {"to_k": "lora", ("to_k", None): "scaled"},
    "two parts": {("qkv", Q): "lora", ("qkv", (0, 4, 8)): "lora", "qkv": "rank 3"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(forge, kind):
    forge.add("kind", KINDS[kind], seed=7)
    right = by_equations(forge, [("kind", 0.7, 0.7), B], one("a cat"), steps=2)
    for budget in (1024, 0):
        forge.shared.opts.loratorio_dense_budget_mb = budget
        p, latents = forge.generate("a cat <lora:kind:0.7> <lora:b:0.6>", {**ON, "verify": True}, steps=2)
        assert_close(latents, right, SINGLE)
        assert verified(p) < SINGLE
        forge.assert_clean(p)
    _, weak = forge.generate("a cat <lora:kind:0.001> <lora:b:0.6>", ON, steps=2)
    assert differs(latents, weak), "so that the kind's patch shows"


def test_files_of_another_precision_than_the_models(forge):
    forge.use(dtype=torch.float32)
    p, latents = forge.generate(f"a cat {TEXT_TAGS}", ON, negative_prompt="bad")
    assert_close(latents, by_equations(forge, [A, TEXT, B], one("a cat"), "bad"), SINGLE)
    forge.assert_clean(p)


def test_a_rank_in_a_tag_changes_nothing_as_in_the_host(forge):
    _, latents = forge.generate("a cat <lora:b:1:1:1> <lora:a:0.8>", ON)
    assert_close(latents, by_equations(forge, [("b", 1.0, 1.0), A], one("a cat")))


# Low bits


def test_quantised_models_take_plain_loras(quantising):
    quantising.use(quantised=True)
    settings = {"end": 0.5}
    p, latents = quantising.generate(f"a cat {TEXT_TAGS}", {**ON, **settings, "verify": True})
    assert_close(latents, by_equations(quantising, [A, TEXT, B], one("a cat"), settings=settings), SINGLE)
    assert verified(p) < SINGLE and NOTE not in p.extra_generation_params
    quantising.assert_clean(p)


def test_quantised_models_are_verified_without_rounding_the_merge_to_their_bits(forge_main):
    forge_main.use(quantised=True)
    p, _ = forge_main.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True})
    assert verified(p) < SINGLE
    forge_main.assert_clean(p)


def test_gguf_models_take_every_kind(quantising):
    quantising.use(quantised="gguf")
    quantising.add("kinds", {"to_q": "loha", "to_k": "dora", ("qkv", V): "scaled"}, seed=7)
    p, latents = quantising.generate("a cat <lora:kinds:0.7> <lora:b:0.6>", {**ON, "verify": True})
    assert_close(latents, by_equations(quantising, [("kinds", 0.7, 0.7), B], one("a cat")), SINGLE)
    assert verified(p) < SINGLE and NOTE not in p.extra_generation_params
    quantising.assert_clean(p)


def test_quantised_models_decline_other_kinds_by_name(quantising):
    quantising.use(quantised=True)
    quantising.add("kind", {"to_q": "loha", "to_k": "lora"}, seed=7)
    quantising.add("dense", {"to_q": "loha"}, seed=7)
    p, _ = quantising.generate("a cat <lora:kind:1> <lora:b:0.6>", ON)
    assert "1 of 2 layers of the LoRA 'kind'" in p.extra_generation_params[NOTE]
    assert "quantised" in p.extra_generation_params[NOTE]
    with pytest.raises(LoratorioError, match=r"none of the 1 layers of the LoRA 'dense' .* quantised models"):
        quantising.generate("a cat <lora:dense:1> <lora:b:0.6>", ON)
    assert_close(quantising.generate(f"a cat {TAGS}", ON)[1], by_equations(quantising, [A, B], one("a cat")))


def test_neo_reads_a_weight_as_its_layer_does(neo):
    """A quantised one may look like a plain one, and ignores what is added to it in place."""
    layer = neo.shared.sd_model.forge_objects_original.unet.model.diffusion_model.to_out
    layer.convert_weight = lambda weight: 2 * weight
    assert torch.equal(internals.base_weight(layer, "weight"), 2 * layer.weight)
    assert torch.equal(internals.base_weight(layer, "bias"), layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_reforge_reads_a_weight_as_its_layer_does(reforge, dtype):
    """One stored divided by a scale, in a precision that may not compute."""
    layer = reforge.use(scaled=True).forge_objects_original.unet.model.diffusion_model.to_out
    layer.weight.data = layer.weight.data.to(dtype)
    assert torch.equal(internals.base_weight(layer, "weight"), layer.weight.float() * layer.scale_weight.float())
    assert torch.equal(internals.base_weight(layer, "bias"), layer.bias)


def test_weights_stored_divided_by_a_scale(reforge):
    reforge.use(scaled=True)
    reforge.add("kinds", {"to_q": "dora", "to_k": "loha", ("qkv", V): "scaled"}, seed=7)
    p, latents = reforge.generate(f"a cat <lora:kinds:0.7> {TEXT_TAGS}", {**ON, "verify": True})
    right = by_equations(reforge, [("kinds", 0.7, 0.7), A, TEXT, B], one("a cat"))
    assert_close(latents, right, SINGLE)
    assert verified(p) < SINGLE and NOTE not in p.extra_generation_params
    reforge.assert_clean(p)


UNSUPPORTED = {
    "Nunchaku": lambda host: setattr(host.args.dynamic_args, "nunchaku", True),
    "PiD": lambda host: setattr(host.args.dynamic_args, "pid", True),
    "frames": lambda host: setattr(host.shared.sd_model, "is_wan", True),
}


@pytest.mark.parametrize("word", UNSUPPORTED)
def test_models_of_neo_that_cannot_be_composed(neo, word):
    plain = neo.merged_picture(f"a cat {TAGS}")
    UNSUPPORTED[word](neo)
    p, latents = neo.generate(f"a cat {TAGS}", ON)
    assert word in p.extra_generation_params[NOTE]
    assert torch.equal(latents, plain) and differs(plain, by_equations(neo, [A, B], one("a cat")))


# Merges that fail


def test_after_a_merge_that_failed_in_the_host(forge_main):
    """It leaves a part of it in the weights, under the name of the merge before."""
    forge_main.add("misfit", {"conv_in": "lora", "to_out": "misfit"}, seed=8)
    with pytest.raises(RuntimeError):
        forge_main.generate("a cat <lora:a:1> <lora:misfit:1>")
    p, latents = forge_main.generate(f"a cat {TAGS}", ON)
    assert_close(latents, by_equations(forge_main, [A, B], one("a cat")))
    forge_main.assert_clean(p)


def test_a_merge_into_the_text_encoder_that_fails_for_us_is_not_left_in_it(forge, monkeypatch):
    """The text encoder has two layers, which the host merges first, for its own conditions."""
    before = forge.merged_picture("a cat")
    forge.fail_when_merging(monkeypatch, 3, OddError("at the adapter's second layer"))
    with pytest.raises(LoratorioError, match="second layer"):
        forge.generate(f"a cat {TEXT_TAGS}", ON)
    assert torch.equal(forge.merged_picture("a cat"), before)


def test_layers_that_the_host_cannot_merge_are_named_with_its_reason(forge):
    forge.add("half", {"conv_in": "lora", "to_out": "misfit"}, seed=8)
    p, _ = forge.generate("a cat <lora:half:1> <lora:b:0.6>", ON)
    assert re.search(r"the WebUI cannot merge \(.*shape '\[", p.extra_generation_params[NOTE])


@pytest.mark.parametrize("flat", ["neo", "reforge"])
def test_a_bias_is_merged_also_where_the_weight_does_not_fit(flat, request):
    """As these hosts do, which log what does not fit and go on."""
    host = request.getfixturevalue(flat)
    host.add("half", {"conv_in": "lora", "to_out": "misfit", "to_out.bias": "full"}, seed=8)
    p, _ = host.generate("a cat <lora:half:1> <lora:b:0.6>", {**ON, "verify": True})
    assert verified(p) < SINGLE
    assert "1 of 2 layers of the LoRA 'half'" in p.extra_generation_params[NOTE]
    host.assert_clean(p)


# Guidance, memory, passes


@pytest.mark.parametrize("tags", BOTH_TAGS.values(), ids=BOTH_TAGS)
def test_without_guidance_no_row_of_the_negative_prompt_is_evaluated(forge, tags, monkeypatch):
    rows = forge.count_rows(monkeypatch)
    forge.generate(f"a cat AND a dog:0.5 {tags}", ON, cfg_scale=1.0, batch_size=2, negative_prompt="bad")
    assert rows == [4 * (len(of_tags(tags)) + 1)] * 3


@pytest.mark.parametrize("hr_cfg", [3.0, 1.0])
def test_second_pass_with_its_own_guidance(forge, hr_cfg):
    p, latents = forge.generate(
        f"a cat {TAGS}",
        ON,
        enable_hr=True,
        hr_prompt="a dog <lora:text:0.7:0.9> <lora:b:0.6>",
        hr_second_pass_steps=2,
        hr_sampler_name="Heun",
        hr_cfg=hr_cfg,
    )
    x = torch.nn.functional.interpolate(by_equations(forge, [A, B], one("a cat")), scale_factor=2)
    fields = {"x": x, "steps": 2, "sampler": "Heun", "size": (96, 80), "cfg": hr_cfg}
    assert_close(latents, by_equations(forge, [TEXT, B], one("a dog"), **fields))
    forge.assert_clean(p)


def test_short_memory_has_the_host_ask_for_the_negative_prompt_first(forge):
    asked = []

    def record(p):
        unet = forge.changed_patcher(p)
        former = unet.model_options["model_function_wrapper"]
        unet.set_model_unet_function_wrapper(
            lambda apply_model, args: asked.append(args["cond_or_uncond"]) or former(apply_model, args)
        )

    forge.set_portion(1.5)
    _, latents = forge.generate(f"a cat {TEXT_TAGS}", ON, after=[record], steps=1)
    assert asked == [[1], [0]]
    forge.set_portion(math.inf)
    asked.clear()
    assert_close(latents, forge.generate(f"a cat {TEXT_TAGS}", ON, after=[record], steps=1)[1])
    assert asked == [[1, 0]]
