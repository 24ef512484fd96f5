"""The script on stand-ins of Forge, Neo and reForge: pictures against the equations, and the host as it was afterwards.

The expected latents come from `Equations`, which knows nothing of the extension: it merges one network at a
time with the host's loader, evaluates row by row, and composes patch by patch in plain loops.
"""

import copy
import math
import re
from types import SimpleNamespace

import pytest
import torch
from equations import assert_close, differs, patch_weights
from standin import forge_host

from lib_loratorio.engine.methods import METHODS
from lib_loratorio.errors import LoratorioError
from lib_loratorio.settings import Settings

A, B, TEXT = ("a", 0.8, 0.8), ("b", 0.6, 0.6), ("text", 0.7, 0.9)
TAGS = "<lora:a:0.8> <lora:b:0.6>"
TEXT_TAGS = "<lora:a:0.8> <lora:text:0.7:0.9> <lora:b:0.6>"
ON = {"enabled": True}
NOTE, VERIFY = "LoRAtorio note", "LoRAtorio verify"
LONG = "a very long prompt about many cats"
BASE, MERGED = -1, -2
SINGLE = 1e-5
"""Kinds without factors are computed in float32."""


@pytest.fixture(params=forge_host.FOLDERS)
def host(request):
    with forge_host.installed(request.param) as host:
        add_networks(host)
        yield host


@pytest.fixture
def quantising(host):
    if not host.quantises:
        pytest.skip(f"{host.member} loads no models stored as integers, and merges every LoRA into what is stored")
    host.args.dynamic_args["online_lora"] = True
    return host


@pytest.fixture
def forge():
    with forge_host.installed("forge") as host:
        add_networks(host)
        yield host


@pytest.fixture
def neo():
    with forge_host.installed("neo") as host:
        add_networks(host)
        yield host


@pytest.fixture
def reforge():
    with forge_host.installed("reforge") as host:
        add_networks(host)
        yield host


def add_networks(host):
    host.add(
        "a",
        {"conv_in": "mid", "down": "lora", "qkv": "lora", "to_q": "no alpha", "to_k": "lora", "conv_out": "lora"},
        seed=1,
    )
    host.add("b", {"conv_in": "lora", "to_k": "rank 3", "to_v": "lora", "to_out": "lora"}, seed=2)
    host.add("text", {"transformer.fc1": "lora", "transformer.fc2": "lora", "to_q": "lora"}, seed=3)
    host.add("other", {"transformer.fc1": "lora"}, seed=4)
    host.add("foreign", {"foreign.to_q": "lora"}, seed=5)


# The equations, in loops


class Equations:
    """One request. `prompts`: per picture a list of `(text, weight)`; `before`: other extensions that run first."""

    def __init__(
        self,
        host,
        adapters,
        prompts,
        negative="",
        *,
        cfg=3.0,
        steps=3,
        sampler="Euler",
        seed=1,
        x=None,
        size=(48, 40),
        settings=None,
        windows=None,
        skipped=lambda call: False,
        before=(),
        refiner=None,
        switch_at=2.0,
        everywhere=(),
        words=(),
    ):
        self.host, self.adapters, self.prompts, self.negative = host, adapters, prompts, negative
        self.settings, self.cfg, self.steps, self.size = Settings(**(settings or {})), cfg, steps, size
        self.windows, self.skipped, self.before = windows or [(0, 1)] * len(adapters), skipped, before
        self.everywhere, self.words, self.kept = list(everywhere), words, {}
        self.checkpoint, self.refiner, self.switch_at = host.shared.sd_model, refiner, switch_at
        self.config = host.sd_samplers.find_sampler_config(sampler)
        self.total, self.call, self.encoded = self.config.total_steps(steps), 0, {}
        plain = host.request("", height=size[1], width=size[0], seed=seed)
        self.x = torch.stack([plain.noise(picture) for picture in range(len(prompts))]) if x is None else x
        self.image = plain.image_conditioning(self.x)

    def latents(self):
        with HostPutBack(self.host), torch.no_grad():
            return self.config.function(self.denoiser, self.x, self.config.schedule(self.steps), {})

    def denoiser(self, x, sigma, **_):
        self.fraction = self.call / self.total
        if self.refiner is not None and self.fraction >= self.switch_at:
            self.host.shared.sd_model = self.refiner
        guided = [self.picture(number, x[number : number + 1], sigma[number : number + 1]) for number in range(len(x))]
        self.call += 1
        return torch.cat(guided)

    # One picture in one step

    def picture(self, number, x, sigma):
        conditions = [self.rows(number, x, sigma, place, 0) for place in range(len(self.prompts[number]))]
        omegas = [self.omega(x, rows) for rows in conditions]
        cond = self.blended(number, [self.composed(rows, omega) for rows, omega in zip(conditions, omegas)])
        without = self.cfg == 1 or self.skipped(self.call)
        uncond = torch.zeros_like(x) if without else self.unconditional(number, x, sigma, omegas)
        return self.guided(number, x, sigma, cond, uncond, omegas, 1 if without else self.cfg)

    def unconditional(self, number, x, sigma, omegas, flag=1, kept=True):
        rows = self.rows(number, x, sigma, None, flag)
        if self.call * self.steps // self.total % self.settings.guidance_every:
            return rows[BASE] + self.kept[number] * sigma
        recentred = self.recentred(rows, omegas)
        if kept and self.settings.guidance_every > 1:
            self.kept[number] = (recentred - rows[BASE]) / sigma
        return recentred

    def guided(self, number, x, sigma, cond, uncond, omegas, cfg):
        return uncond + (cond - uncond) * cfg * sum(weight for _, weight in self.prompts[number])

    def present(self):
        return [
            adapter
            for adapter, (start, end) in enumerate(self.windows)
            if start <= self.fraction and (self.fraction < end or end == 1)
        ]

    def is_composed(self):
        s = self.settings
        return (
            s.start <= self.fraction
            and (self.fraction < s.end or s.end == 1)
            and self.host.shared.sd_model is self.checkpoint
        )

    def rows(self, number, x, sigma, place, flag, **options):
        """By model its prediction for a sub-prompt, or for the negative prompt."""
        text = self.negative if place is None else self.prompts[number][place][0]
        own = {model: f"{text}, {words}" for model, words in enumerate(self.words) if words and place is not None}
        models = [BASE, *self.present()] if self.is_composed() else [MERGED]
        return {model: self.predict(model, number, x, sigma, own.get(model, text), flag, options) for model in models}

    def omega(self, x, rows):
        """`[N,H,W]`, of the adapters present."""
        s, present = self.settings, self.present()
        if not self.is_composed() or not present:
            return None
        even = torch.full((len(present), *x.shape[2:]), 1 / len(present), dtype=x.dtype)
        if s.method == "composite":
            return even
        if s.method == "switch":
            turn = self.call * self.steps // self.total // 5 % len(present)
            return torch.eye(len(present), dtype=x.dtype)[turn][:, None, None] * torch.ones_like(even)
        noise = [(x - rows[model])[0] for model in (BASE, *present)]
        return patch_weights(noise[0], noise[1:], s.patch_size, s.temperature, s.top_k)

    def composed(self, rows, omega):
        if omega is None:
            (prediction,) = rows.values()
            return prediction
        return sum(omega[place] * rows[adapter] for place, adapter in enumerate(self.present()))

    def recentred(self, rows, omegas):
        if omegas[0] is None:
            return self.composed(rows, None)
        lam = self.settings.lam if self.settings.method == "loratorio" else 0
        return lam * rows[BASE] + (1 - lam) * self.composed(rows, sum(omegas) / len(omegas))

    def blended(self, number, predictions):
        weights = [weight for _, weight in self.prompts[number]]
        return sum(weight * e for weight, e in zip(weights, predictions)) / sum(weights)

    # One row of one model

    def networks_of(self, model):
        return self.everywhere + ({BASE: [], MERGED: self.adapters}[model] if model < 0 else [self.adapters[model]])

    def predict(self, model, number, x, sigma, text, flag, options):
        sd_model = self.host.shared.sd_model
        encoded = self.text(MERGED if self.settings.text_encoder == "merged" else model, text)
        load(self.host, self.networks_of(model))
        for function in self.before:
            function(SimpleNamespace(sd_model=sd_model))
        unet = sd_model.forge_objects.unet
        self.host.memory_management.load_model_gpu(unet)
        marks = {
            "cond_mark": torch.tensor([flag]),
            "cond_indices": [0] * (1 - flag),
            "uncond_indices": [0] * flag,
            "cond_or_uncond": [flag],
        }
        c = {"transformer_options": {**unet.model_options["transformer_options"], **options, **marks}, **encoded}
        if self.image.shape[2:] == x.shape[2:]:
            c["c_concat"] = self.image[number : number + 1]
        if unet.controlnet_linked_list is not None:
            control = control_of(unet.controlnet_linked_list, number)
            c["control"] = self.host.sampling_function.control_for(control, x, sigma, c, 1)
        wrapper = unet.model_options.get(
            "model_function_wrapper",
            lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"]),
        )
        return wrapper(unet.model.apply_model, {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": [flag]})

    def text(self, model, text):
        text = text(self.call) if callable(text) else text
        sd_model = self.host.shared.sd_model
        key = model, text, id(sd_model)
        if key not in self.encoded:
            load(self.host, self.networks_of(model))
            encoded = sd_model.get_learned_conditioning(
                self.host.prompt_parser.SdConditioning([text], False, *self.size)
            )
            self.encoded[key] = (
                {"c_crossattn": encoded["crossattn"], "y": encoded["vector"]}
                if sd_model.dict_conditions
                else {"c_crossattn": encoded}
            )
        return self.encoded[key]


class HostPutBack:
    """Afterwards the host has loaded what it had loaded before, by name and in its weights."""

    def __init__(self, host):
        self.host = host

    def __enter__(self):
        self.model = model = self.host.shared.sd_model
        self.kept = {
            name: getattr(model, name)
            for name in ("forge_objects", "forge_objects_after_applying_lora", "current_lora_hash")
        }
        self.loaded = list(self.host.networks.loaded_networks)
        model.forge_objects = model.forge_objects.shallow_copy()

    def __exit__(self, *exception):
        self.host.shared.sd_model = self.model
        vars(self.model).update(self.kept)
        self.host.networks.loaded_networks[:] = self.loaded


def load(host, adapters):
    host.shared.sd_model.current_lora_hash = None
    names, te, unet = [list(column) for column in zip(*adapters)] if adapters else ([], [], [])
    host.networks.load_networks(names, te, unet, [None] * len(names))


def control_of(control, number):
    """A control for one picture of its batch."""
    alone = copy.copy(control)
    alone.hint = control.hint[number : number + 1]
    if control.previous_controlnet is not None:
        alone.previous_controlnet = control_of(control.previous_controlnet, number)
    return alone


def one(text):
    return [[(text, 1.0)]]


def expected(host, adapters, prompts, *args, **fields):
    return Equations(host, adapters, prompts, *args, **fields).latents()


def of_tags(tags):
    return [A, B] if tags == TAGS else [A, TEXT, B]


def assert_clean(host, p):
    """Nothing of the extension is left in the host, and its model is the original one again."""
    model, former = host.shared.sd_model, p.former
    now = SimpleNamespace(unet=model.forge_objects.unet, **forge_host.seen(model))
    assert now.unet is former.unet and now.clip is former.clip and now.merged is former.merged
    assert (now.options, now.patches, now.hash) == (former.options, former.patches, former.hash)
    assert [network.name for network in now.loaded] == [network.name for network in former.loaded]
    assert host.sampling_function.calc_cond_uncond_batch is host.calc_cond_uncond_batch
    assert host.forge.sampling._current is None
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in now.unet.model.modules()
    )
    assert "launch_sampling" not in vars(p.sampler)
    host.processing.Processing.cached_c[:] = [None, None]  # so that the text encoder is used, too
    host.generate("a plain picture")
    assert all(
        torch.equal(value, model.state()[name]) for name, value in host.model.SdModel(**model.made_with).state().items()
    )


def merged_picture(host, prompt, **fields):
    return host.generate(prompt, **fields)[1]


def verified(p):
    return float(p.extra_generation_params[VERIFY].split()[3])


def count_rows(host, monkeypatch):
    rows, apply_model = [], host.model.KModel.apply_model

    def counted(self, x, *args, **kwargs):
        rows.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(host.model.KModel, "apply_model", counted)
    return rows


def changed(p):
    """A clone of the host's patcher, put in its place, as other extensions do."""
    p.sd_model.forge_objects.unet = p.sd_model.forge_objects.unet.clone()
    return p.sd_model.forge_objects.unet


# Pictures


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_composed_as_the_equations_say(host, sampler, dtype, tolerance):
    host.use(dtype=dtype)
    ordinary = merged_picture(host, f"a cat {TAGS}", sampler_name=sampler)
    p, latents = host.generate(f"a cat {TAGS}", ON, sampler_name=sampler, negative_prompt="bad")
    assert_close(latents, expected(host, [A, B], one("a cat"), "bad", sampler=sampler), tolerance)
    assert differs(latents, ordinary)
    assert p.comments == {} and host.errors.reported == [] and host.gradio.warnings == []
    assert_clean(host, p)


def test_one_adapter(host):
    p, latents = host.generate("a cat <lora:a:0.8>", ON, negative_prompt="bad")
    assert_close(latents, expected(host, [A], one("a cat"), "bad"))
    assert_clean(host, p)
    assert_close(
        host.generate("a cat <lora:text:0.7:0.9>", {**ON, "lam": 0.0})[1],
        merged_picture(host, "a cat <lora:text:0.7:0.9>"),
    )


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        ("Euler", {"lam": 0.0}),
        ("Euler", {"lam": 1.0, "adapters_per_pass": 1}),
        ("Euler", {"patch_size": 1, "adapters_per_pass": 2}),
        ("Euler", {"patch_size": 4, "temperature": 0.5}),
        ("Euler", {"top_k": 1}),
        ("Euler", {"top_k": 2}),
        ("Euler", {"method": "composite"}),
        ("Euler", {"text_encoder": "merged"}),
        ("Euler", {"start": 0.3}),
        ("Heun", {"end": 0.5}),
        ("Heun", {"start": 0.3, "end": 0.6}),
        ("Heun", {"method": "switch"}),
    ],
    ids=str,
)
def test_every_setting(host, settings, sampler):
    steps = 6 if settings.get("method") == "switch" else 3
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, **settings}, sampler_name=sampler, steps=steps)
    assert_close(latents, expected(host, [A, TEXT, B], one("a cat"), settings=settings, sampler=sampler, steps=steps))
    assert_clean(host, p)


def test_lambda_one_leaves_out_the_adapters_unconditional_rows(host, monkeypatch):
    rows = count_rows(host, monkeypatch)
    host.generate(f"a cat {TAGS}", {**ON, "lam": 1.0}, steps=1)
    host.generate(f"a cat {TAGS}", ON, steps=1)
    assert rows == [4, 6]


def test_out_of_range_is_the_hosts_own_picture(host):
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "start": 0.9})
    assert torch.equal(latents, merged_picture(host, f"a cat {TEXT_TAGS}"))
    _, latents = host.generate(f"a cat {TAGS}", {**ON, "method": "merge"})
    assert torch.equal(latents, merged_picture(host, f"a cat {TAGS}"))


def test_batches(host):
    p, latents = host.generate(f"a cat {TAGS}", ON, batch_size=2, n_iter=2)
    for batch in range(2):
        assert_close(latents[2 * batch : 2 * batch + 2], expected(host, [A, B], one("a cat") * 2, seed=1 + 2 * batch))
    assert_clean(host, p)


def test_same_request_twice_is_identical(host):
    first, second = (host.generate(f"a cat {TEXT_TAGS}", ON)[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_without_guidance_there_is_no_negative_prompt(host, tags, monkeypatch):
    rows = count_rows(host, monkeypatch)
    p, latents = host.generate(f"a cat AND a dog:0.5 {tags}", ON, cfg_scale=1.0, batch_size=2, negative_prompt="bad")
    assert rows == [4 * (len(of_tags(tags)) + 1)] * 3
    assert_close(latents, expected(host, of_tags(tags), [[("a cat", 1), ("a dog", 0.5)]] * 2, cfg=1))
    assert_clean(host, p)


def test_steps_without_guidance(host):
    host.shared.opts.skip_early_cond = 0.5
    _, latents = host.generate(f"a cat {TEXT_TAGS}", ON, negative_prompt="bad")
    assert_close(latents, expected(host, [A, TEXT, B], one("a cat"), "bad", skipped=lambda call: call / 3 <= 0.5))


MEMORY = [1.5, 2.5, 3.5, 7.5, math.inf]
"""From every condition alone, the negative prompt first, to all together."""


def with_memory(host, *args, memory=MEMORY, **fields):
    """The request with little and with much memory."""
    for rows in memory:
        host.memory_management.free_memory = rows
        yield host.generate(*args, **fields)


@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_and_prompts_with_weights_in_a_batch(host, tags):
    prompts = [f"a cat AND a dog:0.4 AND a tree:-0.3 {tags}", "a bird AND a fish:0.4 AND a stone:-0.3"]
    subprompts = [[("a cat", 1), ("a dog", 0.4), ("a tree", -0.3)], [("a bird", 1), ("a fish", 0.4), ("a stone", -0.3)]]
    right = expected(host, of_tags(tags), subprompts, "bad", steps=2)
    for p, latents in with_memory(host, prompts, ON, batch_size=2, negative_prompt="bad", steps=2):
        assert_close(latents, right)
        assert_clean(host, p)


@pytest.mark.parametrize(
    ("text", "negative"),
    [("a cat", LONG), (LONG, "bad"), (f"{LONG} {LONG}", "bad"), (f"{LONG} {LONG}", LONG), (f"{LONG} " * 3, "bad")],
)
def test_texts_of_unequal_length(host, text, negative):
    right = expected(host, [A, TEXT, B], one(text), negative, steps=2)
    for _, latents in with_memory(
        host, f"{text} {TEXT_TAGS}", ON, negative_prompt=negative, steps=2, memory=[1.5, math.inf]
    ):
        assert_close(latents, right)
    assert host.errors.reported == []


def test_short_memory_has_the_host_ask_for_the_negative_prompt_first(host):
    host.memory_management.free_memory = 1.5
    asked = []

    def record(p):
        former = changed(p).model_options["model_function_wrapper"]
        p.sd_model.forge_objects.unet.set_model_unet_function_wrapper(
            lambda apply_model, args: asked.append(args["cond_or_uncond"]) or former(apply_model, args)
        )

    _, latents = host.generate(f"a cat {TEXT_TAGS}", ON, after=[record], steps=1)
    assert asked == [[1], [0]]
    host.memory_management.free_memory = math.inf
    asked.clear()
    assert_close(latents, host.generate(f"a cat {TEXT_TAGS}", ON, after=[record], steps=1)[1])
    assert asked == [[1, 0]]


def test_memory_that_runs_out_is_gone_around(host, monkeypatch):
    apply_model = host.model.KModel.apply_model

    def small(self, x, *args, **kwargs):
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(host.model.KModel, "apply_model", small)
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], expected(host, [A, B], one("a cat")))


@pytest.mark.parametrize("model", [{"dict_conditions": True}, {"channels": 9}], ids=["pooled text", "inpainting"])
@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_other_models(host, model, tags):
    host.use(**model)
    add_networks(host)
    right = expected(host, of_tags(tags), [*one("a cat"), *one("a dog")], "bad", steps=2)
    for p, latents in with_memory(
        host, [f"a cat {tags}", "a dog"], ON, batch_size=2, negative_prompt="bad", steps=2, memory=[2.5, math.inf]
    ):
        assert_close(latents, right)
        assert_clean(host, p)


def test_prompt_editing_is_followed_by_every_adapter(host):
    _, latents = host.generate(f"a [cat:dog:1] here {TEXT_TAGS}", ON)
    assert_close(latents, expected(host, [A, TEXT, B], one(lambda call: "a cat here" if call <= 1 else "a dog here")))


@pytest.mark.parametrize(
    ("tags", "adapters"),
    [
        ("<lora:text:0.3:0.9> <lora:b:1>", [("text", 0.3, 0.9), ("b", 1.0, 1.0)]),
        ("<lora:text:te=0:unet=0.9> <lyco:b:-0.5>", [("text", 0.0, 0.9), ("b", -0.5, -0.5)]),
        ("<lora:text:0.7:0> <lora:b>", [("text", 0.7, 0.0), ("b", 1.0, 1.0)]),
        ("<lora:other:1.5> <lora:b:1>", [("other", 1.5, 1.5), ("b", 1.0, 1.0)]),
        ("<lora:a:0> <lora:b:0.6> <lora:text:0:0> <lora:foreign:0>", [B]),
        ("<lora:a:0.8> <lora:a:0.8>", [A]),
    ],
)
def test_strengths_as_in_the_prompt(host, tags, adapters):
    host.generate("a cat <lora:b:0.3>")  # leaves a merge in the weights
    p, latents = host.generate(f"a cat {tags}", ON)
    assert_close(latents, expected(host, adapters, one("a cat")))
    assert_clean(host, p)


@pytest.mark.parametrize("tag", ["a:0.7:0", "other:0:0.9"])
def test_all_of_a_lora_may_have_a_strength_of_0(host, tag):
    p, latents = host.generate(f"a cat <lora:{tag}> <lora:b:0.6>", ON)
    assert_close(latents, expected(host, [B], one("a cat")))
    assert_clean(host, p)


@pytest.mark.parametrize("strengths", ["0.7:0", "0:0.7"])
def test_a_lora_for_another_model_is_told_whichever_strength_is_0(host, strengths):
    with pytest.raises(LoratorioError, match="'foreign' matches nothing"):
        host.generate(f"a cat <lora:foreign:{strengths}> <lora:b:0.6>", ON)


# Kinds of patches

Q, K, V = (0, 0, 8), (0, 8, 8), (0, 16, 8)
KINDS = {
    "loha": {"conv_in": "loha", "to_k": "loha", "to_q": "lora"},
    "dora": {"down": "dora", "to_v": "dora"},
    "full": {"conv_out": "diff", "conv_out.bias": "diff", "to_out.bias": "diff"},
    "norms": {"norm": "diff", "norm.bias": "diff", "layer_norm": "diff", "layer_norm.bias": "diff"},
    "lora with bias": {"to_out": "lora", "to_out.bias": "diff"},
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
def test_kinds(host, kind):
    host.add("kind", KINDS[kind], seed=7)
    right = expected(host, [("kind", 0.7, 0.7), B], one("a cat"), steps=2)
    for budget in (1024, 0):
        host.shared.opts.loratorio_dense_budget_mb = budget
        p, latents = host.generate("a cat <lora:kind:0.7> <lora:b:0.6>", {**ON, "verify": True}, steps=2)
        assert_close(latents, right, SINGLE)
        assert verified(p) < SINGLE
        assert_clean(host, p)
    assert differs(latents, host.generate("a cat <lora:kind:0.001> <lora:b:0.6>", ON, steps=2)[1]), (
        "so that the kind's patch shows"
    )


def test_quantised_models_take_plain_loras(quantising):
    quantising.use(quantised=True)
    settings = {"end": 0.5}
    p, latents = quantising.generate(f"a cat {TEXT_TAGS}", {**ON, **settings, "verify": True})
    assert_close(latents, expected(quantising, [A, TEXT, B], one("a cat"), settings=settings), SINGLE)
    assert verified(p) < SINGLE and NOTE not in p.extra_generation_params
    assert_clean(quantising, p)


def test_quantised_models_are_verified_without_rounding_the_merge_to_their_bits(forge):
    forge.use(quantised=True)
    p, _ = forge.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True})
    assert verified(p) < SINGLE
    assert_clean(forge, p)


def test_gguf_models_take_every_kind(quantising):
    quantising.use(quantised="gguf")
    quantising.add("kinds", {"to_q": "loha", "to_k": "dora", ("qkv", V): "scaled"}, seed=7)
    p, latents = quantising.generate("a cat <lora:kinds:0.7> <lora:b:0.6>", {**ON, "verify": True})
    assert_close(latents, expected(quantising, [("kinds", 0.7, 0.7), B], one("a cat")), SINGLE)
    assert verified(p) < SINGLE and NOTE not in p.extra_generation_params
    assert_clean(quantising, p)


def test_quantised_models_decline_other_kinds_by_name(quantising):
    quantising.use(quantised=True)
    quantising.add("kind", {"to_q": "loha", "to_k": "lora"}, seed=7)
    quantising.add("dense", {"to_q": "loha"}, seed=7)
    p, _ = quantising.generate("a cat <lora:kind:1> <lora:b:0.6>", ON)
    assert (
        "1 of 2 layers of the LoRA 'kind'" in p.extra_generation_params[NOTE]
        and "quantised" in p.extra_generation_params[NOTE]
    )
    with pytest.raises(LoratorioError, match=r"none of the 1 layers of the LoRA 'dense' .* quantised models"):
        quantising.generate("a cat <lora:dense:1> <lora:b:0.6>", ON)
    assert_close(quantising.generate(f"a cat {TAGS}", ON)[1], expected(quantising, [A, B], one("a cat")))


def test_after_a_merge_that_failed_in_the_host(forge):
    """It leaves a part of it in the weights, under the name of the merge before."""
    forge.add("misfit", {"conv_in": "lora", "to_out": "misfit"}, seed=8)
    with pytest.raises(RuntimeError):
        forge.generate("a cat <lora:a:1> <lora:misfit:1>")
    p, latents = forge.generate(f"a cat {TAGS}", ON)
    assert_close(latents, expected(forge, [A, B], one("a cat")))
    assert_clean(forge, p)


def test_a_merge_into_the_text_encoder_that_fails_for_us_is_not_left_in_it(host, monkeypatch):
    """The text encoder has two layers, which the host merges first, for its own conditions."""
    calls, merge = iter(range(99)), getattr(host.lora, host.merge_name)

    def failing(*args):
        if next(calls) == 3:
            raise OddError("at the adapter's second layer")
        return merge(*args)

    before = merged_picture(host, "a cat")
    monkeypatch.setattr(host.lora, host.merge_name, failing)
    with pytest.raises(LoratorioError, match="second layer"):
        host.generate(f"a cat {TEXT_TAGS}", ON)
    assert torch.equal(merged_picture(host, "a cat"), before)


def test_layers_that_the_host_cannot_merge_are_named_with_its_reason(host):
    host.add("half", {"conv_in": "lora", "to_out": "misfit"}, seed=8)
    p, _ = host.generate("a cat <lora:half:1> <lora:b:0.6>", ON)
    assert "1 of 2 layers of the LoRA 'half'" in p.extra_generation_params[NOTE]
    assert re.search(r"the WebUI cannot merge \(.*shape '\[", p.extra_generation_params[NOTE])


def test_neo_reads_a_weight_as_its_layer_does(neo):
    """A quantised one may look like a plain one, and ignores what is added to it in place."""
    layer = neo.shared.sd_model.forge_objects_original.unet.model.diffusion_model.to_out
    layer.convert_weight = lambda weight: 2 * weight
    base_weight = neo.forge.sampling.backend.base_weight
    assert torch.equal(base_weight(layer, "weight"), 2 * layer.weight)
    assert torch.equal(base_weight(layer, "bias"), layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_reforge_reads_a_weight_as_its_layer_does(reforge, dtype):
    """One stored divided by a scale, in a precision that may not compute."""
    layer = reforge.use(scaled=True).forge_objects_original.unet.model.diffusion_model.to_out
    layer.weight.data = layer.weight.data.to(dtype)
    weight = reforge.forge.sampling.backend.base_weight(layer, "weight")
    assert torch.equal(weight, layer.weight.float() * layer.scale_weight.float())
    assert torch.equal(reforge.forge.sampling.backend.base_weight(layer, "bias"), layer.bias)


def test_weights_stored_divided_by_a_scale(reforge):
    reforge.use(scaled=True)
    reforge.add("kinds", {"to_q": "dora", "to_k": "loha", ("qkv", V): "scaled"}, seed=7)
    p, latents = reforge.generate(f"a cat <lora:kinds:0.7> {TEXT_TAGS}", {**ON, "verify": True})
    assert_close(latents, expected(reforge, [("kinds", 0.7, 0.7), A, TEXT, B], one("a cat")), SINGLE)
    assert verified(p) < SINGLE and NOTE not in p.extra_generation_params
    assert_clean(reforge, p)


UNSUPPORTED = {
    "Nunchaku": lambda host: setattr(host.args.dynamic_args, "nunchaku", True),
    "PiD": lambda host: setattr(host.args.dynamic_args, "pid", True),
    "frames": lambda host: setattr(host.shared.sd_model, "is_wan", True),
}


@pytest.mark.parametrize("word", UNSUPPORTED)
def test_models_of_neo_that_cannot_be_composed(neo, word):
    plain = merged_picture(neo, f"a cat {TAGS}")
    UNSUPPORTED[word](neo)
    p, latents = neo.generate(f"a cat {TAGS}", ON)
    assert word in p.extra_generation_params[NOTE]
    assert torch.equal(latents, plain) and differs(plain, expected(neo, [A, B], one("a cat")))


# Other extensions


def controlled(host, pictures, links):
    def add(p):
        unet = changed(p)
        for link in range(links):
            hint = torch.linspace(-1, 2, pictures * 30, dtype=torch.float64).reshape(pictures, 1, 5, 6) * (link + 1)
            unet.add_patched_controlnet(host.model.ControlNet(hint))

    return add


@pytest.mark.parametrize("links", [1, 2])
@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_control(host, tags, links):
    before = [controlled(host, pictures=2, links=links)]
    prompts = [f"a cat AND a tree:0.5 {tags}", "a dog AND a bird:0.5"]
    right = expected(
        host,
        of_tags(tags),
        [[("a cat", 1), ("a tree", 0.5)], [("a dog", 1), ("a bird", 0.5)]],
        "bad",
        before=before,
        steps=2,
    )
    fields = {"before": before, "batch_size": 2, "negative_prompt": "bad", "steps": 2}
    for p, latents in with_memory(host, prompts, {**ON, "verify": True}, memory=[2.5, 4.5, math.inf], **fields):
        assert_close(latents, right)
        assert verified(p) < SINGLE
        assert_clean(host, p)


def wrapped(p):
    def wrapper(apply_model, args):
        options, flags, rows = args["c"]["transformer_options"], args["cond_or_uncond"], len(args["input"])
        marks = torch.tensor(flags).repeat_interleave(rows // len(flags))
        assert options["cond_or_uncond"] == flags and torch.equal(options.get("cond_mark", marks).to(marks), marks)
        marks = marks.to(args["input"]).reshape(-1, 1, 1, 1)
        return apply_model(args["input"] * (1.1 + 0.2 * marks), args["timestep"] * 0.9, **args["c"])

    changed(p).set_model_unet_function_wrapper(wrapper)


@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_an_earlier_wrapper_is_called_through(host, tags):
    p, latents = host.generate(
        f"a cat {tags}", {**ON, "verify": True, "end": 0.5}, before=[wrapped], negative_prompt="bad", batch_size=2
    )
    assert_close(
        latents, expected(host, of_tags(tags), one("a cat") * 2, "bad", before=[wrapped], settings={"end": 0.5})
    )
    assert verified(p) < SINGLE
    assert_clean(host, p)


@pytest.mark.parametrize("blocks, models", [(1, {3}), (2, {1})])
def test_attention_shared_among_a_batch_sees_one_model_at_a_time(host, blocks, models, monkeypatch):
    seen, model = set(), host.shared.sd_model.forge_objects.unet.model
    apply_model = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, t, **c: seen.add(x.shape[0] // 2) or apply_model(x, t, **c))

    def shared(p):
        changed(p).model_options["transformer_options"] = {
            "patches_replace": {"attn1": {("input", number): None for number in range(blocks)}}
        }

    p, latents = host.generate(f"a cat {TAGS}", ON, before=[shared])
    assert seen == models
    assert_close(latents, expected(host, [A, B], one("a cat")))
    assert_clean(host, p)


def test_a_wrapper_may_make_other_batches_of_the_rows(host):
    """As one that evaluates a picture in tiles does: all rows' first tile, then all rows' second."""

    def in_halves(p):
        def wrapper(apply_model, args):
            x, c, copies = args["input"], args["c"], 2
            c = {
                key: torch.cat([value] * copies) if isinstance(value, torch.Tensor) else value
                for key, value in c.items()
            }
            options, rows = dict(c["transformer_options"]), len(x)
            for key in options.keys() & {"cond_indices", "uncond_indices"}:
                options[key] = [copy * rows + row for copy in range(copies) for row in options[key]]
            for key in options.keys() & {"cond_or_uncond", "uuids"}:
                options[key] = options[key] * copies
            if "cond_mark" in options:
                options["cond_mark"] = torch.cat([options["cond_mark"]] * copies)
            c["transformer_options"] = options
            both = apply_model(torch.cat([x] * copies), torch.cat([args["timestep"]] * copies), **c)
            return both.chunk(copies)[1]

        changed(p).model_options["model_function_wrapper"] = wrapper

    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, before=[in_halves], batch_size=2)
    assert_close(latents, expected(host, of_tags(TEXT_TAGS), one("a cat") * 2))
    assert verified(p) < SINGLE


def test_a_wrapper_may_return_the_same_memory_in_each_call(host):
    """As some that gather tiles in a buffer do."""

    def into_a_buffer(p):
        buffers = {}

        def wrapper(apply_model, args):
            prediction = apply_model(args["input"], args["timestep"], **args["c"])
            return buffers.setdefault(prediction.shape, torch.empty_like(prediction)).copy_(prediction)

        changed(p).model_options["model_function_wrapper"] = wrapper

    p, latents = host.generate(f"a cat {TAGS}", {**ON, "verify": True}, before=[into_a_buffer])
    assert_close(latents, expected(host, [A, B], one("a cat")))
    assert 0 < verified(p) < 1e-9


def test_a_later_wrapper_that_calls_no_other_is_refused(host):
    def replace(p):
        changed(p).set_model_unet_function_wrapper(lambda apply_model, args: args["input"])

    with pytest.raises(LoratorioError, match="calls no other"):
        host.generate(f"a cat {TAGS}", ON, after=[replace])
    assert_close(host.generate(f"a cat {TAGS}", ON)[1], expected(host, [A, B], one("a cat")))


@pytest.mark.parametrize("tags", ["<lora:a:0.8>", TAGS], ids=["one", "several"])
def test_patches_of_another_extension_are_part_of_the_base(host, tags):
    frozen = host.add("frozen", {"to_k": "lora", "to_v": "diff"}, seed=9)

    def patched(p):
        host.patch(changed(p), frozen)

    adapters = [A] if tags == "<lora:a:0.8>" else [A, B]
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True, "end": 0.5}, before=[patched])
    assert_close(latents, expected(host, adapters, one("a cat"), before=[patched], settings={"end": 0.5}), SINGLE)
    assert verified(p) < SINGLE
    assert_clean(host, p)


def test_later_extensions_copy_the_patchers_options(host):
    """Deeply, and sample with their copies."""

    def later(p):
        for _ in range(2):
            changed(p).set_model_sampler_cfg_function(
                lambda args: args["uncond"] + 1.7 * (args["cond"] - args["uncond"])
            )

    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON, after=[later])
    assert_close(latents, expected(host, [A, TEXT, B], one("a cat"), cfg=1.7))
    assert host.sampling_function.calc_cond_uncond_batch is host.calc_cond_uncond_batch
    _, ordinary = host.generate(f"a cat {TEXT_TAGS}", after=[later])
    model_options = p.sd_model.forge_objects.unet.model_options
    assert (
        torch.equal(ordinary, merged_picture(host, f"a cat {TEXT_TAGS}", after=[later]))
        and "model_function_wrapper" not in model_options
    )


class Perturbed(Equations):
    """Guided away from the prediction with perturbed attention."""

    def guided(self, number, x, sigma, cond, uncond, omegas, cfg):
        perturbed = [
            self.rows(number, x, sigma, place, 0, perturbed=True) for place in range(len(self.prompts[number]))
        ]
        degraded = self.blended(number, [self.composed(rows, omega) for rows, omega in zip(perturbed, omegas)])
        return super().guided(number, x, sigma, cond, uncond, omegas, cfg) + (cond - degraded) * 2


def perturbed_attention(calc):
    def add(p):
        def post_cfg(args):
            options = {
                **args["model_options"],
                "transformer_options": {**args["model_options"]["transformer_options"], "perturbed": True},
            }
            degraded, _ = calc(args["model"], args["cond"], None, args["input"], args["sigma"], options)
            return args["denoised"] + (args["cond_denoised"] - degraded) * 2

        changed(p).set_model_sampler_post_cfg_function(post_cfg)

    return add


class SelfAttention(Equations):
    """Guided away from the prediction for the negative prompt on other latents."""

    def guided(self, number, x, sigma, cond, uncond, omegas, cfg):
        degraded = self.unconditional(number, x * 0.8, sigma, omegas, 0, kept=False)
        return super().guided(number, x, sigma, cond, uncond, omegas, cfg) + (uncond - degraded) * 2


def self_attention(calc):
    def add(p):
        def post_cfg(args):
            degraded, _ = calc(
                args["model"], args["uncond"], None, args["input"] * 0.8, args["sigma"], args["model_options"]
            )
            return args["denoised"] + (args["uncond_denoised"] - degraded) * 2

        changed(p).set_model_sampler_post_cfg_function(post_cfg, disable_cfg1_optimization=True)

    return add


@pytest.mark.parametrize(
    ("equations", "extension"),
    [(Perturbed, perturbed_attention), (SelfAttention, self_attention)],
    ids=["perturbed", "self"],
)
@pytest.mark.parametrize("prompt", ["a cat", "a cat AND a dog:0.5", LONG])
@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_guidance_of_another_extension_is_composed_with_the_steps_weights(host, equations, extension, prompt, tags):
    subprompts = [[("a cat", 1), ("a dog", 0.5)]] if "AND" in prompt else one(prompt)
    right = equations(host, of_tags(tags), subprompts * 2, "bad", settings={"end": 0.6}).latents()
    for when in ("after", "before"):
        others = {when: [extension(host.calc_cond_uncond_batch)]}
        p, latents = host.generate(
            f"{prompt} {tags}", {**ON, "end": 0.6, "verify": True}, batch_size=2, negative_prompt="bad", **others
        )
        assert_close(latents, right)
        assert verified(p) < SINGLE
    assert_clean(host, p)


@pytest.mark.parametrize(
    ("equations", "extension"),
    [(Perturbed, perturbed_attention), (SelfAttention, self_attention)],
    ids=["perturbed", "self"],
)
def test_such_guidance_by_the_hosts_function_of_the_moment(host, equations, extension):
    now = extension(lambda *args: host.sampling_function.calc_cond_uncond_batch(*args))
    _, latents = host.generate(f"a cat {TEXT_TAGS}", ON, after=[now], negative_prompt="bad")
    assert_close(latents, equations(host, [A, TEXT, B], one("a cat"), "bad").latents())


def test_such_guidance_in_short_memory(host):
    right = Perturbed(host, [A, TEXT, B], [[("a cat", 1), ("a dog", 0.5)]], "bad").latents()
    after = [perturbed_attention(host.calc_cond_uncond_batch)]
    for _, latents in with_memory(host, f"a cat AND a dog:0.5 {TEXT_TAGS}", ON, after=after, negative_prompt="bad"):
        assert_close(latents, right)


@pytest.mark.parametrize("method", ["composite", "switch"])
@pytest.mark.parametrize(
    ("equations", "extension"),
    [(Perturbed, perturbed_attention), (SelfAttention, self_attention)],
    ids=["perturbed", "self"],
)
def test_such_guidance_with_methods_without_weights(host, method, equations, extension):
    settings = {"method": method}
    _, latents = host.generate(
        f"a cat {TEXT_TAGS}", {**ON, **settings}, after=[extension(host.calc_cond_uncond_batch)], negative_prompt="bad"
    )
    assert_close(latents, equations(host, [A, TEXT, B], one("a cat"), "bad", settings=settings).latents())


def test_such_guidance_where_sub_prompts_are_alike(host):
    _, latents = host.generate(
        f"a cat AND a cat:0.5 {TAGS}", ON, after=[perturbed_attention(host.calc_cond_uncond_batch)], batch_size=2
    )
    assert_close(latents, Perturbed(host, [A, B], [[("a cat", 1), ("a cat", 0.5)]] * 2).latents())


@pytest.mark.parametrize(
    ("equations", "extension"),
    [(Perturbed, perturbed_attention), (SelfAttention, self_attention)],
    ids=["perturbed", "self"],
)
def test_such_guidance_where_prompt_and_negative_prompt_are_alike(host, equations, extension):
    fields = {"after": [extension(host.calc_cond_uncond_batch)], "negative_prompt": "a cat"}
    _, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "end": 0.6}, **fields)
    assert_close(latents, equations(host, [A, TEXT, B], one("a cat"), "a cat", settings={"end": 0.6}).latents())


class Skipping(Equations):
    """The negative prompt's prediction is one with perturbed attention."""

    def unconditional(self, number, x, sigma, omegas, flag=1, kept=True):
        return self.recentred(self.rows(number, x, sigma, None, flag, perturbed=True), omegas)


def skipping(host):
    """As in the host's own skip-layer guidance: conditional and unconditional rows are evaluated apart."""

    def evaluated(args):
        (cond, uncond), options = args["conds"], args["model_options"]
        perturbed = {**options, "transformer_options": {**options["transformer_options"], "perturbed": True}}
        rest = args["model"], cond, uncond, args["input"], args["sigma"]
        return [
            host.calc_cond_uncond_batch(rest[0], cond, None, *rest[3:], options)[0],
            host.calc_cond_uncond_batch(rest[0], None, uncond, *rest[3:], perturbed)[1],
        ]

    return lambda p: changed(p).set_model_sampler_calc_cond_batch_function(evaluated)


@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_reforge_has_a_slot_for_evaluations_whose_earlier_function_is_called_through(reforge, tags):
    p, latents = reforge.generate(f"a cat {tags}", {**ON, "verify": True}, before=[skipping(reforge)], batch_size=2)
    assert_close(latents, Skipping(reforge, of_tags(tags), one("a cat") * 2).latents())
    assert verified(p) < SINGLE
    assert_clean(reforge, p)


def test_a_later_function_in_that_slot_that_evaluates_apart_is_refused(reforge):
    p = reforge.request(f"a cat {TAGS}", ON, after=[skipping(reforge)])
    with pytest.raises(LoratorioError, match="evaluates the negative prompt alone"):
        reforge.processing.process_images(p)
    p.sd_model.forge_objects.unet = p.former.unet  # in whose place the other extension has put a clone
    assert_clean(reforge, p)


def test_conditions_that_another_extension_keeps_are_handed_back_as_they_were(host):
    kept = []

    def keep(model, x, timestep, uncond, cond, *rest):
        kept.extend([*cond, *uncond])
        return model, x, timestep, uncond, cond, *rest

    host.generate(f"a cat {TEXT_TAGS}", ON, before=[lambda p: changed(p).add_conditioning_modifier(keep)])
    assert kept and {key for condition in kept for key in condition["model_conds"]} == {"c_crossattn"}


def test_conditions_with_areas_are_refused(host):
    def divided(model, x, timestep, uncond, cond, *rest):
        return model, x, timestep, uncond, [{**c, "area": (2, 2, 0, 0)} for c in cond], *rest

    p = host.request(f"a cat {TAGS}", ON, before=[lambda p: changed(p).add_conditioning_modifier(divided)])
    with pytest.raises(LoratorioError, match="divided by areas"):
        host.processing.process_images(p)
    assert_clean(host, p)


def test_prompts_that_another_extension_adds(host):
    def added(model, x, timestep, uncond, cond, *rest):
        return model, x, timestep, uncond, cond * 2, *rest

    fields = {"before": [lambda p: changed(p).add_conditioning_modifier(added)]}
    assert_close(
        host.generate(f"a cat {TAGS}", ON, **fields)[1], expected(host, [A, B], [[("a cat", 1), ("a cat", 1)]])
    )
    with pytest.raises(LoratorioError, match="another extension adds prompts"):
        host.generate(f"a cat {TEXT_TAGS}", ON, **fields)


class Masked(Equations):
    """The first sub-prompt for the upper half, the second one for the rest and the whole."""

    def blended(self, number, predictions):
        upper = torch.zeros(5, 6, dtype=torch.float64)
        upper[:2] = 1
        masks = upper, 0.5 * torch.ones_like(upper)
        return sum(mask * e for mask, e in zip(masks, predictions)) / sum(masks)

    def guided(self, number, x, sigma, cond, uncond, omegas, cfg):
        return uncond + (cond - uncond) * cfg * 1.5


@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_masks(host, tags):
    upper = torch.zeros(1, 5, 6, dtype=torch.float64)
    upper[:, :2] = 1

    def masked(model, x, timestep, uncond, cond, *rest):
        return model, x, timestep, uncond, [{**cond[0], "mask": upper}, cond[1]], *rest

    _, latents = host.generate(
        f"a cat AND a dog:0.5 {tags}", ON, before=[lambda p: changed(p).add_conditioning_modifier(masked)]
    )
    assert_close(latents, Masked(host, of_tags(tags), [[("a cat", 1), ("a dog", 0.5)]]).latents())


class InTheirTime(Equations):
    """The first sub-prompt takes part only in the beginning."""

    def picture(self, number, x, sigma):
        every = self.prompts
        self.prompts = [subprompts if sigma[0] >= 1.5 else subprompts[1:] for subprompts in every]
        result = super().picture(number, x, sigma)
        self.prompts = every
        return result

    def guided(self, number, x, sigma, cond, uncond, omegas, cfg):
        return uncond + (cond - uncond) * cfg * 1.5


@pytest.mark.parametrize("tags", [TAGS, TEXT_TAGS], ids=["unet", "text"])
def test_conditions_outside_their_time(host, tags):
    def timed(model, x, timestep, uncond, cond, *rest):
        return model, x, timestep, uncond, [{**cond[0], "timestep_end": 1.5}, cond[1]], *rest

    _, latents = host.generate(
        f"a cat AND a dog:0.5 {tags}", ON, before=[lambda p: changed(p).add_conditioning_modifier(timed)]
    )
    assert_close(latents, InTheirTime(host, of_tags(tags), [[("a cat", 1), ("a dog", 0.5)]]).latents())


# The order of a request


@pytest.mark.parametrize("hr_cfg", [3.0, 1.0])
def test_second_pass_with_its_own_prompt_and_networks(host, hr_cfg):
    p, latents = host.generate(
        f"a cat {TAGS}",
        ON,
        enable_hr=True,
        hr_prompt="a dog <lora:text:0.7:0.9> <lora:b:0.6>",
        hr_second_pass_steps=2,
        hr_sampler_name="Heun",
        hr_cfg=hr_cfg,
    )
    x = torch.nn.functional.interpolate(expected(host, [A, B], one("a cat")), scale_factor=2)
    assert_close(
        latents, expected(host, [TEXT, B], one("a dog"), x=x, steps=2, sampler="Heun", size=(96, 80), cfg=hr_cfg)
    )
    assert_clean(host, p)


def test_refiner_ends_the_composition_with_a_note(host):
    refiner = host.model.SdModel(seed=9)
    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON, refiner=refiner, refiner_switch_at=0.5)
    assert_close(latents, expected(host, [A, TEXT, B], one("a cat"), refiner=refiner, switch_at=0.5))
    assert "refiner" in p.extra_generation_params[NOTE] and any("refiner" in comment for comment in p.comments)
    assert host.errors.reported == []
    assert not any(module._forward_hooks for module in refiner.forge_objects.unet.model.modules())


def test_adapters_take_part_within_their_windows(host):
    tags = "<lora:a:0.8:ltend=0.5> <lora:text:0.7:0.9:ltstart=0.25:ltend=0.75> <lora:b:0.6:ltend=0.75>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True}, steps=8)
    windows = [(0, 0.5), (0.25, 0.75), (0, 0.75)]
    assert_close(latents, expected(host, [A, TEXT, B], one("a cat"), steps=8, windows=windows))
    assert p.extra_generation_params[VERIFY].endswith("over 8 calls") and verified(p) < SINGLE
    assert_clean(host, p)


GLOBAL = "<lora:text:0.7:0.9:lt=global> <lora:a:0.8> <lora:b:0.6>"


@pytest.mark.parametrize(
    "settings", [{}, {"lam": 0.0, "adapters_per_pass": 1}, {"method": "composite"}, {"text_encoder": "merged"}], ids=str
)
def test_global_adapters_are_in_the_base_and_in_every_evaluation(host, settings):
    p, latents = host.generate(f"a cat {GLOBAL}", {**ON, **settings, "verify": True})
    assert_close(latents, expected(host, [A, B], one("a cat"), settings=settings, everywhere=[TEXT]))
    assert verified(p) < 1e-9
    assert_clean(host, p)


def test_two_readers_of_the_text_share_a_text_encoder(host):
    p, latents = host.generate("a cat <lora:text:0.7:0.9:lt=global> <lora:other:1.5> <lora:b:0.6>", ON)
    assert_close(latents, expected(host, [("other", 1.5, 1.5), B], one("a cat"), everywhere=[TEXT]))
    assert_clean(host, p)


def test_kinds_that_read_the_weight_read_it_with_the_global_adapters(host):
    """DoRA's changes depend on the weight that they change."""
    host.add("under", {"to_q": "diff", "to_k": "lora", "to_out": "loha"}, seed=7)
    host.add("over", {"to_q": "dora", "to_k": "dora", "to_out": "dora"}, seed=8)
    _, latents = host.generate("a cat <lora:over:0.6> <lora:under:0.5:lt=global> <lora:b:0.6>", ON)
    assert_close(
        latents, expected(host, [("over", 0.6, 0.6), B], one("a cat"), everywhere=[("under", 0.5, 0.5)]), SINGLE
    )


@pytest.mark.parametrize("pool, tag", [("text:0.7, b:0.6", "<lora:a:0.8>"), ("a:0.8, text:0.7, b:0.6", "")])
def test_a_pool_is_composed_like_the_prompts_own(host, pool, tag):
    p, latents = host.generate(f"a cat {tag}", {**ON, "pool": pool, "top_k": 2, "verify": True})
    assert_close(latents, expected(host, [A, ("text", 0.7, 0.7), B], one("a cat"), settings={"top_k": 2}))
    assert p.extra_generation_params["LoRAtorio pool"] == "step 1: a, text, b" and verified(p) < 1e-9
    assert_clean(host, p)


def test_what_the_prompt_switches_off_is_not_in_the_pool(host):
    _, latents = host.generate("a cat <lora:a:0> <lora:b:0.6>", {**ON, "pool": "a:0.8, text:0.7"})
    assert_close(latents, expected(host, [B, ("text", 0.7, 0.7)], one("a cat")))


def test_what_cannot_be_in_a_pool(host, monkeypatch):
    host.add("shapes", {"to_q": "misfit"}, 8)
    host.add("most", {"to_q": "misfit", "to_out": "misfit", "to_k": "lora", "transformer.fc1": "lora"}, 8)
    host.add("half", {"to_q": "misfit", "to_k": "lora"}, 8)
    read, files = host.networks._read, []
    monkeypatch.setattr(host.networks, "_read", lambda entry: files.append(entry.name) or read(entry))
    p, latents = host.generate("a cat <lora:a:0.8>", {**ON, "pool": "foreign, shapes, b:0.6, half:0.7, most"}, n_iter=2)
    left_out = (
        "LoRAtorio: 3 LoRAs of the pool cannot be read, or do not suit this model, and are left out: foreign, shapes, "
        "most."
    )
    assert (
        left_out in p.extra_generation_params[NOTE]
        and "1 of 2 layers of the LoRA 'half'" in p.extra_generation_params[NOTE]
    )
    assert [warning for warning in host.gradio.warnings if "pool" in warning] == [left_out]
    assert p.extra_generation_params["LoRAtorio pool"].startswith("step 1: a, b, half")
    assert [name for name in files if name != "a"] == ["foreign", "shapes", "b", "half", "most"], (
        "each file of the pool is read once a request"
    )
    assert_clean(host, p)
    assert_close(latents, host.generate("a cat <lora:a:0.8> <lora:b:0.6> <lora:half:0.7>", ON, n_iter=2)[1])


def test_a_pool_that_cannot_be_read(host):
    with pytest.raises(LoratorioError, match="'horse', which is none of the WebUI's LoRAs"):
        host.generate("a cat <lora:a:0.8>", {**ON, "pool": "horse"})


@pytest.mark.parametrize(
    "settings",
    [{"guidance_every": 2}, {"guidance_every": 3, "lam": 0.0}, {"guidance_every": 2, "method": "composite"}],
    ids=str,
)
def test_cheaper_guidance(host, settings):
    _, latents = host.generate(f"a cat {TAGS}", {**ON, **settings}, steps=4)
    assert_close(latents, expected(host, [A, B], one("a cat"), settings=settings, steps=4), 1e-6)


def test_guidance_of_another_extension_does_not_change_what_later_steps_reuse(host):
    """Here one that evaluates the negative prompt of a changed picture."""
    settings = {"guidance_every": 2}
    _, latents = host.generate(
        f"a cat {TAGS}", {**ON, **settings}, after=[self_attention(host.calc_cond_uncond_batch)], steps=4
    )
    assert_close(latents, SelfAttention(host, [A, B], one("a cat"), settings=settings, steps=4).latents(), 1e-6)


def test_trigger_words_are_in_the_adapters_own_prompts(host, monkeypatch):
    words = {"a.safetensors": "word of a", "b.safetensors": ""}
    monkeypatch.setattr(host.text, "trigger_words", lambda path: words[path.rpartition("/")[2]])
    p, latents = host.generate(f"a cat {TAGS}", {**ON, "trigger_words": True})
    assert_close(latents, expected(host, [A, B], one("a cat"), words=("word of a", "")))
    assert_clean(host, p)


def test_verify_reports_the_error(host):
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, n_iter=2)
    assert p.extra_generation_params[VERIFY].endswith("over 6 calls") and verified(p) < 1e-9
    assert_clean(host, p)
    assert torch.equal(latents, host.generate(f"a cat {TEXT_TAGS}", ON, n_iter=2)[1])


def test_verify_finds_a_wrong_delta(host, monkeypatch):
    factors = host.forge.deltas.backend.factors
    monkeypatch.setattr(host.forge.deltas.backend, "factors", lambda patch: factors(patch)._replace(strength=1.5))
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "verify": True})
    assert verified(p) > 1e-3


# The host afterwards


def test_ordinary_pictures_are_the_same_afterwards(host):
    requests = ["a cat", f"a cat {TEXT_TAGS}", "a cat <lora:text:1>"]
    before = [merged_picture(host, prompt) for prompt in requests]
    host.generate(f"a cat {TEXT_TAGS}", ON)
    assert all(torch.equal(merged_picture(host, prompt), picture) for prompt, picture in zip(requests, before))


def test_the_hosts_cache_of_conditions_is_its_own(host):
    host.generate(f"a cat {TEXT_TAGS}", ON)
    equations = Equations(host, [A, TEXT, B], one("a cat"))
    with HostPutBack(host):
        right = equations.text(MERGED, "a cat")["c_crossattn"], equations.text(MERGED, "")["c_crossattn"]
    assert torch.equal(host.processing.Processing.cached_c[1].batch[0][0].schedules[0].cond, right[0][0])
    assert torch.equal(host.processing.Processing.cached_uc[1][0][0].cond, right[1][0])


class OddError(Exception):
    """Raised by these tests only."""


def fail_at(host, monkeypatch, call, error):
    calls, apply_model = iter(range(99)), host.model.KModel.apply_model

    def failing(self, *args, **kwargs):
        if next(calls) == call:
            raise error
        return apply_model(self, *args, **kwargs)

    monkeypatch.setattr(host.model.KModel, "apply_model", failing)


@pytest.mark.parametrize(
    ("error", "call", "settings"),
    [
        (OddError("inside the model"), 0, {}),
        (RuntimeError("inside the model"), 2, {}),
        (KeyboardInterrupt("inside the model"), 2, {}),
        (OddError("inside the model"), 2, {"verify": True}),
        (OddError("inside the model"), 2, {"end": 0.5}),
    ],
    ids=str,
)
def test_an_error_in_the_model_is_the_hosts_and_leaves_nothing(host, monkeypatch, call, settings, error):
    fail_at(host, monkeypatch, call, error)
    p = host.request(f"a cat {TEXT_TAGS}", {**ON, **settings})
    with pytest.raises(type(error), match="inside the model") as raised:
        host.processing.process_images(p)
    assert raised.value is error
    assert_clean(host, p)
    assert_close(host.generate(f"a cat {TEXT_TAGS}", ON)[1], expected(host, [A, TEXT, B], one("a cat")))


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
def test_an_error_of_ours_ends_the_generation(host, monkeypatch, steps, where):
    class Broken(METHODS["loratorio"]):
        pass

    def fail(*args):
        raise OddError("a mistake")

    setattr(Broken, where, fail)
    monkeypatch.setitem(METHODS, "loratorio", Broken)
    p = host.request(f"a cat {TEXT_TAGS}", ON, steps=steps)
    with pytest.raises((LoratorioError, OddError), match="a mistake"):
        host.processing.process_images(p)
    assert_clean(host, p)
    monkeypatch.undo()
    assert_close(host.generate(f"a cat {TEXT_TAGS}", ON)[1], expected(host, [A, TEXT, B], one("a cat")))


def test_an_error_at_the_start_ends_the_generation(host, monkeypatch):
    monkeypatch.setattr(host.forge.deltas, "_deltas", lambda *args: 1 / 0)
    with pytest.raises(LoratorioError, match="could not start: ZeroDivisionError"):
        host.generate(f"a cat {TEXT_TAGS}", ON)
    assert [message for message, _ in host.errors.reported] == ["LoRAtorio could not start"]
    monkeypatch.undo()
    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON)
    assert_close(latents, expected(host, [A, TEXT, B], one("a cat")))
    assert_clean(host, p)


# What the user is told

BAD = {
    "value": (f"a cat {TAGS}", {**ON, "temperature": -1}, ["temperature", "-1"]),
    "unknown": (f"a cat {TAGS} <lora:nowhere:1>", ON, ["nowhere"]),
    "unreadable": (f"a cat {TAGS} <lora:broken:1>", ON, ["broken"]),
    "foreign": (f"a cat {TAGS} <lora:foreign:1>", ON, ["foreign", "matches nothing"]),
    "misfit": (f"a cat {TAGS} <lora:misfit:1>", ON, ["misfit", "none of the 1 layers"]),
}


@pytest.mark.parametrize(("prompt", "settings", "words"), BAD.values(), ids=BAD)
def test_bad_input_stops(host, prompt, settings, words):
    host.add("broken", {}, 8).patches = None
    host.add("misfit", {"to_q": "misfit"}, 8)
    with pytest.raises(LoratorioError) as raised:
        host.generate(prompt, settings)
    assert all(word in str(raised.value) for word in words), raised.value
    assert str(raised.value) in host.gradio.warnings
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert_close(latents, expected(host, [A, B], one("a cat")))
    assert_clean(host, p)


def test_bad_input_may_go_on(host):
    ordinary = merged_picture(host, f"a cat {TAGS} <lora:foreign:1>")
    host.shared.opts.loratorio_stop_on_error = False
    p, latents = host.generate(f"a cat {TAGS} <lora:foreign:1>", ON)
    assert torch.equal(latents, ordinary)
    assert "matches nothing" in p.extra_generation_params[NOTE] and p.extra_generation_params[NOTE].endswith(
        "the WebUI's ordinary one."
    )
    assert_clean(host, p)


def test_a_network_missing_in_the_second_pass_stops_the_first(host, monkeypatch):
    rows = count_rows(host, monkeypatch)
    with pytest.raises(LoratorioError, match="nowhere"):
        host.generate(f"a cat {TAGS}", ON, enable_hr=True, hr_prompt="a cat <lora:nowhere:1>")
    assert rows == []


@pytest.mark.parametrize("prompt", ["a cat", "a cat <lora:a:0>"])
def test_no_network_is_an_ordinary_picture_and_a_note(host, prompt):
    p, latents = host.generate(prompt, ON)
    assert_clean(host, p)
    assert torch.equal(latents, merged_picture(host, prompt))
    assert "no LoRA" in p.extra_generation_params[NOTE]


def test_networks_switched_off_are_an_ordinary_picture_and_a_note(host):
    p, latents = host.generate(f"a cat {TAGS}", ON, disable_extra_networks=True)
    assert torch.equal(latents, merged_picture(host, "a cat"))
    assert "switched off" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize("settings", [{}, {"enabled": False}], ids=str)
def test_disabled_does_nothing(host, settings, monkeypatch):
    _, ordinary = host.generate(f"a cat {TEXT_TAGS}")
    for name in ("prepare", "stop", "note"):
        monkeypatch.setattr(host.forge, name, lambda *args: pytest.fail("not when disabled"))
    p, latents = host.generate(f"a cat {TEXT_TAGS}", settings)
    assert torch.equal(latents, ordinary)
    assert p.extra_generation_params == {} and p.comments == {} and host.errors.reported == []
    assert_clean(host, p)
