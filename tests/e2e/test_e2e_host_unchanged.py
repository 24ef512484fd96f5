"""Switched off, stopped or done, the extension leaves the host as it was."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from webui_server import SCRIPT, VISIBLE, assert_identical, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
ORDINARY = ["a cat", PAIR, f"a dog {lora('te', 0.7)}", "a dog"]


def ordinary_pictures(webui):
    return [webui.generate(prompt) for prompt in ORDINARY]


def assert_all_identical(some, others):
    for one, other in zip(some, others, strict=True):
        assert_identical(one, other)


@pytest.mark.parametrize("args", [[{"enabled": False, "temperature": 0.2}], [{}], [False], []], ids=str)
def test_off_is_off(webui, args):
    off = webui.generate(PAIR, alwayson_scripts={SCRIPT: {"args": args}})
    assert_identical(off, webui.generate(PAIR))
    assert SCRIPT not in off.infotext


@pytest.mark.parametrize(
    "prompt, settings",
    [
        (PAIR, {}),
        (PAIR, {"verify": True}),
        (PAIR, {"method": "switch"}),
        (PAIR, {"method": "merge"}),
        (PAIR, {"end": 0.5}),
        (PAIR, {"adapters_per_pass": 1}),
        (f"a cat {lora('te', 0.7)}", {}),
        (f"a cat {lora('te_only', 0.7)} {lora('full', 0.7)} {lora('norm', 0.7)}", {}),
        (
            f"a cat {lora('te', 0.7)} {lora('dora', 0.7)} {lora('lokr', 0.5)}",
            {"text_encoder": "merged", "verify": True},
        ),
    ],
)
def test_ordinary_pictures_after_an_enabled_run(webui, prompt, settings):
    before = ordinary_pictures(webui)
    webui.generate(prompt, settings)
    assert_all_identical(ordinary_pictures(webui), before)


@pytest.mark.parametrize("earlier", ORDINARY)
def test_earlier_networks_do_not_matter(webui, earlier):
    webui.generate("a cat")
    expected = webui.generate(PAIR, {})
    webui.generate(earlier)
    assert difference(webui.generate(PAIR, {}), expected) == 0


def test_cached_conditions_stay_the_host_s_own(webui):
    prompt = f"a cat {lora('te', 0.9)} {lora('te_only', 0.5)}"
    before = webui.generate(prompt)
    assert difference(webui.generate(prompt, {}), before) > VISIBLE
    assert_identical(webui.generate(prompt), before)
    assert_identical(webui.generate(prompt), before)


@pytest.mark.parametrize("how", ["interrupt", "skip"])
def test_stopping_in_the_middle(webui, how):
    before = ordinary_pictures(webui)
    steps = 150
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            webui.generate, f"a cat {lora('te', 0.7)} {lora('locon', 0.6)}", {"verify": True}, steps=steps
        )
        wait_for_sampling(webui, running)
        getattr(webui.client, how)()
        stopped = running.result(timeout=120)
    assert stopped.verification[1] < steps
    assert_all_identical(ordinary_pictures(webui), before)


def wait_for_sampling(webui, running, limit_s=60):
    """Until the sampler has done a few steps."""
    deadline = time.monotonic() + limit_s
    while not running.done() and time.monotonic() < deadline:
        progress = webui.client.session.get(
            f"{webui.client.baseurl}/progress", params={"skip_current_image": True}
        ).json()
        if progress["state"]["sampling_step"] >= 3 and progress["state"]["sampling_steps"] > 4:
            return
        time.sleep(0.05)
    raise AssertionError(f"sampling did not start: {running}")
