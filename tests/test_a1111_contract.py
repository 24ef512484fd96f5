"""The script on a stand-in of the WebUI: pictures against the equations, and the host as it was afterwards.

The expected latents come from `by_equations`, which knows nothing of the extension: it merges one network at a
time with the host's loader, evaluates row by row, and composes patch by patch in plain loops.
"""

import importlib
import json
import math
from dataclasses import astuple, fields
from pathlib import PureWindowsPath
from types import SimpleNamespace

import pytest
import standin
import torch
from equations import assert_close, differs, patch_weights

from lib_loratorio.engine.methods import METHODS
from lib_loratorio.engine.scout import Scout
from lib_loratorio.errors import LoratorioError
from lib_loratorio.settings import PRESETS, Settings

A, B, TEXT = ("a", 0.8, 0.8), ("b", 0.6, 0.6), ("text", 0.7, 0.9)
TAGS = "<lora:a:0.8> <lora:b:0.6>"
TEXT_TAGS = "<lora:a:0.8> <lora:text:0.7:0.9> <lora:b:0.6>"
ON = {"enabled": True}
NOTE = "LoRAtorio note"
UNET_LAYERS = ("conv_in", "down", "norm", "proj_in", "layer_norm", "to_q", "to_k", "to_v", "to_out", "conv_out")


@pytest.fixture
def host():
    with standin.installed() as host:
        add_networks(host)
        yield host


def add_networks(host):
    kinds = ("mid", "lora", "norm", "full_bias", "norm", "lora", "loha", "oft", "dora", "lora")
    host.add("a", {f"diffusion_model_{name}": kind for name, kind in zip(UNET_LAYERS, kinds)}, seed=1, alias="anna")
    host.add(
        "b", {"diffusion_model_conv_in": "lora", "diffusion_model_to_k": "lora", "diffusion_model_to_v": "lokr"}, seed=2
    )
    host.add(
        "text", {"transformer_fc1": "lora", "transformer_fc2": "full_bias", "diffusion_model_to_q": "glora"}, seed=3
    )
    host.add("other", {"transformer_fc1": "lora"}, seed=4)
    host.add("foreign", {"some_other_model_layer": "lora"}, seed=5)


# The equations, in loops


def load(host, adapters):
    """`adapters`: `(name, text encoder's strength, UNet's)`, and the rank where it is not the file's own."""
    columns = [list(column) for column in zip(*((*adapter, None)[:4] for adapter in adapters))]
    host.networks.load_networks(*(columns or [[]]))


def encode(host, adapters, text, size):
    load(host, adapters)
    prompt = host.prompt_parser.SdConditioning([text], False, *size)
    return host.shared.sd_model.get_learned_conditioning(prompt)


def map_text(function, *texts):
    return (
        {key: function(*(text[key] for text in texts)) for key in texts[0]}
        if isinstance(texts[0], dict)
        else function(*texts)
    )


def length(text):
    return (text["crossattn"] if isinstance(text, dict) else text).shape[1]


def lengthened(text, tokens):
    """By its last token, as the host does for sub-prompts of unequal length."""
    return map_text(
        lambda t: t if t.dim() == 2 else torch.cat([t, t[:, -1:].expand(-1, tokens - t.shape[1], -1)], 1), text
    )


def by_equations(
    host,
    adapters,
    prompts,
    negative="",
    *,
    sampler="Euler",
    steps=3,
    cfg=3.0,
    seed=1,
    x=None,
    size=(48, 40),
    settings=None,
    skipped=lambda call: False,
    pad=None,
    refiner=None,
    switch_at=2.0,
    everywhere=(),
    words=(),
):
    """Latents. `prompts`: per picture a list of `(text, or text of a call, weight)`; `everywhere` are the global
    adapters, `words` the adapters' trigger words.
    """
    s = Settings(**(settings or {}))
    checkpoint = host.shared.sd_model
    config = host.sd_samplers.find_sampler_config(sampler)
    total, n, calls = config.total_steps(steps), len(adapters), iter(range(99))
    models = [tuple(everywhere), *((*everywhere, adapter) for adapter in adapters), (*everywhere, *adapters)]
    merged, kept = n + 1, {}
    if x is None:
        x = torch.stack(
            [
                host.request("", height=size[1], width=size[0], seed=seed).noise(picture)
                for picture in range(len(prompts))
            ]
        )
    image = host.request("").image_conditioning(x)

    def predict(model, row, picture, sigma, text):
        load(host, models[model])
        condition = text if isinstance(text, dict) else {"c_crossattn": [text]}
        wrapped = config.denoiser.wrapped(host.shared.sd_model)
        return wrapped(row[None], sigma[None], cond={**condition, "c_concat": [image[picture : picture + 1]]})[0]

    def texts(model, call):
        """All conditional rows' texts, and the negative one, as one model has them."""
        reader = models[merged if s.text_encoder == "merged" else model]
        own = f", {words[model - 1]}" if 0 < model <= len(words) and words[model - 1] else ""
        conditions = [
            [encode(host, reader, (text(call) if callable(text) else text) + own, size) for text, _ in subprompts]
            for subprompts in prompts
        ]
        longest = max(length(text) for subprompts in conditions for text in subprompts)
        conditions = [[lengthened(text, longest) for text in subprompts] for subprompts in conditions]
        uncond = encode(host, reader, negative, size)
        if pad == "v0":
            uncond = map_text(
                lambda t: t if t.dim() == 2 else t[:, :longest], lengthened(uncond, max(longest, length(uncond)))
            )
        elif pad == "empty":
            empty = host.shared.sd_model.cond_stage_model_empty_prompt
            uncond = map_text(
                lambda t: t if t.dim() == 2 else torch.cat([t, *[empty] * ((longest - t.shape[1]) // 4)], 1), uncond
            )
        return conditions, uncond

    def denoiser(x, sigma, **_):
        call = next(calls)
        fraction = call / total
        if refiner is not None and fraction >= switch_at:
            host.shared.sd_model = refiner
        composed = s.start <= fraction and (fraction < s.end or s.end == 1) and host.shared.sd_model is checkpoint
        used = range(n + 1) if composed else [merged]
        by_model = {model: texts(model, call) for model in used}
        every = {  # a model's rows one after the other, so that it is merged once
            (m, picture, j): predict(
                m, x[picture], picture, sigma[picture], by_model[m][1] if j is None else by_model[m][0][picture][j]
            )
            for m in used
            for picture, subprompts in enumerate(prompts)
            for j in (*range(len(subprompts)), None)
        }
        result = []
        for picture, subprompts in enumerate(prompts):
            row = x[picture]
            conditional = [{m: every[m, picture, j] for m in used} for j in range(len(subprompts))]
            negatives = {m: every[m, picture, None] for m in used}
            if composed:
                weights = [omega(row, e, int(fraction * steps)) for e in conditional]
                conditional = [sum(w[i] * e[i + 1] for i in range(n)) for w, e in zip(weights, conditional)]
                mean = sum(weights) / len(weights)
                lam = s.lam if s.method == "loratorio" else 0
                uncond = lam * negatives[0] + (1 - lam) * sum(mean[i] * negatives[i + 1] for i in range(n))
                unit = 1 if sampler == "DDIM" else -sigma[picture]
                if int(fraction * steps) % s.guidance_every:
                    uncond = negatives[0] + kept[picture] * unit
                kept[picture] = (uncond - negatives[0]) / unit
            else:
                conditional, uncond = [e[merged] for e in conditional], negatives[merged]
            scale = cfg
            if skipped(call):
                uncond, scale = conditional[0], 1
            result.append(
                uncond + sum(scale * weight * (e - uncond) for e, (_, weight) in zip(conditional, subprompts))
            )
        return torch.stack(result)

    def omega(row, e, step):
        if s.method == "composite":
            return torch.full((n, *row.shape[1:]), 1 / n, dtype=row.dtype)
        if s.method == "switch":
            return torch.eye(n, dtype=row.dtype)[step // 5 % n][:, None, None].expand(n, *row.shape[1:])
        noise = [e[m] if sampler == "DDIM" else row - e[m] for m in range(n + 1)]
        return patch_weights(noise[0], noise[1:], s.patch_size, s.temperature, s.top_k)

    former = [(net.name, net.te_multiplier, net.unet_multiplier, net.dyn_dim) for net in host.networks.loaded_networks]
    try:
        with torch.no_grad():
            return config.function(denoiser, x, config.schedule(steps), {})
    finally:
        host.shared.sd_model = checkpoint
        load(host, former)


def one(text):
    return [[(text, 1.0)]]


def assert_clean(host, p, names=("a", "b")):
    """Nothing of the extension is left in the host, and its model is the original one again."""
    model = host.shared.sd_model
    assert [net.name for net in host.networks.loaded_networks] == list(names)
    assert host.networks.networks_in_memory == {}
    assert host.a1111.sampling._current is None
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )
    sampler = p.sampler
    assert "launch_sampling" not in vars(sampler)
    assert "forward" not in vars(sampler.model_wrap_cfg.inner_model)
    host.processing.Processing.cached_c[:] = [None, None]  # so that the text encoder is used, too
    host.generate("a plain picture")
    fresh = host.model.SdModel(
        channels=model.model.diffusion_model.conv_in.in_channels,
        dict_conditions=model.dict_conditions,
        dtype=model.dtype,
    )
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


def merged_picture(host, prompt, **fields):
    return host.generate(prompt, **fields)[1]


# Pictures


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM"])
def test_composed_as_the_equations_say(host, sampler, dtype, tolerance):
    host.use(dtype=dtype)
    add_networks(host)
    ordinary = merged_picture(host, f"a cat {TAGS}", sampler_name=sampler)
    p, latents = host.generate(f"a cat {TAGS}", ON, sampler_name=sampler, negative_prompt="bad")
    assert_close(latents, by_equations(host, [A, B], one("a cat"), "bad", sampler=sampler), tolerance)
    assert differs(latents, ordinary)
    assert p.comments == {} and host.errors.reported == [] and host.gradio.warnings == []
    assert_clean(host, p)


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 0.0},
        {"lam": 1.0},
        {"patch_size": 1},
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
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_every_setting(host, settings, sampler):
    steps = 6 if settings.get("method") == "switch" else 3
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **settings}, sampler_name=sampler, steps=steps)
    assert_close(
        latents, by_equations(host, [A, TEXT, B], one("a cat"), settings=settings, sampler=sampler, steps=steps)
    )


def test_lambda_one_leaves_out_the_adapters_unconditional_rows(host, monkeypatch):
    rows = count_rows(host, monkeypatch)
    host.generate(f"a cat {TAGS}", {**ON, "lam": 1.0}, steps=1)
    assert rows == [4]
    rows.clear()
    host.generate(f"a cat {TAGS}", ON, steps=1)
    assert rows == [6]


def count_rows(host, monkeypatch):
    rows, apply_model = [], host.model.SdModel.apply_model

    def counted(self, x, *args, **kwargs):
        rows.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(host.model.SdModel, "apply_model", counted)
    return rows


def test_out_of_range_is_the_hosts_own_picture(host):
    settings = {**ON, "start": 0.9}
    _, latents = host.generate(f"a cat {TEXT_TAGS}", settings)
    assert torch.equal(latents, merged_picture(host, f"a cat {TEXT_TAGS}"))
    _, latents = host.generate(f"a cat {TAGS}", {**ON, "method": "merge"})
    assert torch.equal(latents, merged_picture(host, f"a cat {TAGS}"))


def test_batches(host):
    p, latents = host.generate(f"a cat {TAGS}", ON, batch_size=2, n_iter=2)
    for batch in range(2):
        assert_close(
            latents[2 * batch : 2 * batch + 2], by_equations(host, [A, B], one("a cat") * 2, seed=1 + 2 * batch)
        )
    for picture in range(4):
        _, alone = host.generate(f"a cat {TAGS}", ON, seed=1 + picture)
        assert_close(latents[picture : picture + 1], alone)
    assert_clean(host, p)


def test_a_request_reads_each_file_once(host):
    host.networks.loads.clear()
    host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, n_iter=2)
    assert sorted(host.networks.loads) == ["a", "b", "text"]


def test_same_request_twice_is_identical(host):
    first, second = (host.generate(f"a cat {TEXT_TAGS}", ON)[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_and_prompts_with_weights_in_a_batch(host, together, sampler, tags):
    host.shared.opts.batch_cond_uncond = together
    prompts = [f"a cat AND a dog:0.4 {tags}", "a bird AND a fish:1.7 AND a tree:-0.3"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 1.7), ("a tree", -0.3)]]
    p, latents = host.generate(prompts, ON, batch_size=2, sampler_name=sampler, negative_prompt="bad")
    adapters = [A, B] if tags == TAGS else [A, TEXT, B]
    assert_close(latents, by_equations(host, adapters, subprompts, "bad", sampler=sampler))
    assert_clean(host, p, [name for name, _, _ in adapters])


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("pad", [None, "v0", "empty"])
@pytest.mark.parametrize("dicts", [False, True], ids=["tensors", "dicts"])
def test_prompts_of_unequal_length(host, together, pad, dicts):
    host.use(dict_conditions=dicts)
    host.shared.opts.batch_cond_uncond = together
    host.shared.opts.pad_cond_uncond_v0, host.shared.opts.pad_cond_uncond = pad == "v0", pad == "empty"
    long = "a very long prompt about many cats"
    prompts = [f"{long} AND a dog:0.5 {TEXT_TAGS}", "a bird"]
    _, latents = host.generate(prompts, ON, batch_size=2, negative_prompt="bad")
    assert_close(
        latents, by_equations(host, [A, TEXT, B], [[(long, 1), ("a dog", 0.5)], [("a bird", 1)]], "bad", pad=pad)
    )
    assert host.errors.reported == []


def test_a_negative_prompt_longer_than_the_prompt(host):
    negative = "bad and ugly and many other things"
    _, latents = host.generate(f"a cat {TEXT_TAGS}", ON, negative_prompt=negative)
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat"), negative))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_steps_without_guidance(host, together, sampler):
    host.shared.opts.batch_cond_uncond = together
    host.shared.opts.skip_early_cond = 0.5
    prompts = [f"a cat AND a dog:0.4 {TEXT_TAGS}", "a bird AND a fish:1.7"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 1.7)]]
    _, latents = host.generate(prompts, ON, batch_size=2, sampler_name=sampler)
    assert_close(
        latents, by_equations(host, [A, TEXT, B], subprompts, sampler=sampler, skipped=lambda call: call / 3 <= 0.5)
    )


def test_guidance_left_out_at_small_sigmas(host):
    _, latents = host.generate(f"a cat {TAGS}", ON, s_min_uncond=9.0)
    assert_close(latents, by_equations(host, [A, B], one("a cat"), skipped=lambda call: call % 2))


def test_prompt_editing_is_followed_by_every_adapter(host):
    _, latents = host.generate(f"a [cat:dog:1] here {TEXT_TAGS}", ON)
    assert_close(
        latents, by_equations(host, [A, TEXT, B], [[(lambda call: "a cat here" if call <= 1 else "a dog here", 1)]])
    )


@pytest.mark.parametrize("model", [{"dict_conditions": True}, {"channels": 9}], ids=["dicts", "inpainting"])
@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
@pytest.mark.parametrize("together", [True, False])
def test_other_models(host, model, tags, together):
    host.use(**model)
    host.shared.opts.batch_cond_uncond = together
    p, latents = host.generate([f"a cat {tags}", "a dog"], ON, batch_size=2, negative_prompt="bad")
    adapters = [A, B] if tags == TAGS else [A, TEXT, B]
    assert_close(latents, by_equations(host, adapters, [*one("a cat"), *one("a dog")], "bad"))
    assert_clean(host, p, [name for name, _, _ in adapters])


@pytest.mark.parametrize("mode", ["own", "merged"])
def test_text_encoder_modes(host, mode):
    settings = {"text_encoder": mode}
    _, latents = host.generate(f"a cat <lora:other:1.5> {TEXT_TAGS}", {**ON, **settings}, negative_prompt="bad")
    expected = {
        m: by_equations(host, [("other", 1.5, 1.5), A, TEXT, B], one("a cat"), "bad", settings={"text_encoder": m})
        for m in ("own", "merged")
    }
    assert_close(latents, expected.pop(mode))
    assert differs(latents, *expected.values())


def test_words_that_a_network_brings_along(host):
    host.add("word", {"diffusion_model_to_q": "lora"}, seed=6, embeddings={"glyph": torch.arange(6.0)})
    _, latents = host.generate("a glyph <lora:word:1> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(host, [("word", 1.0, 1.0), B], one("a glyph")))
    assert list(host.shared.sd_model.cond_stage_model.embeddings) == ["glyph"], (
        "as the host has it while the network is loaded"
    )


@pytest.mark.parametrize(
    ("tags", "adapters"),
    [
        ("<lora:text:0.3:0.9> <lora:b:1>", [("text", 0.3, 0.9), ("b", 1.0, 1.0)]),
        ("<lora:text:te=0:unet=0.9> <lyco:b:-0.5>", [("text", 0.0, 0.9), ("b", -0.5, -0.5)]),
        ("<lora:text:0.7:0> <lora:b>", [("text", 0.7, 0.0), ("b", 1.0, 1.0)]),
        ("<lora:b:1:1:1> <lora:a:0.8>", [("b", 1.0, 1.0, 1), (*A, None)]),
        ("<lora:anna:0.8> <lora:b:0.6>", [("anna", 0.8, 0.8), B]),
    ],
)
def test_strengths_as_in_the_prompt(host, tags, adapters):
    host.generate("a cat <lora:b:0.3>")  # leaves a merge in the weights
    _, latents = host.generate(f"a cat {tags}", ON)
    assert_close(latents, by_equations(host, adapters, one("a cat")))


def test_a_network_without_strength_is_none(host):
    _, latents = host.generate("a cat <lora:a:0> <lora:b:0.6> <lora:text:0:0>", ON)
    assert_close(latents, by_equations(host, [B], one("a cat")))
    assert [net.name for net in host.networks.loaded_networks] == ["a", "b", "text"]


def test_a_network_twice_is_the_network_once(host):
    _, twice = host.generate("a cat <lora:a:0.8> <lora:a:0.8> <lora:a:0.8>", ON)
    assert_close(twice, host.generate("a cat <lora:a:0.8>", ON)[1])


def test_merging_in_the_forward_itself(host):
    host.shared.opts.lora_functional = True
    settings = {"end": 0.5}
    p, latents = host.generate(f"a cat {TAGS}", {**ON, **settings, "verify": True})
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings=settings))
    host.shared.opts.lora_functional = False
    assert_close(
        host.generate(f"a cat {TAGS}", {**ON, **settings})[1],
        by_equations(host, [A, B], one("a cat"), settings=settings),
    )
    assert_clean(host, p)


def test_second_pass_with_its_own_prompt_and_networks(host):
    p, latents = host.generate(
        f"a cat {TAGS}",
        ON,
        enable_hr=True,
        hr_prompt="a dog <lora:text:0.7:0.9> <lora:b:0.6>",
        hr_second_pass_steps=2,
        hr_sampler_name="DDIM",
    )
    first = by_equations(host, [A, B], one("a cat"))
    x = torch.nn.functional.interpolate(first, scale_factor=2)
    assert_close(latents, by_equations(host, [TEXT, B], one("a dog"), x=x, steps=2, sampler="DDIM", size=(96, 80)))
    assert_clean(host, p, ["text", "b"])


def test_refiner_ends_the_composition_with_a_note(host):
    refiner = host.model.SdModel(seed=9)
    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON, refiner=refiner, refiner_switch_at=0.5)
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat"), refiner=refiner, switch_at=0.5))
    assert "refiner" in p.extra_generation_params[NOTE] and any("refiner" in comment for comment in p.comments)
    assert host.errors.reported == []
    assert not any(module._forward_hooks for module in refiner.modules())
    assert_clean(host, p, ["a", "text", "b"])


def test_memory_that_runs_out_is_gone_around(host, monkeypatch):
    apply_model = host.model.SdModel.apply_model

    def small(self, x, *args, **kwargs):
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return apply_model(self, x, *args, **kwargs)

    expected = by_equations(host, [A, B], one("a cat"))
    monkeypatch.setattr(host.model.SdModel, "apply_model", small)
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], expected)


def test_verify_reports_the_error(host):
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, n_iter=2)
    (comment,) = p.comments
    assert comment == f"LoRAtorio verify: {p.extra_generation_params['LoRAtorio verify']}"
    assert p.extra_generation_params["LoRAtorio verify"].endswith("over 6 calls")
    assert float(comment.split()[5]) < 1e-12
    assert torch.equal(latents, host.generate(f"a cat {TEXT_TAGS}", ON, n_iter=2)[1])
    assert_clean(host, p, ["a", "text", "b"])


def test_verify_finds_a_wrong_delta(host, monkeypatch):
    low_rank = host.a1111.deltas._low_rank
    monkeypatch.setattr(
        host.a1111.deltas,
        "_low_rank",
        lambda *args: low_rank(*args).__class__(low_rank(*args).down, low_rank(*args).up * 1.5),
    )
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True})
    assert float(next(iter(p.comments)).split()[5]) > 1e-3


# The host afterwards


def test_ordinary_pictures_are_the_same_afterwards(host):
    requests = ["a cat", f"a cat {TEXT_TAGS}", "a cat <lora:text:1>"]
    before = [merged_picture(host, prompt) for prompt in requests]
    host.generate(f"a cat {TEXT_TAGS}", ON)
    assert all(torch.equal(merged_picture(host, prompt), picture) for prompt, picture in zip(requests, before))


def test_the_hosts_cache_of_conditions_is_its_own(host):
    cached_c, cached_uc = host.processing.Processing.cached_c, host.processing.Processing.cached_uc
    host.generate(f"a cat {TEXT_TAGS}", ON)
    own = [list(cached_c), list(cached_uc)]
    host.generate(f"a cat {TEXT_TAGS}", ON)
    for cache, values in zip((cached_c, cached_uc), own):
        assert cache[0] == values[0] and cache[1] is values[1]
    load(host, [A, TEXT, B])
    right = host.shared.sd_model.get_learned_conditioning(host.prompt_parser.SdConditioning(["a cat", ""]))
    assert torch.equal(cached_c[1].batch[0][0].schedules[0].cond, right[0])
    assert torch.equal(cached_uc[1][0][0].cond, right[1])


@pytest.mark.parametrize("persistent", [True, False])
def test_conditions_are_kept_as_long_as_the_hosts(host, persistent, monkeypatch):
    host.shared.opts.persistent_cond_cache = persistent
    encoded, encode = [], host.model.SdModel.get_learned_conditioning
    monkeypatch.setattr(
        host.model.SdModel,
        "get_learned_conditioning",
        lambda self, texts: encoded.append(list(texts)) or encode(self, texts),
    )
    host.generate(f"a cat {TEXT_TAGS}", ON, n_iter=2)
    assert len(encoded) == 6  # prompt and negative prompt: the host's own, the base's, one network's
    host.generate(f"a cat {TEXT_TAGS}", ON, seed=5)
    assert len(encoded) == (6 if persistent else 10)
    host.generate("a cat <lora:a:0.8> <lora:text:0.9:0.9> <lora:b:0.6>", ON)
    assert len(encoded) == (10 if persistent else 16)  # another strength: the host's own and that network's anew


def test_a_changed_file_is_read_anew(host):
    host.generate(f"a cat {TEXT_TAGS}", ON)
    host.add("text", {"transformer_fc1": "lora", "diffusion_model_to_q": "lora"}, seed=77).mtime = 2.0
    _, latents = host.generate(f"a cat {TEXT_TAGS}", ON)
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat")))


def test_another_checkpoint_has_its_own_conditions_and_deltas(host):
    host.generate(f"a cat {TEXT_TAGS}", ON)
    host.use(seed=5)
    host.networks.loaded_networks.clear()
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True})
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat")))
    assert float(next(iter(p.comments)).split()[5]) < 1e-12


class OddError(Exception):
    """Raised by these tests only."""


def fail_at(host, monkeypatch, call, error):
    calls, apply_model = iter(range(99)), host.model.SdModel.apply_model

    def failing(self, *args, **kwargs):
        if next(calls) == call:
            raise error
        return apply_model(self, *args, **kwargs)

    monkeypatch.setattr(host.model.SdModel, "apply_model", failing)


@pytest.mark.parametrize(
    "error",
    [OddError("inside the model"), RuntimeError("inside the model"), KeyboardInterrupt("inside the model")],
    ids=repr,
)
@pytest.mark.parametrize("call", [0, 2])
def test_an_error_in_the_model_is_the_hosts_and_leaves_nothing(host, monkeypatch, call, error):
    fail_at(host, monkeypatch, call, error)
    p = host.request(f"a cat {TAGS}", ON)
    with pytest.raises(type(error), match="inside the model") as raised:
        host.processing.process_images(p)
    assert raised.value is error
    assert_clean(host, p)


def test_interruption_leaves_nothing(host, monkeypatch):
    from modules.sd_samplers_common import InterruptedException

    fail_at(host, monkeypatch, 2, InterruptedException())
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert torch.isfinite(latents).all()
    assert_clean(host, p)
    monkeypatch.undo()
    host.shared.state.interrupted = True
    p, latents = host.generate(f"a cat {TAGS}", ON)
    host.shared.state.interrupted = False
    assert torch.equal(latents[0], p.noise(0))
    assert_clean(host, p)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("where", ["plan", "combine"])
def test_an_error_of_ours_in_a_callback_ends_the_generation(host, monkeypatch, steps, where):
    class Broken(METHODS["loratorio"]):
        pass

    def fail(*args):
        raise OddError("a mistake")

    setattr(Broken, where, fail)
    monkeypatch.setitem(METHODS, "loratorio", Broken)
    p = host.request(f"a cat {TEXT_TAGS}", ON, steps=steps)
    with pytest.raises(LoratorioError, match="OddError: a mistake"):
        host.processing.process_images(p)
    assert_clean(host, p, ["a", "text", "b"])
    monkeypatch.undo()
    assert_close(host.generate(f"a cat {TEXT_TAGS}", ON)[1], by_equations(host, [A, TEXT, B], one("a cat")))


def test_an_error_at_the_start_ends_the_generation(host, monkeypatch):
    monkeypatch.setattr(host.a1111.deltas, "_deltas", lambda adapter, below, layers: 1 / 0)
    p = host.request(f"a cat {TEXT_TAGS}", ON)
    with pytest.raises(LoratorioError, match="could not start: ZeroDivisionError"):
        host.processing.process_images(p)
    assert [message for message, _ in host.errors.reported] == ["LoRAtorio could not start"]
    assert_clean(host, p, ["a", "text", "b"])


# What the user is told

BAD = {
    "value": (f"a cat {TAGS}", {**ON, "temperature": -1}, ["temperature", "-1", "1e-06"]),
    "name": (f"a cat {TAGS}", {**ON, "temprature": 1}, ["temprature", "temperature"]),
    "unknown": (f"a cat {TAGS} <lora:nowhere:1>", ON, ["nowhere"]),
    "unreadable": (f"a cat {TAGS} <lora:broken:1>", ON, ["broken"]),
    "foreign": (f"a cat {TAGS} <lora:foreign:1>", ON, ["foreign"]),
    "misfit": (f"a cat {TAGS} <lora:misfit:1>", ON, ["misfit", "none of the 1 layers"]),
}


@pytest.mark.parametrize(("prompt", "settings", "words"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("stops", [True, False], ids=["stops", "goes on"])
def test_bad_input(host, prompt, settings, words, stops):
    host.add("broken", {}, 8).layers = None
    host.add("misfit", {"diffusion_model_to_q": "full"}, 8).layers["diffusion_model_to_q"]["diff"] = torch.zeros(3, 3)
    ordinary = merged_picture(host, prompt)
    host.gradio.warnings.clear()
    host.errors.reported.clear()
    host.shared.opts.loratorio_stop_on_error = stops
    p = host.request(prompt, settings)
    if stops:
        with pytest.raises(LoratorioError) as raised:
            host.processing.process_images(p)
        message = str(raised.value)
    else:
        assert torch.equal(host.processing.process_images(p), ordinary)
        (message,) = p.comments
        assert p.extra_generation_params == {NOTE: message}
        assert message.endswith("This makes the picture the WebUI's ordinary one.")
    assert all(word in message for word in words), message
    assert message in host.gradio.warnings
    assert host.errors.reported == []
    assert "launch_sampling" not in vars(p.sampler)
    host.shared.opts.loratorio_stop_on_error = True
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], by_equations(host, [A, B], one("a cat")))


def test_a_network_missing_in_the_second_pass_stops_the_first(host, monkeypatch):
    rows = count_rows(host, monkeypatch)
    with pytest.raises(LoratorioError, match="nowhere"):
        host.generate(f"a cat {TAGS}", ON, enable_hr=True, hr_prompt="a cat <lora:nowhere:1>")
    assert rows == []


def test_layers_that_cannot_be_applied_are_left_out_as_the_host_leaves_them_out(host):
    host.networks.available_networks["b"].layers["diffusion_model_to_q"] = {"diff": torch.zeros(3, 3)}
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert "1 of 4 layers" in p.extra_generation_params[NOTE] and "'b'" in p.extra_generation_params[NOTE]
    assert_close(latents, by_equations(host, [A, B], one("a cat")))


def test_a_network_made_for_an_inpainting_model(host):
    """The host pads every delta of a 9-channel layer by 5 channels, also one that has 9, which then does not fit."""
    conv_in = host.use(channels=9).model.diffusion_model.conv_in
    host.networks.available_networks["b"].layers["diffusion_model_conv_in"] = {
        "lora_up.weight": torch.full((8, 1, 1, 1), 0.3).double(),
        "lora_down.weight": torch.full((1, *conv_in.weight.shape[1:]), 0.3).double(),
    }
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True})
    assert float(p.extra_generation_params["LoRAtorio verify"].split()[3]) < 1e-9
    assert "1 of 3 layers of the LoRA 'b' could not be applied" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize("prompt", ["a cat", "a cat <lora:a:0>"])
def test_no_network_is_an_ordinary_picture_and_a_note(host, prompt):
    p, latents = host.generate(prompt, ON)
    assert torch.equal(latents, merged_picture(host, prompt))
    assert "no LoRA" in p.extra_generation_params[NOTE]
    assert list(p.comments) == [p.extra_generation_params[NOTE]] == host.gradio.warnings


def test_a_network_of_strength_zero_need_not_match_the_model(host):
    p, latents = host.generate(f"a cat {TAGS} <lora:foreign:0>", ON)
    assert NOTE not in p.extra_generation_params
    assert_close(latents, by_equations(host, [A, B], one("a cat")))


def test_without_a_page_there_are_no_options_and_errors_still_stop(host):
    for name in [name for name in vars(host.shared.opts) if name.startswith("loratorio")]:
        delattr(host.shared.opts, name)
    with pytest.raises(LoratorioError, match="patch_size is 0"):
        host.generate(f"a cat {TAGS}", {**ON, "patch_size": 0})
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], by_equations(host, [A, B], one("a cat")))


def test_a_network_that_the_host_adds_to_each_prompt(host, monkeypatch):
    """By its setting "Add network to prompt", which gives no tag to the first batch."""
    extra_networks = importlib.import_module("modules.extra_networks")
    added, activate = extra_networks.ExtraNetworkParams(["b", "0.6"]), extra_networks.activate
    monkeypatch.setattr(
        extra_networks, "activate", lambda p, data: activate(p, {"lora": [*data.get("lora", []), added]})
    )
    _, latents = host.generate("a cat <lora:a:0.8>", ON)
    monkeypatch.undo()
    assert_close(latents, by_equations(host, [A, B], one("a cat")))


def test_networks_switched_off_are_an_ordinary_picture_and_a_note(host):
    p, _ = host.generate(f"a cat {TAGS}", ON, disable_extra_networks=True)
    assert p.extra_generation_params == {
        NOTE: "LoRAtorio did nothing: LoRAs are switched off for this generation. "
        "This makes the picture the WebUI's ordinary one."
    }


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


def test_a_file_whose_values_are_no_numbers_is_refused_by_name(host, monkeypatch):
    low_rank = host.a1111.deltas._low_rank
    monkeypatch.setattr(
        host.a1111.deltas,
        "_low_rank",
        lambda *args: low_rank(*args).__class__(low_rank(*args).down, low_rank(*args).up * math.nan),
    )
    with pytest.raises(LoratorioError, match="'a' holds values that are no numbers"):
        host.generate(f"a cat {TAGS}", ON)


def test_verify_says_when_there_was_nothing_to_verify(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True, "start": 0.9})
    assert p.extra_generation_params["LoRAtorio verify"] == "nothing was composed, so nothing was verified"


def test_switch_changes_on_time(host, monkeypatch):
    """15 / 22 * 22 is a little less than 15 in floating point."""
    turns = []
    plan = METHODS["switch"].plan
    monkeypatch.setattr(METHODS["switch"], "plan", lambda self, n, step: turns.append(step) or plan(self, n, step))
    host.generate(f"a cat {TAGS}", {**ON, "method": "switch"}, steps=22)
    assert turns == list(range(22))


def test_another_extensions_launch_sampling_is_called_and_kept(host):
    """Also when an arranged sampling never started and is arranged anew."""

    class Sampler:
        def launch_sampling(self, steps, func):
            return "the host's"

    sampler = Sampler()
    sampler.launch_sampling = another = lambda steps, func: "another's"
    for word in ("first", "second"):
        host.messages.instead_of_sampling(
            sampler, lambda launch_sampling, steps, func, word=word: (word, launch_sampling(steps, func))
        )
    assert sampler.launch_sampling(1, None) == ("second", "another's")
    assert sampler.launch_sampling is another
    del sampler.launch_sampling
    host.messages.instead_of_sampling(sampler, lambda launch_sampling, steps, func: launch_sampling(steps, func))
    assert sampler.launch_sampling(1, None) == "the host's"
    assert vars(sampler) == {}


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("cond_stage_key", "edit", "InstructPix2Pix"), ("is_sd3", True, "SD3"), (None, None, "SD Unet")],
)
def test_declined_models_are_ordinary_pictures_and_a_note(host, field, value, word):
    if field:
        setattr(host.shared.sd_model, field, value)
    else:
        host.sd_unet.current_unet = object()
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert torch.equal(latents, merged_picture(host, f"a cat {TAGS}"))
    assert word in p.extra_generation_params[NOTE]


def test_a_note_is_written_once(host):
    p, _ = host.generate("a cat", ON, n_iter=3)
    assert p.extra_generation_params[NOTE].count("no LoRA") == 1


def test_notes_of_an_earlier_request_do_not_stay(host):
    p, _ = host.generate("a cat", {**ON, "verify": True})
    p.prompt = f"a cat {TAGS}"
    host.processing.process_images(p)
    assert NOTE not in p.extra_generation_params and "LoRAtorio verify" in p.extra_generation_params


# Off


@pytest.mark.parametrize(
    "settings", [{}, {"enabled": False}, {"enabled": False, "temperature": -1}, [], [False, "loratorio", 2]], ids=str
)
def test_disabled_does_nothing(host, settings, monkeypatch):
    plain, expected = host.generate(f"a cat {TEXT_TAGS}")
    for name in ("prepare", "stop", "note"):
        monkeypatch.setattr(host.a1111, name, lambda *args: pytest.fail("not when disabled"))
    p, latents = host.generate(f"a cat {TEXT_TAGS}", settings)
    assert torch.equal(latents, expected)
    assert p.extra_generation_params == {} and p.comments == {}
    assert vars(p).keys() - vars(plain).keys() <= {"loratorio"} and getattr(p, "loratorio", None) is None
    assert host.gradio.warnings == [] and host.errors.reported == []
    assert_clean(host, p, ["a", "text", "b"])


def test_callbacks_leave_other_samplings_alone(host):
    """Another extension may sample with a denoiser of its own while ours runs."""
    x = torch.ones(2, 4, 2, 2)
    params = SimpleNamespace(x=x.clone(), text_cond="text", text_uncond="text", denoiser=object(), sigma=None)
    host.a1111.on_cfg_denoiser(params)
    host.a1111.on_cfg_denoised(params)
    assert torch.equal(params.x, x) and params.text_cond == "text"


# Page, infotext, API


def test_all_controls_in_the_order_of_the_settings(host):
    controls = host.script.ui(False)
    assert tuple(control.value for control in controls) == astuple(Settings())
    assert host.script.show(True) is host.scripts.AlwaysVisible
    assert len({control.kwargs["elem_id"] for control in controls}) == len(controls)


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


def test_sending_to_the_other_tab_takes_every_control_along(host):
    """The host copies those of both tabs' fields whose second part is in `paste_field_names`."""
    scripts = host.script, host.extension.LoratorioScript()
    for script in scripts:
        script.ui(False)
    sent, received = (
        [field for field, name in script.infotext_fields if name in host.script.paste_field_names] for script in scripts
    )
    assert [field.value for field in sent] == [field.value for field in received] == list(astuple(Settings()))


def test_infotext_that_cannot_be_read_warns_once(host):
    host.script.ui(False)
    values = [read({"LoRAtorio": "method=unheard_of"}) for _, read in host.script.infotext_fields]
    assert values == [None] * len(values)
    assert len(host.gradio.warnings) == 1 and "unheard_of" in host.gradio.warnings[0]


def test_one_dict_equals_the_positional_form(host):
    settings = Settings(enabled=True, temperature=0.2, lam=0.3)
    p, latents = host.generate(f"a cat {TAGS}", {"enabled": True, "temperature": 0.2, "lam": 0.3})
    q, same = host.generate(f"a cat {TAGS}", list(astuple(settings)))
    assert torch.equal(latents, same)
    assert p.extra_generation_params == q.extra_generation_params == {"LoRAtorio": settings.to_infotext()}


def test_adapters_take_part_within_their_windows(host, monkeypatch):
    present = []
    method = METHODS["loratorio"]
    plan = method.plan
    monkeypatch.setattr(
        method, "plan", lambda self, these, step: present.append((step, tuple(these))) or plan(self, these, step)
    )
    p, _ = host.generate(
        "a cat <lora:a:1:ltend=0.5> <lora:b:0.5:ltstart=0.25:ltend=0.75>", {**ON, "verify": True}, steps=8
    )
    assert present == [(0, (0,)), (1, (0,)), (2, (0, 1)), (3, (0, 1)), (4, (1,)), (5, (1,))]
    assert p.loratorio is None and p.extra_generation_params["LoRAtorio verify"].endswith("over 8 calls")


GLOBAL = "<lora:text:0.7:0.9:lt=global> <lora:a:0.8> <lora:b:0.6>"


@pytest.mark.parametrize(
    "settings", [{}, {"lam": 0.0, "adapters_per_pass": 1}, {"method": "composite"}, {"text_encoder": "merged"}], ids=str
)
def test_global_adapters_are_in_the_base_and_in_every_evaluation(host, settings):
    p, latents = host.generate(f"a cat {GLOBAL}", {**ON, **settings, "verify": True})
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings=settings, everywhere=[TEXT]))
    assert float(p.extra_generation_params["LoRAtorio verify"].split()[3]) < 1e-9
    assert_clean(host, p, ("text", "a", "b"))


def test_kinds_that_read_the_weight_read_it_with_the_global_adapters(host):
    """DoRA's and OFT's changes depend on the weight that they change."""
    host.add("under", {f"diffusion_model_{name}": "full" for name in UNET_LAYERS}, seed=7)
    host.add(
        "over",
        {
            f"diffusion_model_{name}": kind
            for name, kind in zip(UNET_LAYERS[3:9], ("dora", "norm", "oft", "dora", "glora", "oft"))
        },
        seed=8,
    )
    _, latents = host.generate("a cat <lora:over:0.6> <lora:under:0.5:lt=global> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(host, [("over", 0.6, 0.6), B], one("a cat"), everywhere=[("under", 0.5, 0.5)]))


def test_a_global_adapter_alone_is_merged(host):
    _, latents = host.generate("a cat <lora:a:0.8:lt=global>", ON)
    assert_close(latents, merged_picture(host, "a cat <lora:a:0.8>"))


def test_maps_show_local_adapters(host):
    p, _ = host.generate(f"a cat {GLOBAL}", {**ON, "maps": True})
    (share,) = json.loads(p.extra_generation_params["LoRAtorio shares"])
    assert set(share["mean"]) == {"a", "b"} and sum(share["mean"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "pool, text",
    [("text:0.7, b:0.6", "<lora:a:0.8>"), ("b:0.6, ?e*t:0.7", "<lora:a:0.8>"), ("a:0.8, text:0.7, b:0.6, a:9", "")],
)
def test_a_pool_is_composed_like_the_prompts_own(host, pool, text):
    p, latents = host.generate(f"a cat {text}", {**ON, "pool": pool, "top_k": 2, "verify": True})
    pooled = (
        [("text", 0.7, 0.7), B]
        if pool.startswith("text")
        else [B, ("text", 0.7, 0.7)]
        if text
        else [("text", 0.7, 0.7), B]
    )
    assert_close(latents, by_equations(host, [A, *pooled], one("a cat"), settings={"top_k": 2}))
    assert p.extra_generation_params["LoRAtorio pool"] == "step 1: " + ", ".join(name for name, *_ in [A, *pooled])
    assert_clean(host, p, ("a",) if text else ())


@pytest.mark.parametrize("limit", [0, 10])
def test_a_pool_keeps_its_strengths_where_a_later_prompt_has_others(host, limit):
    """The host keeps networks in memory, and sets their strengths anew for each prompt."""
    host.shared.opts.lora_in_memory_limit = limit
    _, latents = host.generate(
        "a cat <lora:a:0.8>",
        {**ON, "pool": "b:0.6"},
        enable_hr=True,
        hr_prompt="a dog <lora:a:0.8> <lora:b:0.1>",
        n_iter=2,
    )
    x = torch.cat([by_equations(host, [A, B], one("a cat"), seed=seed) for seed in (1, 2)])
    x = torch.nn.functional.interpolate(x, scale_factor=2)
    assert_close(latents, by_equations(host, [A, ("b", 0.1, 0.1)], one("a dog") * 2, x=x, size=(96, 80)))


@pytest.mark.parametrize("limit", [0, 10])
@pytest.mark.parametrize("name", ["a", "anna"])
def test_what_the_prompt_switches_off_is_not_in_the_pool(host, name, limit):
    host.shared.opts.lora_in_memory_limit = limit
    _, latents = host.generate(f"a cat <lora:{name}:0> <lora:b:0.6>", {**ON, "pool": "a:0.8, text:0.7"})
    assert_close(latents, by_equations(host, [B, ("text", 0.7, 0.7)], one("a cat")))


def test_a_pool_in_portions(host, monkeypatch):
    """More adapters than stay on the device."""
    for number in range(12):
        host.add(
            f"p{number}",
            {f"diffusion_model_{UNET_LAYERS[number % 10]}": "lora", "diffusion_model_to_k": "lora"},
            seed=20 + number,
        )
    rows = count_rows(host, monkeypatch)
    p, latents = host.generate(f"a cat {TAGS}", {**ON, "pool": "p*:0.5"}, steps=1)
    assert rows == [8, 8, 8, 6]
    assert_close(
        latents, by_equations(host, [A, B, *((f"p{number}", 0.5, 0.5) for number in range(12))], one("a cat"), steps=1)
    )
    assert_clean(host, p)


def test_scouting_evaluates_the_few_that_kept_a_share(host, monkeypatch):
    weighed = []
    monkeypatch.setattr(
        Scout,
        "learn",
        lambda self, adapters, weights, learn=Scout.learn: weighed.append(weights) or learn(self, adapters, weights),
    )
    settings = {"pool": "text:0.7,b:0.1,other", "pool_mode": "scout", "scout": 0.5, "scout_share": 0.05}
    p, _ = host.generate("a cat <lora:a:0.8>", {**ON, **settings, "verify": True}, steps=4)
    assert weighed[0].shape == (4, 1, 5, 6)  # two by three regions, of which the upper and the lower ones share a row
    won = (
        torch.stack([weights.argmax(0)[0] == torch.arange(4)[:, None, None] for weights in weighed[:2]]).float().mean(0)
    )
    most = torch.stack(
        [won[:, rows, left : left + 2].mean((1, 2)) for rows in (slice(3), slice(2, 5)) for left in (0, 2, 4)]
    ).amax(0)
    kept = ["a", *(name for name, share in zip(("text", "b", "other"), most[1:] / most.max()) if share >= 0.05)]
    assert 1 < len(kept) < 4, most
    assert p.extra_generation_params["LoRAtorio pool"] == f"step 1: a, text, b, other; step 3: {', '.join(kept)}"
    assert float(p.extra_generation_params["LoRAtorio verify"].split()[3]) < 1e-9
    assert_clean(host, p, ("a",))


@pytest.mark.parametrize("enable_hr, told", [(False, "step 1: a, b"), (True, "step 1: a, b; step 1: b")])
def test_each_picture_tells_of_its_own_batch(host, monkeypatch, enable_hr, told):
    seen = []
    monkeypatch.setattr(
        host.script, "postprocess_image", lambda p, *args: seen.append(p.extra_generation_params["LoRAtorio pool"])
    )
    host.generate(
        "a cat <lora:a:0.8>", {**ON, "pool": "b"}, steps=1, n_iter=3, enable_hr=enable_hr, hr_prompt="a dog <lora:a:0>"
    )
    assert seen == [told] * 3


def test_a_pool_by_other_names(host):
    """An alias of several networks is none's."""
    host.networks.available_network_aliases["Both"], host.networks.forbidden_network_aliases["both"] = (
        host.networks.available_networks["other"],
        1,
    )
    p, _ = host.generate("a cat <lora:text:0.8>", {**ON, "pool": "anna, b, a"}, steps=1)
    assert p.extra_generation_params["LoRAtorio pool"] == "step 1: text, a, b"
    with pytest.raises(LoratorioError, match="'Both', which is none of the WebUI's LoRAs"):
        host.generate("a cat <lora:text:0.8>", {**ON, "pool": "Both"}, steps=1)


def test_files_of_every_folder_of_networks(host):
    files = (
        "/loras/styles/v1.5/a.safetensors",
        "/lycoris/b.pt",
        "/more/x/text.ckpt",
        "/elsewhere/x/other.pt",
        "/loras2/foreign.pt",
    )
    for name, filename in zip(("a", "b", "text", "other", "foreign"), files):
        host.networks.available_networks[name].filename = filename
    vars(host.shared.cmd_opts).update(lyco_dir_backcompat="/lycoris", lora_dirs=["/more", "/others"])
    assert host.pool.known() == {
        "a": "styles/v1.5/a",
        "b": "b",
        "text": "x/text",
        "other": "other",
        "foreign": "foreign",
    }
    vars(host.shared.cmd_opts).update(lyco_dir_backcompat=None, lora_dirs=[])
    assert host.pool.known()["b"] == "b" and host.pool.known()["text"] == "text"


def test_folders_on_several_drives(host, monkeypatch):
    monkeypatch.setattr(host.pool, "PurePath", PureWindowsPath)
    host.shared.cmd_opts.lora_dir, host.shared.cmd_opts.lora_dirs = r"C:\webui\Lora", [r"D:\loras"]
    host.networks.available_networks["a"].filename = r"c:\WebUI\Lora\styles\a.safetensors"
    host.networks.available_networks["b"].filename = r"D:\loras\old\b.safetensors"
    host.networks.available_networks["text"].filename = r"E:\text.safetensors"
    paths = host.pool.known()
    assert (paths["a"], paths["b"], paths["text"]) == ("styles/a", "old/b", "text")


def misfit(host, name, fits=(), text=False):
    """A network with two layers of other shapes than the model's, and these `fits`."""
    layers = {"diffusion_model_to_q": "full", "diffusion_model_to_out": "lora", **dict.fromkeys(fits, "lora")} | (
        {"transformer_fc1": "lora"} if text else {}
    )
    w = host.add(name, layers, seed=8).layers
    w["diffusion_model_to_q"]["diff"], w["diffusion_model_to_out"]["lora_down.weight"] = (
        torch.zeros(3, 3),
        torch.zeros(2, 3),
    )


def test_what_cannot_be_in_a_pool(host):
    misfit(host, "shapes")
    misfit(host, "most", ["diffusion_model_to_k"], text=True)
    misfit(host, "half", ["diffusion_model_to_k", "diffusion_model_conv_out"])
    host.networks.loads.clear()
    p, latents = host.generate(
        "a cat <lora:a:0.8>", {**ON, "pool": "foreign, shapes, b:0.6, half:0.7, most"}, n_iter=2, enable_hr=True
    )
    left_out = (
        "LoRAtorio: 3 LoRAs of the pool cannot be read, or do not suit this model, and are left out: foreign, shapes, "
        "most."
    )
    assert left_out in p.extra_generation_params[NOTE] and p.extra_generation_params[NOTE].count("left out") == 2
    assert "2 of 4 layers of the LoRA 'half'" in p.extra_generation_params[NOTE]
    assert [warning for warning in host.gradio.warnings if "pool" in warning] == [left_out]
    assert p.extra_generation_params["LoRAtorio pool"].startswith("step 1: a, b, half;")
    assert host.networks.loads[1:] == ["foreign", "shapes", "b", "half", "most"], (
        "each file of the pool is read once a request"
    )
    _, expected = host.generate("a cat <lora:a:0.8> <lora:b:0.6> <lora:half:0.7>", ON, n_iter=2, enable_hr=True)
    assert_close(latents, expected)


def test_a_pool_of_misfits_only_is_an_ordinary_picture_and_a_note(host):
    misfit(host, "shapes")
    p, latents = host.generate("a cat", {**ON, "pool": "shapes"})
    assert torch.equal(latents, merged_picture(host, "a cat"))
    assert (
        "left out: shapes." in p.extra_generation_params[NOTE]
        and "neither has the pool" in p.extra_generation_params[NOTE]
    )


@pytest.mark.parametrize(
    "version, metadata, noted, suits",
    [
        ("Unknown", {}, None, True),
        ("SD1", {"ss_base_model_version": "sd_v1"}, None, True),
        ("SDXL", {"ss_base_model_version": "sdxl_base_v1-0"}, None, False),
        ("SD2", {"ss_v2": "True"}, None, False),
        ("SDXL", {"ss_base_model_version": "sdxl_base_v1-0"}, "SD1", True),
        ("SD1", {"format": "pt"}, "SDXL", False),
        ("SDXL", {}, "Unknown", True),
    ],
)
def test_files_for_another_kind_of_model_are_not_in_a_pool(host, tmp_path, version, metadata, noted, suits):
    """The host would apply what has the same names."""
    entry = host.networks.available_networks["b"]
    entry.filename, entry.metadata, entry.sd_version = (
        str(tmp_path / "b.safetensors"),
        metadata,
        host.network.SdVersion[version],
    )
    if noted:
        (tmp_path / "b.json").write_text(json.dumps({"sd version": noted}))
    p, _ = host.generate("a cat <lora:a:0.8>", {**ON, "pool": "b, text"}, steps=1)
    assert p.extra_generation_params["LoRAtorio pool"] == ("step 1: a, b, text" if suits else "step 1: a, text")
    assert ("left out: b." in p.extra_generation_params.get(NOTE, "")) == (not suits)
    assert NOTE not in host.generate("a cat <lora:b:0.8>", ON, steps=1)[0].extra_generation_params


@pytest.mark.parametrize("metadata, suits", [({"format": "pt"}, True), ({"ss_v2": "False"}, False)])
def test_what_the_host_takes_for_sd1s_may_be_sdxls_unless_the_trainer_has_told(host, metadata, suits):
    host.shared.sd_model.is_sd1, host.shared.sd_model.is_sdxl = False, True
    entry = host.networks.available_networks["b"]
    entry.metadata, entry.sd_version = metadata, host.network.SdVersion.SD1
    p, _ = host.generate("a cat <lora:a:0.8>", {**ON, "pool": "b, text"}, steps=1)
    assert p.extra_generation_params["LoRAtorio pool"] == ("step 1: a, b, text" if suits else "step 1: a, text")


def test_a_pool_that_cannot_be_read(host):
    for pool, message in (("horse", "'horse', which is none of the WebUI's LoRAs"), ("b:much", "must be a number")):
        with pytest.raises(LoratorioError, match=message):
            host.generate("a cat <lora:a:0.8>", {**ON, "pool": pool})
    p, _ = host.generate("a cat <lora:a:0.8>", {**ON, "pool": "b", "method": "merge"})
    assert "no pool" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize(
    "settings",
    [{"guidance_every": 2}, {"guidance_every": 3, "lam": 0.0}, {"guidance_every": 2, "method": "composite"}],
    ids=str,
)
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_cheaper_guidance(host, monkeypatch, settings, sampler):
    rows = count_rows(host, monkeypatch)
    _, latents = host.generate(f"a cat {TAGS}", {**ON, **settings}, sampler_name=sampler, steps=4)
    full, saved = (5, 3) if settings.get("method") else (6, 4)
    assert rows == [saved if step % settings["guidance_every"] else full for step in range(4)]
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings=settings, sampler=sampler, steps=4), 1e-6)


def test_trigger_words_are_in_the_adapters_own_prompts(host, monkeypatch):
    words = {"a.safetensors": "word of a", "b.safetensors": ""}
    monkeypatch.setattr(host.text, "trigger_words", lambda path: words[path.rpartition("/")[2]])
    p, latents = host.generate(f"a cat AND a dog :0.5 {TAGS}", {**ON, "trigger_words": True})
    assert_close(latents, by_equations(host, [A, B], [[("a cat", 1.0), ("a dog", 0.5)]], words=("word of a", "")))
    assert_clean(host, p)


def test_mistyped_windows_stop_the_sampling(host):
    with pytest.raises(LoratorioError, match="'ltbegin', which is not known; the names are ltstart, ltend and lt"):
        host.generate("a cat <lora:a:1:ltbegin=0.5>", ON)


def test_merge_says_that_windows_have_no_effect(host):
    p, _ = host.generate("a cat <lora:a:1:ltend=0.5>", {**ON, "method": "merge"})
    assert "ltstart and ltend have no effect" in p.extra_generation_params["LoRAtorio note"]


def test_weight_maps_are_the_calls_mean_weights(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True, "patch_size": 2}, batch_size=2, n_iter=2, steps=2)
    shares = json.loads(p.extra_generation_params["LoRAtorio shares"])
    assert len(shares) == 4 and [set(share["mean"]) for share in shares] == [{"a", "b"}] * 4
    for batch in (shares[:2], shares[2:]):
        by_call = [sum(picture["mean"][name] for picture in batch) / 2 for name in ("a", "b")]
        assert by_call == pytest.approx(
            [sum(call[name] for call in batch[0]["by_call"]) / 2 for name in ("a", "b")], abs=1e-6
        )
        assert len(batch[0]["by_call"]) == 2 and all(
            sum(call.values()) == pytest.approx(1) for call in batch[0]["by_call"]
        )
    assert shares[0]["mean"] != shares[1]["mean"]
    assert len(p.processed.images) == 8 and p.processed.infotexts[4:] == p.processed.infotexts[:4]
    saved = importlib.import_module("modules.images").saved
    told = [tuple(one[key] for key in ("basename", "path", "grid", "info", "seed")) for one in saved]
    assert told == [("loratorio", "grids", True, f"picture {n}", 1 + n) for n in range(4)]
    assert saved[0]["image"] is p.processed.images[4] and saved[0]["image"].width > 4 * p.width


def test_weight_maps_of_a_hires_pass_take_the_first_pass_s_place(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True}, enable_hr=True, steps=2, hr_second_pass_steps=1)
    (share,) = json.loads(p.extra_generation_params["LoRAtorio shares"])
    assert len(share["by_call"]) == 1


def test_weight_maps_show_windows_and_sub_prompts(host):
    p, _ = host.generate("a cat AND a dog :0.5 <lora:a:1:ltend=0.5> <lora:b:0.5>", {**ON, "maps": True}, steps=2)
    (share,) = json.loads(p.extra_generation_params["LoRAtorio shares"])
    assert 0 < share["by_call"][0]["a"] < 1 and share["by_call"][1] == {"a": 0.0, "b": 1.0}


def test_maps_of_a_method_without_weights_are_a_note(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True, "method": "switch"})
    assert "no weight maps with the method switch" in p.extra_generation_params["LoRAtorio note"]
    assert len(p.processed.images) == 1 and "LoRAtorio shares" not in p.extra_generation_params


def test_saved_grids_are_the_host_s_choice(host):
    host.shared.opts.grid_save = False
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    assert len(p.processed.images) == 2 and importlib.import_module("modules.images").saved == []


@pytest.mark.parametrize("chosen, ending", [("as grids", "jpg"), ("webp", "webp")])
def test_format_of_saved_maps(host, chosen, ending):
    host.shared.opts.grid_format, host.shared.opts.loratorio_map_format = "jpg", chosen
    host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    assert [one["extension"] for one in importlib.import_module("modules.images").saved] == [ending]


def test_maps_that_cannot_be_drawn_are_a_note(host, monkeypatch):
    def no_font(size):
        raise OSError("no such font")

    monkeypatch.setattr(importlib.import_module("modules.images"), "get_font", no_font)
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    assert "could not be drawn: OSError: no such font" in p.extra_generation_params["LoRAtorio note"]
    assert len(p.processed.images) == 1


def test_presets_set_how_loras_are_weighed_and_reset_sets_all_but_the_check_box(host):
    host.gradio.Button.made.clear()
    controls = dict(zip((field.name for field in fields(Settings)), host.script.ui(False)))
    buttons = {button.value: button.events["click"] for button in host.gradio.Button.made[: len(PRESETS) + 1]}
    assert list(buttons) == [*PRESETS, "reset"]
    for name, (function, inputs, outputs) in buttons.items():
        changed = [setting for setting, control in controls.items() if control in outputs]
        expected = (
            {"method", "patch_size", "temperature", "lam", "top_k"} if name in PRESETS else set(controls) - {"enabled"}
        )
        assert inputs == [] and set(changed) == expected
        assert Settings(**dict(zip(changed, function(), strict=True))) == Settings(**PRESETS.get(name, {}))


WEIGHING = ("patch_size", "temperature", "lam", "top_k", "maps", "scout", "scout_every", "scout_share")


@pytest.mark.parametrize(
    "method, grey",
    [
        ("loratorio", []),
        ("composite", [*WEIGHING]),
        (
            "merge",
            [
                *WEIGHING,
                "start",
                "end",
                "text_encoder",
                "adapters_per_pass",
                "verify",
                "pool",
                "pool_mode",
                "trigger_words",
                "guidance_every",
            ],
        ),
    ],
)
def test_controls_that_a_method_does_not_use_are_grey(host, method, grey):
    controls = host.script.ui(False)
    names = [field.name for field in fields(Settings)]
    function, inputs, outputs = controls[1].events["change"]
    assert inputs == [controls[1]]
    changes = dict(zip((names[controls.index(control)] for control in outputs), function(method), strict=True))
    assert {name for name, change in changes.items() if not change["interactive"]} == set(grey)
    host.shared.opts.loratorio_default_method = method
    assert {
        name for name, control in zip(names, host.script.ui(False)) if control.kwargs.get("interactive") is False
    } == set(grey)


def test_accordion_starts_with_the_settings_page_s_defaults(host):
    chosen = Settings(
        enabled=True,
        method="loratorio",
        patch_size=4,
        temperature=0.02,
        lam=1.0,
        start=0.25,
        text_encoder="merged",
        maps=True,
    )
    for name, value in chosen.to_api().items():
        assert host.shared.opts.data_labels[f"loratorio_default_{name}"].default == getattr(Settings(), name)
        setattr(host.shared.opts, f"loratorio_default_{name}", value)
    host.gradio.Button.made.clear()
    controls = host.script.ui(False)
    assert tuple(control.value for control in controls) == astuple(chosen)
    assert all(control.do_not_save_to_config for control in controls)
    (reset,) = (button for button in host.gradio.Button.made if button.value == "reset")
    function, _, _ = reset.events["click"]
    assert Settings(True, *function()) == chosen


def test_defaults_that_do_not_go_together_are_not_used(host, caplog):
    host.shared.opts.loratorio_default_start, host.shared.opts.loratorio_default_end = 0.8, 0.2
    assert tuple(control.value for control in host.script.ui(False)) == astuple(Settings())
    assert "start is 0.8" in caplog.text


def test_defaults_are_the_page_s_and_not_a_request_s(host):
    host.shared.opts.loratorio_default_temperature = 0.7
    p, _ = host.generate(f"a cat {TAGS}", ON)
    assert p.extra_generation_params["LoRAtorio"] == Settings(enabled=True).to_infotext()
