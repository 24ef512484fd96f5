"""LoRAs beside the prompt's, global ones, cheaper guidance, and trigger words."""

import lora_files
import pytest
from webui_server import CLOSE, assert_identical, check_composed, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

COUNT = 20
POOL = "loratorio-e2e/pool/*:0.3"
CHOSEN = "LoRAtorio pool"
WORD = "zebra"


@pytest.fixture(scope="module")
def pool(webui, lora_dir) -> list[str]:
    names = lora_files.write_pool(webui.current_checkpoint()["filename"], lora_dir / "pool", COUNT)
    webui.refresh_loras()
    return names


def composed(webui, prompt, settings, **fields):
    """A composed picture that holds what the self-check promises, and leaves ordinary ones as they were."""
    before = webui.generate(prompt, **fields)
    made = webui.generate(prompt, {"verify": True, **settings}, **fields)
    error, _ = made.verification
    assert 0 < error < 1e-4
    assert difference(made, before) > 0
    assert_identical(webui.generate(prompt, **fields), before)
    return made


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 2}, {"method": "composite"}, {"method": "switch"}, {"top_k": 2, "adapters_per_pass": 8}],
    ids=str,
)
def test_every_method_with_a_pool(webui, pool, settings):
    made = composed(webui, f"a cat {lora('lora', 0.8)}", {"pool": POOL, **settings}, steps=7)
    assert made.params[CHOSEN] == f"step 1: e2e_lora, {', '.join(pool)}"


def test_a_pool_is_composed_like_the_prompts_own(webui, pool):
    few = pool[:3]
    tags = " ".join(f"<lora:{name}:0.5>" for name in few)
    asked = webui.generate(f"a cat {lora('lora', 0.8)} {tags}", {})
    pooled = webui.generate(f"a cat {lora('lora', 0.8)}", {"pool": [f"{name}:0.5" for name in few]})
    alone = webui.generate("a cat", {"pool": [f"e2e_lora:0.8,{few[0]}:0.5", f"{few[1]}:0.5", f"{few[2]}:0.5"]})
    assert difference(asked, pooled) <= CLOSE and difference(asked, alone) <= CLOSE


def test_scouting_chooses(webui, pool):
    scout = {"pool": POOL, "pool_mode": "scout", "scout": 0.3, "scout_every": 5, "scout_share": 0.9, "top_k": 2}
    made = composed(webui, f"a cat {lora('lora', 0.8)}", scout, steps=8)
    first, few, again, *_ = [phase.split(": ") for phase in made.params[CHOSEN].split("; ")]
    assert first == ["step 1", f"e2e_lora, {', '.join(pool)}"]
    assert few[0] == "step 4" and few[1].startswith("e2e_lora") and few[1].count(",") < COUNT
    assert again == ["step 6", first[1]]
    assert difference(made, webui.generate(f"a cat {lora('lora', 0.8)}", {"pool": POOL, "top_k": 2}, steps=8)) > 0


def test_a_pool_for_hires_and_batches(webui, pool):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    made = composed(webui, "a cat", {"pool": f"{pool[0]},{pool[1]}"}, batch_size=2, **hires)
    assert made.params[CHOSEN] == f"step 1: {pool[0]}, {pool[1]}; step 1: {pool[0]}, {pool[1]}"


def test_names_that_the_webui_does_not_know_are_told(webui, pool):
    for name in ("e2e_horse", "../../../etc/passwd", "/etc/*"):
        assert f"'{name}', which is none of the WebUI's LoRAs" in webui.refusal("a cat", {"pool": name})


@pytest.mark.parametrize(
    "kinds",
    [("locon", "lora", "te"), ("te", "lora", "locon"), ("dora", "loha", "lora"), ("lora", "dora", "lokr")],
    ids=str,
)
def test_a_global_lora_is_everywhere(webui, kinds):
    kinds = [kind for kind in kinds if webui.applies(kind)]
    everywhere, *local = kinds
    check_composed(
        webui, f"a cat {lora(everywhere, '0.7:lt=global')} {' '.join(lora(kind, 0.6) for kind in local)}", calls=4
    )


def test_a_global_lora_alone_is_merged(webui):
    for kind in ("lora", "te"):
        assert (
            difference(
                webui.generate(f"a cat {lora(kind, '0.8:lt=global')}", {}), webui.generate(f"a cat {lora(kind, 0.8)}")
            )
            <= CLOSE
        )


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "Heun"])
def test_cheaper_guidance(webui, sampler):
    pair = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
    every = composed(webui, pair, {}, steps=6, sampler_name=sampler)
    second = composed(webui, pair, {"guidance_every": 2}, steps=6, sampler_name=sampler)
    assert 0 < difference(every, second)
    assert_identical(webui.generate(pair, {"lam": 1.0, "guidance_every": 1}), webui.generate(pair, {"lam": 1.0}))


def test_trigger_words_are_in_the_loras_own_prompt_only(webui, lora_dir):
    """With lambda 0 one adapter's picture is that of its own prediction."""
    layers = lora_files.layers_of(webui.current_checkpoint()["filename"])
    lora_files.write(lora_files.adapter("lora", layers, 99), lora_dir / "e2e_word.safetensors", WORD)
    webui.refresh_loras()
    own = webui.generate(f"a cat {lora('word')}", {"lam": 0.0, "trigger_words": True, "verify": True})
    assert own.verification[0] < 1e-4
    assert difference(own, webui.generate(f"a cat, {WORD} {lora('word')}")) <= CLOSE
    assert difference(own, webui.generate(f"a cat {lora('word')}")) > CLOSE
