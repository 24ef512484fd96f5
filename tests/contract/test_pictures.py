"""Pictures against the equations: samplers, settings, batches, prompts, kinds of models, passes."""

import pytest
import torch
from equations import assert_close, differs
from oracle import latents as by_equations
from samples import BOTH_TAGS, LONG, NOTE, ON, TAGS, TEXT, TEXT_TAGS, A, B, of_tags, one, verified

BOTH = pytest.mark.parametrize("tags", BOTH_TAGS.values(), ids=BOTH_TAGS)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
def test_composed_as_the_equations_say(host, every_sampler, dtype, tolerance):
    host.use(dtype=dtype)
    host.add_networks()
    ordinary = host.merged_picture(f"a cat {TAGS}", sampler_name=every_sampler)
    p, latents = host.generate(f"a cat {TAGS}", ON, sampler_name=every_sampler, negative_prompt="bad")
    assert_close(latents, by_equations(host, [A, B], one("a cat"), "bad", sampler=every_sampler), tolerance)
    assert differs(latents, ordinary)
    assert p.comments == {} and host.errors.reported == [] and host.gradio.warnings == []
    host.assert_clean(p)


def test_one_adapter(host):
    p, latents = host.generate("a cat <lora:a:0.8>", ON, negative_prompt="bad")
    assert_close(latents, by_equations(host, [A], one("a cat"), "bad"))
    host.assert_clean(p)
    assert_close(
        host.generate("a cat <lora:text:0.7:0.9>", {**ON, "lam": 0.0})[1],
        host.merged_picture("a cat <lora:text:0.7:0.9>"),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 0.0},
        {"lam": 1.0},
        {"lam": 1.0, "adapters_per_pass": 1},
        {"patch_size": 1, "adapters_per_pass": 2},
        {"patch_size": 4, "temperature": 0.5},
        {"patch_size": 99},
        {"top_k": 1},
        {"top_k": 2},
        {"adapters_per_pass": 1},
        {"adapters_per_pass": 2},
        {"start": 0.3},
        {"end": 0.5},
        {"start": 0.3, "end": 0.6},
        {"method": "composite"},
        {"method": "switch"},
        {"text_encoder": "merged"},
    ],
    ids=str,
)
def test_every_setting(host, settings, sampler):
    steps = 6 if settings.get("method") == "switch" else 3
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **settings}, sampler_name=sampler, steps=steps)
    right = by_equations(host, [A, TEXT, B], one("a cat"), settings=settings, sampler=sampler, steps=steps)
    assert_close(latents, right)
    host.assert_clean(p)


@pytest.mark.parametrize("settings", [{"end": 0.5}, {"start": 0.3, "end": 0.6}, {"method": "switch"}], ids=str)
def test_settings_that_go_by_time_where_a_step_takes_two_calls(host, settings):
    steps = 6 if settings.get("method") == "switch" else 3
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **settings}, sampler_name="Heun", steps=steps)
    right = by_equations(host, [A, TEXT, B], one("a cat"), settings=settings, sampler="Heun", steps=steps)
    assert_close(latents, right)
    host.assert_clean(p)


@pytest.mark.parametrize("mode", ["own", "merged"])
def test_text_encoder_modes(host, mode):
    _, latents = host.generate(
        f"a cat <lora:other:1.5> {TEXT_TAGS}", {**ON, "text_encoder": mode}, negative_prompt="bad"
    )
    expected = {
        m: by_equations(host, [("other", 1.5, 1.5), A, TEXT, B], one("a cat"), "bad", settings={"text_encoder": m})
        for m in ("own", "merged")
    }
    assert_close(latents, expected.pop(mode))
    assert differs(latents, *expected.values())


def test_lambda_one_leaves_out_the_adapters_unconditional_rows(host, monkeypatch):
    rows = host.count_rows(monkeypatch)
    host.generate(f"a cat {TAGS}", {**ON, "lam": 1.0}, steps=1)
    host.generate(f"a cat {TAGS}", ON, steps=1)
    assert rows == [4, 6]


def test_out_of_range_is_the_hosts_own_picture(host):
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "start": 0.9})
    assert torch.equal(latents, host.merged_picture(f"a cat {TEXT_TAGS}"))
    _, latents = host.generate(f"a cat {TAGS}", {**ON, "method": "merge"})
    assert torch.equal(latents, host.merged_picture(f"a cat {TAGS}"))


def test_batches(host):
    p, latents = host.generate(f"a cat {TAGS}", ON, batch_size=2, n_iter=2)
    for batch in range(2):
        right = by_equations(host, [A, B], one("a cat") * 2, seed=1 + 2 * batch)
        assert_close(latents[2 * batch : 2 * batch + 2], right)
    for number in range(4):
        _, alone = host.generate(f"a cat {TAGS}", ON, seed=1 + number)
        assert_close(latents[number : number + 1], alone)
    host.assert_clean(p)


def test_same_request_twice_is_identical(host):
    first, second = (host.generate(f"a cat {TEXT_TAGS}", ON)[1] for _ in range(2))
    assert torch.equal(first, second)


# Prompts


@BOTH
def test_and_prompts_with_weights_in_a_batch(host, sampler, tags):
    prompts = [f"a cat AND a dog:0.4 AND a tree:-0.3 {tags}", "a bird AND a fish:0.4 AND a stone:-0.3"]
    subprompts = [[("a cat", 1), ("a dog", 0.4), ("a tree", -0.3)], [("a bird", 1), ("a fish", 0.4), ("a stone", -0.3)]]
    right = by_equations(host, of_tags(tags), subprompts, "bad", sampler=sampler, steps=2)
    fields = {"batch_size": 2, "sampler_name": sampler, "negative_prompt": "bad", "steps": 2}
    for p, latents in host.in_portions(prompts, ON, **fields):
        assert_close(latents, right)
        host.assert_clean(p)


@pytest.mark.parametrize(
    ("text", "negative"),
    [("a cat", LONG), (LONG, "bad"), (f"{LONG} {LONG}", "bad"), (f"{LONG} {LONG}", LONG), (f"{LONG} " * 3, "bad")],
)
def test_texts_of_unequal_length(host, text, negative):
    right = by_equations(host, [A, TEXT, B], one(text), negative, steps=2)
    fields = {"negative_prompt": negative, "steps": 2, "portions": host.extreme_portions}
    for _, latents in host.in_portions(f"{text} {TEXT_TAGS}", ON, **fields):
        assert_close(latents, right)
    assert host.errors.reported == []


def test_sub_prompts_of_unequal_length_in_a_batch(host):
    prompts = [f"{LONG} AND a dog:0.5 {TEXT_TAGS}", "a bird AND a fish:0.5"]
    subprompts = [[(LONG, 1), ("a dog", 0.5)], [("a bird", 1), ("a fish", 0.5)]]
    right = by_equations(host, [A, TEXT, B], subprompts, "bad", steps=2)
    fields = {"batch_size": 2, "negative_prompt": "bad", "steps": 2, "portions": host.extreme_portions}
    for _, latents in host.in_portions(prompts, ON, **fields):
        assert_close(latents, right)


def test_prompt_editing_is_followed_by_every_adapter(host):
    _, latents = host.generate(f"a [cat:dog:1] here {TEXT_TAGS}", ON)
    right = by_equations(host, [A, TEXT, B], one(lambda call: "a cat here" if call <= 1 else "a dog here"))
    assert_close(latents, right)


# Guidance


@BOTH
def test_guidance_of_scale_one(host, tags):
    fields = {"cfg_scale": 1.0, "batch_size": 2, "negative_prompt": "bad"}
    p, latents = host.generate(f"a cat AND a dog:0.5 {tags}", ON, **fields)
    assert_close(latents, by_equations(host, of_tags(tags), [[("a cat", 1), ("a dog", 0.5)]] * 2, "bad", cfg=1))
    host.assert_clean(p)


def test_steps_without_guidance(host, sampler):
    host.shared.opts.skip_early_cond = 0.5
    prompts = [f"a cat AND a dog:0.4 {TEXT_TAGS}", "a bird AND a fish:0.4"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 0.4)]]
    fields = {"sampler": sampler, "skipped": lambda call: call / 3 <= 0.5}
    right = by_equations(host, [A, TEXT, B], subprompts, "bad", **fields)
    fields = {"batch_size": 2, "sampler_name": sampler, "negative_prompt": "bad", "portions": host.extreme_portions}
    for _, latents in host.in_portions(prompts, ON, **fields):
        assert_close(latents, right)


# Models, memory, passes


@pytest.mark.parametrize("model", [{"dict_conditions": True}, {"channels": 9}], ids=["pooled text", "inpainting"])
@BOTH
def test_other_models(host, model, tags):
    host.use(**model)
    host.add_networks()
    right = by_equations(host, of_tags(tags), [*one("a cat"), *one("a dog")], "bad", steps=2)
    fields = {"batch_size": 2, "negative_prompt": "bad", "steps": 2, "portions": host.extreme_portions}
    for p, latents in host.in_portions([f"a cat {tags}", "a dog"], ON, **fields):
        assert_close(latents, right)
        host.assert_clean(p)


@pytest.mark.parametrize("name", ["a1111", "neo", "reforge"])
def test_what_lies_on_a_layer_that_a_global_network_does_not_fit(name, request):
    """These hosts go on without what does not fit, and merge the next one into the layer as it is."""
    host = request.getfixturevalue(name)
    host.add("half", {"conv_in": "lora", "to_out": "misfit"}, seed=8)
    host.add("full", {"to_out": "full", "to_q": "lora"}, seed=9)
    p, latents = host.generate("a cat <lora:half:1:lt=global> <lora:full:0.5>", {**ON, "verify": True, "lam": 0})
    assert verified(p) < 1e-5
    assert_close(latents, host.merged_picture("a cat <lora:half:1> <lora:full:0.5>"), 1e-5)
    note = p.extra_generation_params[NOTE]
    assert "1 of 2 layers of the LoRA 'half'" in note and "'full'" not in note


@pytest.mark.parametrize("evaluation", [{}, {"adapters_per_pass": 1}], ids=["together", "one by one"])
def test_what_a_model_draws_at_random_is_the_same_for_all(host, monkeypatch, evaluation):
    """As the tokens are that the Forge family's token merging chooses anew in each call."""

    def dropping(apply_model, x):
        kept = torch.rand(x.shape[-2:], dtype=x.dtype) > 0.3  # the same for all rows of a call
        return apply_model() * kept

    host.replace_model(monkeypatch, dropping)

    def drawn(generate, prompt, *settings):
        torch.manual_seed(7)
        made = generate(prompt, *settings)
        return made, torch.rand(1)

    ordinary, after = drawn(host.merged_picture, "a cat <lora:b:0.6>")
    (p, latents), after_composed = drawn(host.generate, "a cat <lora:b:0.6>", {**ON, **evaluation, "lam": 0.0})
    assert_close(latents, ordinary)
    assert after == after_composed
    (p, _), _ = drawn(host.generate, f"a cat {TEXT_TAGS}", {**ON, **evaluation, "verify": True})
    assert 0 < verified(p) < 1e-9


def test_memory_that_runs_out_is_gone_around(host, monkeypatch):
    def small(apply_model, x):
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return apply_model()

    right = by_equations(host, [A, B], one("a cat"))
    host.replace_model(monkeypatch, small)
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], right)


def test_second_pass_with_its_own_prompt_networks_and_sampler(host):
    p, latents = host.generate(
        f"a cat {TAGS}",
        ON,
        enable_hr=True,
        hr_prompt="a dog <lora:text:0.7:0.9> <lora:b:0.6>",
        hr_second_pass_steps=2,
        hr_sampler_name=host.samplers[-1],
    )
    x = torch.nn.functional.interpolate(by_equations(host, [A, B], one("a cat")), scale_factor=2)
    fields = {"x": x, "steps": 2, "sampler": host.samplers[-1], "size": (96, 80)}
    assert_close(latents, by_equations(host, [TEXT, B], one("a dog"), **fields))
    host.assert_clean(p)


def test_prompt_editing_in_a_second_pass_goes_by_its_steps(host):
    fields = {"enable_hr": True, "hr_prompt": f"a [fox:bird:1] here {TEXT_TAGS}", "hr_second_pass_steps": 2}
    _, latents = host.generate(f"a [cat:dog:1] here {TEXT_TAGS}", ON, **fields)
    first = one(lambda call: "a cat here" if call <= 1 else "a dog here")
    second = one(lambda call: "a fox here" if call <= 1 else "a bird here")
    x = torch.nn.functional.interpolate(by_equations(host, [A, TEXT, B], first), scale_factor=2)
    assert_close(latents, by_equations(host, [A, TEXT, B], second, x=x, steps=2, size=(96, 80)))


def test_second_pass_with_the_same_networks_at_other_strengths(host):
    p, latents = host.generate(
        f"a cat {TEXT_TAGS}", ON, enable_hr=True, hr_prompt="a cat <lora:a:0.3> <lora:text:0.2:0.4> <lora:b:0.6>"
    )
    x = torch.nn.functional.interpolate(by_equations(host, [A, TEXT, B], one("a cat")), scale_factor=2)
    others = [("a", 0.3, 0.3), ("text", 0.2, 0.4), B]
    assert_close(latents, by_equations(host, others, one("a cat"), x=x, size=(96, 80)))
    host.assert_clean(p)


def test_refiner_ends_the_composition_with_a_note(host):
    refiner = host.model.SdModel(seed=9)
    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON, refiner=refiner, refiner_switch_at=0.5)
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat"), refiner=refiner, switch_at=0.5))
    assert "refiner" in p.extra_generation_params[NOTE] and any("refiner" in comment for comment in p.comments)
    assert host.errors.reported == []
    assert not any(module._forward_hooks for module in host.denoiser_model(refiner).modules())
    host.assert_clean(p)
