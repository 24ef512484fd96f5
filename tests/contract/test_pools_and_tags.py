"""Who takes part: strengths, windows and roles of tags, pools, scouting, trigger words, cheaper guidance."""

import importlib

import internals
import pytest
import torch
from equations import assert_close
from internals import LoratorioError
from oracle import latents as by_equations
from samples import GLOBAL_TAGS, NOTE, ON, POOL, TAGS, TEXT, VERIFY, A, B, one, verified

# Strengths


@pytest.mark.parametrize(
    ("tags", "adapters"),
    [
        ("<lora:text:0.3:0.9> <lora:b:1>", [("text", 0.3, 0.9), ("b", 1.0, 1.0)]),
        ("<lora:text:te=0:unet=0.9> <lyco:b:-0.5>", [("text", 0.0, 0.9), ("b", -0.5, -0.5)]),
        ("<lora:text:0.7:0> <lora:b>", [("text", 0.7, 0.0), ("b", 1.0, 1.0)]),
        ("<lora:other:1.5> <lora:b:1>", [("other", 1.5, 1.5), ("b", 1.0, 1.0)]),
        ("<lora:a:0> <lora:b:0.6> <lora:text:0:0> <lora:foreign:0>", [B]),
        ("<lora:a:0.8> <lora:a:0.8> <lora:a:0.8>", [A]),
        ("<lora:anna:0.8> <lora:b:0.6>", [A, B]),
    ],
)
def test_strengths_as_in_the_prompt(host, tags, adapters):
    host.add_alias("a", "anna")
    host.generate("a cat <lora:b:0.3>")  # leaves a merge in the weights
    p, latents = host.generate(f"a cat {tags}", ON)
    assert_close(latents, by_equations(host, adapters, one("a cat")))
    assert NOTE not in p.extra_generation_params
    host.assert_clean(p)


@pytest.mark.parametrize("tag", ["a:0.7:0", "other:0:0.9"])
def test_all_of_a_lora_may_have_a_strength_of_0(host, tag):
    p, latents = host.generate(f"a cat <lora:{tag}> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(host, [B], one("a cat")))
    host.assert_clean(p)


@pytest.mark.parametrize("strengths", ["0.7:0", "0:0.7"])
def test_a_lora_for_another_model_is_told_whichever_strength_is_0(host, strengths):
    with pytest.raises(LoratorioError, match="'foreign' matches nothing"):
        host.generate(f"a cat <lora:foreign:{strengths}> <lora:b:0.6>", ON)


def test_a_network_that_the_host_adds_to_each_prompt(host, monkeypatch):
    """By its setting "Add network to prompt", which gives no tag to the first batch."""
    extra_networks = importlib.import_module("modules.extra_networks")
    added, activate = extra_networks.ExtraNetworkParams(["b", "0.6"]), extra_networks.activate
    monkeypatch.setattr(
        extra_networks, "activate", lambda p, data: activate(p, {"lora": [*data.get("lora", []), added]})
    )
    opts = importlib.import_module("modules.shared").opts
    monkeypatch.setattr(opts, "sd_lora", "b", raising=False)
    monkeypatch.setattr(opts, "extra_networks_default_multiplier", 0.6, raising=False)
    _, latents = host.generate("a cat <lora:a:0.8>", ON)
    _, alone = host.generate("a cat", ON)
    monkeypatch.undo()
    assert_close(latents, by_equations(host, [A, B], one("a cat")))
    assert_close(alone, by_equations(host, [B], one("a cat")))


# Windows and roles


def test_adapters_take_part_within_their_windows(host, monkeypatch):
    planned = internals.plans(monkeypatch, "loratorio")
    tags = "<lora:a:0.8:ltend=0.5> <lora:text:0.7:0.9:ltstart=0.25:ltend=0.75> <lora:b:0.6:ltend=0.75>"
    p, latents = host.generate(f"a cat {tags}", {**ON, "verify": True}, steps=8)
    windows = [(0, 0.5), (0.25, 0.75), (0, 0.75)]
    assert planned == [
        *((step, (0, 2)) for step in (0, 1)),
        *((step, (0, 1, 2)) for step in (2, 3)),
        *((step, (1, 2)) for step in (4, 5)),
    ]
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat"), steps=8, windows=windows))
    assert internals.state_of(p) is None
    assert p.extra_generation_params[VERIFY].endswith("over 8 calls") and verified(p) < 1e-9
    host.assert_clean(p)


def test_switch_changes_on_time(host, monkeypatch):
    """15 / 22 * 22 is a little less than 15 in floating point."""
    planned = internals.plans(monkeypatch, "switch")
    host.generate(f"a cat {TAGS}", {**ON, "method": "switch"}, steps=22)
    assert [step for step, _ in planned] == list(range(22))


@pytest.mark.parametrize(
    "settings", [{}, {"lam": 0.0, "adapters_per_pass": 1}, {"method": "composite"}, {"text_encoder": "merged"}], ids=str
)
def test_global_adapters_are_in_the_base_and_in_every_evaluation(host, settings):
    p, latents = host.generate(f"a cat {GLOBAL_TAGS}", {**ON, **settings, "verify": True})
    assert_close(latents, by_equations(host, [A, B], one("a cat"), settings=settings, everywhere=[TEXT]))
    assert verified(p) < 1e-9
    host.assert_clean(p)


def test_two_readers_of_the_text_share_a_text_encoder(host):
    p, latents = host.generate("a cat <lora:text:0.7:0.9:lt=global> <lora:other:1.5> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(host, [("other", 1.5, 1.5), B], one("a cat"), everywhere=[TEXT]))
    host.assert_clean(p)


def test_kinds_that_read_the_weight_read_it_with_the_global_adapters(host):
    """Their changes depend on the weight that they change."""
    host.add("under", host.under, seed=7)
    host.add("over", host.over, seed=8)
    _, latents = host.generate("a cat <lora:over:0.6> <lora:under:0.5:lt=global> <lora:b:0.6>", ON)
    right = by_equations(host, [("over", 0.6, 0.6), B], one("a cat"), everywhere=[("under", 0.5, 0.5)])
    assert_close(latents, right, host.dense_tolerance)


def test_a_global_adapter_alone_is_merged(host):
    _, latents = host.generate("a cat <lora:a:0.8:lt=global>", ON)
    assert_close(latents, host.merged_picture("a cat <lora:a:0.8>"))


# Pools


@pytest.mark.parametrize(
    ("pool", "tag", "pooled"),
    [
        ("text:0.7, b:0.6", "<lora:a:0.8>", [("text", 0.7, 0.7), B]),
        ("b:0.6, ?e*t:0.7", "<lora:a:0.8>", [B, ("text", 0.7, 0.7)]),
        ("a:0.8, text:0.7, b:0.6, a:9", "", [("text", 0.7, 0.7), B]),
    ],
)
def test_a_pool_is_composed_like_the_prompts_own(host, pool, tag, pooled):
    p, latents = host.generate(f"a cat {tag}", {**ON, "pool": pool, "top_k": 2, "verify": True})
    assert_close(latents, by_equations(host, [A, *pooled], one("a cat"), settings={"top_k": 2}))
    assert p.extra_generation_params[POOL] == "step 1: " + ", ".join(name for name, *_ in [A, *pooled])
    assert verified(p) < 1e-9
    host.assert_clean(p)


@pytest.mark.parametrize("limit", [0, 10])
def test_a_pool_keeps_its_strengths_where_a_later_prompt_has_others(host, limit):
    """A host that keeps networks in memory sets their strengths anew for each prompt."""
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
    host.add_alias("a", "anna")
    host.shared.opts.lora_in_memory_limit = limit
    _, latents = host.generate(f"a cat <lora:{name}:0> <lora:b:0.6>", {**ON, "pool": "a:0.8, text:0.7"})
    assert_close(latents, by_equations(host, [B, ("text", 0.7, 0.7)], one("a cat")))


def test_a_pool_in_portions(host, monkeypatch):
    """More adapters than stay on the device."""
    layers = list(host.networks_of_tests["a"])
    for number in range(12):
        host.add(f"p{number}", {layers[number % len(layers)]: "lora", "to_k": "lora"}, seed=20 + number)
    rows = host.count_rows(monkeypatch)
    p, latents = host.generate(f"a cat {TAGS}", {**ON, "pool": "p*:0.5"}, steps=1)
    assert rows == [8, 8, 8, 6]
    pooled = [(f"p{number}", 0.5, 0.5) for number in range(12)]
    assert_close(latents, by_equations(host, [A, B, *pooled], one("a cat"), steps=1))
    host.assert_clean(p)


def test_scouting_evaluates_the_few_that_kept_a_share(host, monkeypatch):
    weighed = internals.scouted_weights(monkeypatch)
    settings = {"pool": "text:0.7,b:0.3,other", "pool_mode": "scout", "scout": 0.5, "scout_share": 0.3}
    p, _ = host.generate("a cat <lora:a:0.2>", {**ON, **settings, "verify": True}, steps=4)
    assert weighed[0].shape == (4, 1, 5, 6)  # two by three regions, of which the upper and the lower ones share a row
    won = [weights.argmax(0)[0] == torch.arange(4)[:, None, None] for weights in weighed[:2]]
    mean = torch.stack(won).float().mean(0)
    regions = [mean[:, rows, left : left + 2] for rows in (slice(3), slice(2, 5)) for left in (0, 2, 4)]
    most = torch.stack([region.mean((1, 2)) for region in regions]).amax(0)
    kept = ["a", *(name for name, share in zip(("text", "b", "other"), most[1:] / most.max()) if share >= 0.3)]
    assert 1 < len(kept) < 4, most
    assert p.extra_generation_params[POOL] == f"step 1: a, text, b, other; step 3: {', '.join(kept)}"
    assert verified(p) < 1e-9
    host.assert_clean(p)


@pytest.mark.parametrize(
    ("enable_hr", "told"), [(False, "step 1: a, b"), (True, "step 1: a, b; step 1: b")], ids=["one pass", "hires"]
)
def test_each_picture_tells_of_its_own_batch(host, monkeypatch, enable_hr, told):
    seen = []
    monkeypatch.setattr(host.script, "postprocess_image", lambda p, *args: seen.append(p.extra_generation_params[POOL]))
    fields = {"steps": 1, "n_iter": 3, "enable_hr": enable_hr, "hr_prompt": "a dog <lora:a:0>"}
    host.generate("a cat <lora:a:0.8>", {**ON, "pool": "b"}, **fields)
    assert seen == [told] * 3


def test_a_pool_by_other_names(host):
    """An alias of several networks is none's."""
    host.add_alias("a", "anna")
    host.add_alias("other", "Both")
    host.networks.forbidden_network_aliases["both"] = 1
    p, _ = host.generate("a cat <lora:text:0.8>", {**ON, "pool": "anna, b, a"}, steps=1)
    assert p.extra_generation_params[POOL] == "step 1: text, a, b"
    with pytest.raises(LoratorioError, match="'Both', which is none of the WebUI's LoRAs"):
        host.generate("a cat <lora:text:0.8>", {**ON, "pool": "Both"}, steps=1)


def test_what_cannot_be_in_a_pool(host, monkeypatch):
    host.add("shapes", {"to_q": "misfit", "to_out": "misfit lora"})
    host.add("most", {"to_q": "misfit", "to_out": "misfit lora", "to_k": "lora", "fc1": "lora"})
    host.add("half", {"to_q": "misfit", "to_out": "misfit lora", "to_k": "lora", "conv_out": "lora"})
    read = host.files_read(monkeypatch)
    settings = {**ON, "pool": "foreign, shapes, b:0.6, half:0.7, most"}
    p, latents = host.generate("a cat <lora:a:0.8>", settings, n_iter=2, enable_hr=True)
    left_out = (
        "LoRAtorio: 3 LoRAs of the pool cannot be read, or do not suit this model, and are left out: foreign, shapes, "
        "most."
    )
    assert left_out in p.extra_generation_params[NOTE] and p.extra_generation_params[NOTE].count("left out") == 2
    assert "2 of 4 layers of the LoRA 'half'" in p.extra_generation_params[NOTE]
    assert [warning for warning in host.gradio.warnings if "pool" in warning] == [left_out]
    assert p.extra_generation_params[POOL].startswith("step 1: a, b, half;")
    assert [name for name in read if name != "a"] == ["foreign", "shapes", "b", "half", "most"], (
        "each file of the pool is read once a request"
    )
    host.assert_clean(p)
    _, expected = host.generate("a cat <lora:a:0.8> <lora:b:0.6> <lora:half:0.7>", ON, n_iter=2, enable_hr=True)
    assert_close(latents, expected)


def test_a_pool_of_misfits_only_is_an_ordinary_picture_and_a_note(host):
    host.add("shapes", {"to_q": "misfit", "to_out": "misfit lora"})
    p, latents = host.generate("a cat", {**ON, "pool": "shapes"})
    assert torch.equal(latents, host.merged_picture("a cat"))
    assert "left out: shapes." in p.extra_generation_params[NOTE]
    assert "neither has the pool" in p.extra_generation_params[NOTE]


@pytest.mark.parametrize(
    ("pool", "message"), [("horse", "'horse', which is none of the WebUI's LoRAs"), ("b:much", "must be a number")]
)
def test_a_pool_that_cannot_be_read_stops(host, pool, message):
    with pytest.raises(LoratorioError, match=message):
        host.generate("a cat <lora:a:0.8>", {**ON, "pool": pool})


def test_merge_says_that_it_has_no_pool(host):
    p, _ = host.generate("a cat <lora:a:0.8>", {**ON, "pool": "b", "method": "merge"})
    assert "no pool" in p.extra_generation_params[NOTE]


def test_a_pool_that_the_prompt_names(host, monkeypatch):
    """By trigger words, whole and in whatever case; a second pass by its own prompt."""
    internals.name_files(monkeypatch, {"b": "blue bird", "text": "hat, Old Car", "other": ""})
    settings = {**ON, "pool": "text:0.7, b:0.6, other", "pool_mode": "named", "verify": True}
    p, latents = host.generate("a cat, (old car:1.2), bluebird <lora:a:0.8>", settings)
    right = by_equations(host, [A, ("text", 0.7, 0.7)], one("a cat, (old car:1.2), bluebird"))
    assert_close(latents, right)
    assert p.extra_generation_params[POOL] == "step 1: a, text" and verified(p) < 1e-9
    fields = {"enable_hr": True, "hr_prompt": "a blue bird <lora:a:0.8>", "steps": 1}
    p, _ = host.generate("a cat <lora:a:0.8>", settings, **fields)
    assert p.extra_generation_params[POOL] == "step 1: a, b"
    p, latents = host.generate("a cat", settings)
    assert (
        torch.equal(latents, host.merged_picture("a cat")) and "neither has the pool" in p.extra_generation_params[NOTE]
    )
    pool = importlib.import_module("lib_loratorio.hosts.webui.pool")
    named = internals.Settings(pool="text:0.7, b", pool_mode="named")
    assert pool.named("a blue bird", named) == [("b", 1.0)]
    assert pool.named("a blue bird", internals.Settings(pool="horse", pool_mode="named")) == []


# Words, and guidance in some steps only


def test_trigger_words_are_in_the_adapters_own_prompts(host, monkeypatch):
    internals.set_trigger_words(monkeypatch, {"a": "word of a", "b": ""})
    p, latents = host.generate(f"a cat AND a dog :0.5 {TAGS}", {**ON, "trigger_words": True})
    assert_close(latents, by_equations(host, [A, B], [[("a cat", 1.0), ("a dog", 0.5)]], words=("word of a", "")))
    host.assert_clean(p)


@pytest.mark.parametrize(
    "settings",
    [{"guidance_every": 2}, {"guidance_every": 3, "lam": 0.0}, {"guidance_every": 2, "method": "composite"}],
    ids=str,
)
def test_cheaper_guidance(host, monkeypatch, settings, sampler):
    rows = host.count_rows(monkeypatch)
    _, latents = host.generate(f"a cat {TAGS}", {**ON, **settings}, sampler_name=sampler, steps=4)
    full, saved = (5, 3) if settings.get("method") else (6, 4)
    assert rows == [saved if step % settings["guidance_every"] else full for step in range(4)]
    right = by_equations(host, [A, B], one("a cat"), settings=settings, sampler=sampler, steps=4)
    assert_close(latents, right, 1e-6)
