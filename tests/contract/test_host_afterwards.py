"""The host as it was: after a composed picture, an error, an interruption; its caches, and ours."""

from types import SimpleNamespace

import internals
import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError, OddError
from oracle import latents as by_equations
from samples import ON, TAGS, TEXT, TEXT_TAGS, A, B, one, verified


def test_ordinary_pictures_are_the_same_afterwards(host):
    requests = ["a cat", f"a cat {TEXT_TAGS}", "a cat <lora:text:1>"]
    before = [host.merged_picture(prompt) for prompt in requests]
    host.generate(f"a cat {TEXT_TAGS}", ON)
    assert all(torch.equal(host.merged_picture(prompt), picture) for prompt, picture in zip(requests, before))


@pytest.mark.parametrize(
    "settings", [{}, {"enabled": False}, {"enabled": False, "temperature": -1}, [], [False, "loratorio", 2]], ids=str
)
def test_disabled_does_nothing(host, settings, monkeypatch):
    plain, expected = host.generate(f"a cat {TEXT_TAGS}")
    called = internals.entries_are_called(host, monkeypatch)
    p, latents = host.generate(f"a cat {TEXT_TAGS}", settings)
    assert called == []
    assert torch.equal(latents, expected)
    assert p.extra_generation_params == {} and p.comments == {}
    assert vars(p).keys() == vars(plain).keys() and internals.state_of(p) is None
    assert host.gradio.warnings == [] and host.errors.reported == []
    host.assert_clean(p)


def test_a_request_that_runs_has_no_attribute_or_value_of_ours(host, monkeypatch):
    """Others copy it, compare it, and send it to other machines as JSON."""
    plain, _ = host.generate(f"a cat {TEXT_TAGS}", enable_hr=True)
    added, ours, states, get_conds = set(), [], [], host.processing.Processing.get_conds

    def noted(p):
        added.update(vars(p).keys() - vars(plain).keys())
        ours.extend(filter(internals.is_ours, [*vars(p).values(), *p.extra_generation_params.values()]))
        states.append(internals.state_of(p) is not None)
        return get_conds(p)

    monkeypatch.setattr(host.processing.Processing, "get_conds", noted)
    p, _ = host.generate(f"a cat {TEXT_TAGS}", {**ON, "maps": True}, enable_hr=True)
    assert any(states) and internals.state_of(p) is None
    assert added == set() and ours == []


# Text conditions


def test_the_hosts_cache_of_conditions_is_its_own(host):
    caches = host.processing.Processing.cached_c, host.processing.Processing.cached_uc
    host.generate(f"a cat {TEXT_TAGS}", ON)
    own = [list(cache) for cache in caches]
    host.generate(f"a cat {TEXT_TAGS}", ON)
    for cache, values in zip(caches, own):
        assert cache[0] == values[0] and cache[1] is values[1]
    with host.put_back():
        right = [host.encode([A, TEXT, B], text, (48, 40)) for text in ("a cat", "")]
    assert all(torch.equal(kept, text[0]) for kept, text in zip(host.cached_conditions(), right))


@pytest.mark.parametrize("persistent", [True, False])
def test_conditions_are_kept_as_long_as_the_hosts(host, persistent, monkeypatch):
    host.shared.opts.persistent_cond_cache = persistent
    encoded = host.count_encodings(monkeypatch)
    host.generate(f"a cat {TEXT_TAGS}", ON, n_iter=2)
    assert len(encoded) == 6  # prompt and negative prompt: the host's own, the base's, one network's
    host.generate(f"a cat {TEXT_TAGS}", ON, seed=5)
    assert len(encoded) == (6 if persistent else 10)
    host.generate("a cat <lora:a:0.8> <lora:text:0.9:0.9> <lora:b:0.6>", ON)
    # Another strength: all anew, as the host's own conditions tell no more whether the text encoder is the same.
    assert len(encoded) == (12 if persistent else 16)


ALIKE_BUT_FOR = {
    "prompt": ({}, {"prompt": "a dog"}),
    "negative prompt": ({"negative_prompt": "bad"}, {"negative_prompt": "ugly"}),
    "size": ({}, {"width": 64, "height": 56}),
}


@pytest.mark.parametrize(("first", "second"), ALIKE_BUT_FOR.values(), ids=ALIKE_BUT_FOR)
def test_conditions_are_known_by_all_that_they_depend_on(host, monkeypatch, first, second):
    """Two requests have each their own; neither drives the other's out."""
    host.use(dict_conditions=True)
    host.add_networks()
    requests = [{"prompt": "a cat", "negative_prompt": "", "width": 48, "height": 40, **one} for one in (first, second)]

    def generate(fields):
        return host.generate(**{**fields, "prompt": f"{fields['prompt']} {TEXT_TAGS}"}, settings=ON)[1]

    pictures = [generate(fields) for fields in requests]
    for picture, fields in zip(pictures, requests):
        size = fields["width"], fields["height"]
        right = by_equations(host, [A, TEXT, B], one(fields["prompt"]), fields["negative_prompt"], size=size)
        assert_close(picture, right)
    encoded = host.count_encodings(monkeypatch)
    host.merged_picture(f"another {TEXT_TAGS}")  # the host keeps but its last one
    by_host = len(encoded)
    for fields in (*requests, *requests):
        encoded.clear()
        generate(fields)
        assert len(encoded) <= by_host


def test_a_changed_file_is_read_anew(host):
    host.generate(f"a cat {TEXT_TAGS}", ON)
    host.add("text", {"fc1": "lora", "to_q": "lora"}, seed=77).mtime = 2.0
    _, latents = host.generate(f"a cat {TEXT_TAGS}", ON)
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat")))


def test_another_checkpoint_has_its_own_conditions_and_deltas(host):
    _, former = host.generate(f"a cat {TEXT_TAGS}", ON)
    host.use(seed=5)
    host.networks.loaded_networks.clear()
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True})
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat")))
    assert differs(latents, former)
    assert verified(p) < 1e-12


# Errors and interruptions


@pytest.mark.parametrize(
    ("error", "call", "settings"),
    [
        *(
            (error("inside the model"), call, {})
            for call in (0, 2)
            for error in (OddError, RuntimeError, KeyboardInterrupt)
        ),
        (OddError("inside the model"), 2, {"verify": True}),
        (OddError("inside the model"), 2, {"end": 0.5}),
    ],
    ids=str,
)
def test_an_error_in_the_model_is_the_hosts_and_leaves_nothing(host, monkeypatch, call, settings, error):
    host.fail_at(monkeypatch, call, error)
    p = host.request(f"a cat {TEXT_TAGS}", {**ON, **settings})
    with pytest.raises(type(error), match="inside the model") as raised:
        host.processing.process_images(p)
    assert raised.value is error
    assert internals.state_of(p) is None
    host.assert_clean(p)
    monkeypatch.undo()
    assert_close(host.generate(f"a cat {TEXT_TAGS}", ON)[1], by_equations(host, [A, TEXT, B], one("a cat")))


def test_interruption_leaves_nothing(host, monkeypatch):
    from modules.sd_samplers_common import InterruptedException

    host.fail_at(monkeypatch, 2, InterruptedException())
    p, latents = host.generate(f"a cat {TAGS}", ON)
    assert torch.isfinite(latents).all()
    host.assert_clean(p)
    monkeypatch.undo()
    host.shared.state.interrupted = True
    p, latents = host.generate(f"a cat {TAGS}", ON)
    host.shared.state.interrupted = False
    assert torch.equal(latents[0], p.noise(0))
    host.assert_clean(p)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("where", ["plan", "combine"])
def test_an_error_of_ours_in_a_step_ends_the_generation(host, monkeypatch, steps, where):
    internals.break_method(monkeypatch, where, OddError("a mistake"))
    p = host.request(f"a cat {TEXT_TAGS}", ON, steps=steps)
    with pytest.raises((LoratorioError, OddError), match="a mistake"):
        host.processing.process_images(p)
    host.assert_clean(p)
    monkeypatch.undo()
    assert_close(host.generate(f"a cat {TEXT_TAGS}", ON)[1], by_equations(host, [A, TEXT, B], one("a cat")))


def test_an_error_of_ours_at_the_start_ends_the_generation(host, monkeypatch):
    internals.fail_when_deltas_are_made(host, monkeypatch, ZeroDivisionError("a mistake"))
    p = host.request(f"a cat {TEXT_TAGS}", ON)
    with pytest.raises(LoratorioError, match="could not start: ZeroDivisionError"):
        host.processing.process_images(p)
    assert [message for message, _ in host.errors.reported] == ["LoRAtorio could not start"]
    monkeypatch.undo()
    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON)
    assert_close(latents, by_equations(host, [A, TEXT, B], one("a cat")))
    host.assert_clean(p)


# Other extensions


def test_callbacks_leave_other_samplings_alone(host, monkeypatch):
    """Another extension may sample with a denoiser of its own while ours runs, and while it does not."""
    x, entry_points, seen = torch.ones(2, 4, 2, 2), internals.entry_points(host), []

    def sample():
        params = SimpleNamespace(x=x.clone(), text_cond="text", text_uncond="text", denoiser=object(), sigma=None)
        during = internals.running_pass(host) is not None
        entry_points.on_cfg_denoiser(params)
        if not during:
            entry_points.on_cfg_denoised(params)
        seen.append((params, during))

    sample()
    host.replace_model(monkeypatch, lambda apply_model, x: sample() or apply_model())
    _, latents = host.generate(f"a cat {TAGS}", ON)
    monkeypatch.undo()
    assert {during for _, during in seen} == {False, True}
    assert all(torch.equal(params.x, x) and params.text_cond == params.text_uncond == "text" for params, _ in seen)
    assert torch.equal(latents, host.generate(f"a cat {TAGS}", ON)[1])


def test_another_extensions_launch_sampling_is_called_and_kept(host):
    """Also when an arranged sampling never started and is arranged anew."""

    class Sampler:
        def launch_sampling(self, steps, func):
            return "the host's"

    sampler, instead_of_sampling = Sampler(), internals.instead_of_sampling()
    sampler.launch_sampling = another = lambda steps, func: "another's"
    for word in ("first", "second"):
        instead_of_sampling(
            sampler, lambda launch_sampling, steps, func, word=word: (word, launch_sampling(steps, func))
        )
    assert sampler.launch_sampling(1, None) == ("second", "another's")
    assert sampler.launch_sampling is another
    del sampler.launch_sampling
    instead_of_sampling(sampler, lambda launch_sampling, steps, func: launch_sampling(steps, func))
    assert sampler.launch_sampling(1, None) == "the host's"
    assert vars(sampler) == {}
