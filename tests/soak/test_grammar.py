"""The soak test's requests: repeatable, of all kinds, affordable, and fit for JSON."""

import json
import re
from collections import Counter

import grammar
import pytest

OFFER = grammar.Offer(
    samplers=("Euler a", "Euler", "DDIM", "Heun", "DPM++ SDE", "UniPC", "DPM adaptive"),
    schedulers=("Karras",),
    kinds=("lora", "locon", "te", "dora", "lokr", "full"),
    unread=("boft",),
    pool=("one", "two", "three"),
    checkpoints=(("other", "soak_"), ("wide", "soak_xl_")),
    refiners=("other",),
    options=("pad_cond_uncond", "CLIP_stop_at_last_layers"),
    axes=("Seed", "Prompt S/R", "[LoRAtorio] Method"),
)
MANY = range(1500)


@pytest.fixture(scope="module")
def requests():
    return [grammar.request(1, number, OFFER) for number in MANY]


def test_the_same_seed_and_number_make_the_same_request(requests):
    assert requests[37] == grammar.request(1, 37, OFFER)
    assert requests[37] != grammar.request(2, 37, OFFER)
    assert json.loads(json.dumps(requests)) == [json.loads(json.dumps(request)) for request in requests]


def test_every_kind_of_fault_and_of_picture_comes_up(requests):
    faults = Counter(request["fault"]["kind"] for request in requests if request["fault"])
    assert faults.keys() == grammar.FAULTS.keys() - {"none"}
    assert 0.3 < faults.total() / len(requests) < 0.6
    for name in ("picture", "mask", "plot"):
        assert any(name in request for request in requests)
    text = json.dumps(requests)
    for part in (
        " AND ",
        "lt=global",
        "ltstart",
        "BREAK",
        ":0.5]",
        '"enable_hr"',
        '"styles"',
        '"cfg_scale": 1.0',
        "scout",
    ):
        assert part in text


def test_one_to_six_loras(requests):
    plain = [request for request in requests if not request["fault"] and "enable_hr" not in request["fields"]]
    assert {request["fields"]["prompt"].count("<lora:") for request in plain} == {1, 2, 3, 4, 5, 6}


def test_global_loras_have_no_window_beside_kinds_that_read_weights(requests):
    prompts = [request["fields"]["prompt"] for request in requests]
    windowed = [prompt for prompt in prompts if re.search(r"<lora:[^>]*:lt(start|end)=[^>]*:lt=global>", prompt)]
    assert windowed and not any("soak_dora" in prompt for prompt in windowed)


def test_kinds_of_faults_can_be_left_out():
    without = ("Reload UI", "wrong strength")
    some = [grammar.request(1, number, OFFER, without) for number in MANY]
    assert all(request["fault"] is None or request["fault"]["kind"] not in without for request in some)


def test_what_cannot_happen_is_left_out():
    poor = grammar.Offer(("Euler",), ("Karras",), ("lora",), (), (), (), (), (), ())
    assert all(
        request["fault"] is None or request["fault"]["kind"] not in ("refiner", "options", "checkpoint switch")
        for request in (grammar.request(1, number, poor) for number in MANY)
    )


def test_most_requests_cost_no_more_than_is_offered(requests):
    dear = [request for request in requests if grammar.work(request) > OFFER.work]
    assert len(dear) < 0.02 * len(requests)


def test_samplers_that_choose_their_steps_are_dear():
    names = ["DPM adaptive", "ODE (Dopri5)", "ODE Custom", "Euler", "DPM++ 2M"]
    assert [grammar.more_steps(name) for name in names] == [30, 100, 100, 0, 0]
