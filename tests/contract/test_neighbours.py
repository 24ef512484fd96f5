"""Beside other extensions: those that act on rows, call the model, or change texts."""

from types import SimpleNamespace

import pytest
import torch
from equations import assert_close, differs
from internals import LoratorioError
from neighbours import Again, BothMovedAway, ByHalves, InHalves, MovedAway, OtherText, layer, of_extension
from oracle import latents as by_equations
from oracle import map_text
from samples import BOTH_TAGS, NOTE, ON, TAGS, TEXT, TEXT_TAGS, A, B, of_tags, one, verified

SINGLE = 1e-5
BOTH = pytest.mark.parametrize("tags", BOTH_TAGS.values(), ids=BOTH_TAGS)

# Rows


@pytest.mark.parametrize("lam", [0.5, 1.0])
@BOTH
def test_who_tells_rows_by_their_number_finds_the_hosts(host, tags, lam):
    neighbour = InHalves(host, 2, "sd-webui-negpip")
    settings, fields = {"lam": lam}, {"batch_size": 2, "negative_prompt": "bad"}
    right = ByHalves(host, neighbour, of_tags(tags), one("a cat") * 2, "bad", settings=settings).latents()
    for p, latents in host.in_portions(
        f"a cat {tags}", {**ON, **settings, "verify": True}, portions=host.extreme_portions, **fields
    ):
        assert_close(latents, right)
        assert verified(p) < SINGLE
        assert p.extra_generation_params[NOTE].startswith("LoRAtorio: NegPiP acts on")
    neighbour.handle.remove()
    p, latents = host.generate(f"a cat {tags}", {**ON, **settings}, **fields)
    assert differs(latents, right)
    assert NOTE not in p.extra_generation_params
    host.assert_clean(p)


def test_one_lora_and_lambda_0_beside_it_is_the_hosts_own_picture(host):
    neighbour = InHalves(host, 1, "sd-webui-negpip")
    _, ordinary = host.generate("a cat <lora:a:0.8>", negative_prompt="bad")
    _, latents = host.generate("a cat <lora:a:0.8>", {**ON, "lam": 0.0}, negative_prompt="bad")
    neighbour.handle.remove()
    assert_close(latents, ordinary)


class Doubled:
    """A layer gets each row twice: the copies of all together, behind the rows, or each in its row's place."""

    def __init__(self, host, folder, in_place):
        self.in_place = in_place
        self.handles = [
            layer(host, "to_q").register_forward_pre_hook(of_extension(folder, lambda *args: self.before(*args))),
            layer(host, "to_q").register_forward_hook(of_extension(folder, lambda *args: self.after(*args))),
        ]

    def before(self, module, inputs):
        return inputs[0].repeat_interleave(2, 0) if self.in_place else torch.cat([inputs[0]] * 2)

    def after(self, module, inputs, output):
        return output[::2] + output[1::2] - output[::2] if self.in_place else output.chunk(2)[1]


@pytest.mark.parametrize(("folder", "in_place"), [(None, False), (None, True), ("tiles", False)])
def test_rows_that_a_layer_gets_in_other_batches(host, folder, in_place, monkeypatch):
    """Those that are not known beforehand are found in the first call, which is made again."""
    doubled = Doubled(host, folder, in_place)
    rows = host.count_rows(monkeypatch)
    p, latents = host.generate(f"a cat {TEXT_TAGS}", {**ON, "lam": 1.0}, steps=2)
    assert rows == [5] * (folder is None) + [2] * 8
    assert_close(latents, by_equations(host, of_tags(TEXT_TAGS), one("a cat"), settings={"lam": 1.0}, steps=2))
    who = "the extension 'tiles'" if folder else "another extension"
    assert f"{who} acts on" in p.extra_generation_params[NOTE]
    assert "up to 4 calls in place of one" in p.extra_generation_params[NOTE]
    for handle in doubled.handles:
        handle.remove()


def test_known_tiles_in_place_share_a_call(a1111, monkeypatch):
    doubled = Doubled(a1111, "hypertile", in_place=True)
    rows = a1111.count_rows(monkeypatch)
    p, latents = a1111.generate(f"a cat {TAGS}", {**ON, "verify": False}, steps=2)
    assert rows == [6, 6] and NOTE not in p.extra_generation_params
    assert_close(latents, by_equations(a1111, [A, B], one("a cat"), steps=2))
    for handle in doubled.handles:
        handle.remove()


@pytest.mark.parametrize("folder", ["multidiffusion-upscaler-for-automatic1111", None])
@pytest.mark.parametrize("where", ["sampler", "checkpoint"])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_tiles_of_the_whole_picture(a1111, folder, where, sampler):
    """All rows of the first tile, then of the second; all into one buffer, as Mixture of Diffusers has it."""
    buffers = {}

    def tile(p):
        owner = p.sampler.model_wrap_cfg.inner_model if where == "sampler" else a1111.shared.sd_model
        name = "forward" if where == "sampler" else "apply_model"
        original = getattr(owner, name)

        def tiled(x, t, cond):
            twice = {key: [torch.cat([value[0]] * 2)] for key, value in cond.items()}
            out = original(torch.cat([x] * 2), torch.cat([t] * 2), cond=twice).chunk(2)
            return buffers.setdefault(x.shape, torch.empty_like(x)).copy_(out[1])

        setattr(owner, name, of_extension(folder, tiled))

    fields = {"negative_prompt": "bad", "batch_size": 2, "sampler_name": sampler, "before": [tile]}
    p, latents = a1111.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, **fields)
    vars(a1111.shared.sd_model).pop("apply_model", None)
    assert_close(latents, by_equations(a1111, [A, TEXT, B], one("a cat") * 2, "bad", sampler=sampler))
    assert verified(p) < SINGLE
    assert ("Tiled Diffusion acts on" in p.extra_generation_params[NOTE]) == bool(folder)


def test_who_sets_loras_by_region_is_declined_by_name(host, monkeypatch):
    forward = torch.nn.Linear.forward

    def linear_forward(self, x):
        return forward(self, x)

    linear_forward.__module__ = "scripts.latent"
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Linear, "forward", linear_forward)
        p, latents = host.generate(f"a cat {TAGS}", ON)
    assert "Regional Prompter's Latent mode is active" in p.extra_generation_params[NOTE]
    assert torch.equal(latents, host.merged_picture(f"a cat {TAGS}"))


def test_tiles_with_loras_of_their_own_are_declined_by_name(a1111):
    class Regions:
        enable_custom_bbox = True

        def forward(self, x, sigma, **kwargs):
            return self.original(x, sigma, **kwargs)

    def add(p):
        regions, model = Regions(), p.sampler.model_wrap_cfg.inner_model
        regions.original, model.forward = model.forward, regions.forward

    p, latents = a1111.generate(f"a cat {TAGS}", ON, before=[add])
    assert "Tiled Diffusion's Region Prompt Control is active" in p.extra_generation_params[NOTE]
    assert torch.equal(latents, a1111.merged_picture(f"a cat {TAGS}"))


# Others' model calls within a sampler call; the Forge family's are in test_forge_extensions.py


@pytest.mark.parametrize("equations", [MovedAway, BothMovedAway])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@BOTH
def test_another_call_of_the_model_is_composed_with_the_steps_weights(a1111, equations, sampler, tags):
    Again(a1111, only_prompt=not equations.both)
    fields = {"batch_size": 2, "negative_prompt": "bad", "sampler_name": sampler}
    right = equations(a1111, of_tags(tags), one("a cat") * 2, "bad", sampler=sampler, settings={"end": 0.6}).latents()
    for p, latents in a1111.in_portions(f"a cat {tags}", {**ON, "end": 0.6, "verify": True}, **fields):
        assert_close(latents, right)
        assert verified(p) < SINGLE
        assert [network.name for network in a1111.networks.loaded_networks] == [name for name, *_ in of_tags(tags)]


def test_such_a_call_with_sub_prompts_without_weights_and_with_cached_guidance(a1111):
    Again(a1111, only_prompt=False)
    prompts = [[("a cat", 1), ("a dog", 0.5)]]
    for settings in ({"method": "composite"}, {"method": "switch"}, {"guidance_every": 2}):
        _, latents = a1111.generate(f"a cat AND a dog:0.5 {TEXT_TAGS}", {**ON, **settings}, negative_prompt="bad")
        assert_close(latents, BothMovedAway(a1111, [A, TEXT, B], prompts, "bad", settings=settings).latents(), 1e-6)


def test_such_a_call_where_each_lora_is_alone_in_some_steps_only(a1111):
    """LoRAs in the order in which A1111's merge is the sum of what they change."""
    Again(a1111, only_prompt=False)
    prompts, tags = [[("a cat", 1), ("a dog", 0.5)]], "<lora:text:0.7:0.9> <lora:a:0.8> <lora:b:0.6>"
    settings, fields = {"refresh_every": 2}, {"negative_prompt": "bad", "steps": 4}
    _, latents = a1111.generate(f"a cat AND a dog:0.5 {tags}", {**ON, **settings}, **fields)
    right = BothMovedAway(a1111, [TEXT, A, B], prompts, "bad", settings=settings, steps=4).latents()
    assert_close(latents, right, 1e-6)


@pytest.mark.parametrize("early", [False, True], ids=["other latents", "before the step's own"])
def test_a_call_that_cannot_be_composed_is_refused_by_name(a1111, early):
    again = Again(a1111, only_prompt=True)
    if early:
        again.begin = lambda params: params.denoiser.inner_model(
            torch.cat([params.x] * 2), torch.cat([params.sigma] * 2), cond={}
        )
        again.end = lambda params: None
    else:
        again.latents = lambda: again.x[..., :4]
    with pytest.raises(LoratorioError, match="Incantations evaluates the model"):
        a1111.generate(f"a cat {TAGS}", ON)


# Others' texts


def changing(host, change, first):
    """An extension that changes the prompts' texts before each sampler call, before or after ours does."""

    def on_cfg_denoiser(params):
        params.text_cond = _of_class(params.text_cond, map_text(change, params.text_cond))

    host.script_callbacks.on_cfg_denoiser(of_extension("sd-webui-cads", on_cfg_denoiser))
    callbacks = host.script_callbacks.callback_map["callbacks_cfg_denoiser"]
    if first:
        callbacks.insert(0, callbacks.pop())


def _of_class(text, changed):
    return type(text)(changed) if isinstance(text, dict) else changed


EXTRA = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(1, 4, 6)
CHANGES = {
    "difference": lambda tokens: tokens + 0.4 * EXTRA,
    "appended": lambda tokens: torch.cat([tokens, EXTRA.expand(len(tokens), -1, -1)], 1),
    "in front": lambda tokens: torch.cat([EXTRA.expand(len(tokens), -1, -1), tokens], 1),
}


@pytest.mark.parametrize("first", [False, True], ids=["after ours", "before ours"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_texts_are_carried_over_to_those_that_loras_read(host, change, first):
    changing(host, change, first)
    p, latents = host.generate(f"a cat {TEXT_TAGS}", ON, batch_size=2)
    right = OtherText(host, [A, TEXT, B], one("a cat") * 2)
    right.change = change
    assert_close(latents, right.latents())
    assert NOTE not in p.extra_generation_params


def test_a_change_that_cannot_be_carried_over_is_told_by_name(host):
    changing(host, lambda tokens: 2 * tokens[:, 1:], first=False)
    p, _ = host.generate(f"a cat {TEXT_TAGS}", ON)
    assert "the extension 'sd-webui-cads' changes the text" in p.extra_generation_params[NOTE]
    p, _ = host.generate(f"a cat {TAGS}", ON)
    assert NOTE not in p.extra_generation_params


def test_conditions_put_in_place_of_the_hosts_are_carried_over(a1111):
    """As by an extension that has changed what the WebUI keeps for the request."""

    def replaced(p):
        extra = SimpleNamespace(shape=p.c.shape, batch=[[_moved(part) for part in parts] for parts in p.c.batch])
        sample = p.sampler.sample
        p.sampler.sample = lambda p, x, cond, *args, **fields: sample(p, x, extra, *args, **fields)

    def _moved(part):
        schedules = [entry._replace(cond=entry.cond + 0.3) for entry in part.schedules]
        return SimpleNamespace(schedules=schedules, weight=part.weight)

    _, latents = a1111.generate(f"a cat {TEXT_TAGS}", ON, before=[replaced])
    right = OtherText(a1111, [A, TEXT, B], one("a cat"))
    right.change = lambda tokens: tokens + 0.3
    assert_close(latents, right.latents())


def test_what_changes_the_text_encoder_changes_all_texts_and_none_afterwards(host):
    """As Cutoff does, which has the host encode the prompts anew."""
    encoder = getattr(host.shared.sd_model, "cond_stage_model", None)
    encoder = host.shared.sd_model.forge_objects.clip.cond_stage_model if encoder is None else encoder
    cached = host.processing.Processing.cached_c
    pictures = [host.generate(f"a cat {TEXT_TAGS}", ON)[1]]
    handle = encoder.register_forward_hook(lambda module, inputs, output: output * 0.5)
    cached[:] = [None, None]
    pictures.append(host.generate(f"a cat {TEXT_TAGS}", ON)[1])
    halved = by_equations(host, [A, TEXT, B], one("a cat"))
    handle.remove()
    cached[:] = [None, None]
    pictures.append(host.generate(f"a cat {TEXT_TAGS}", ON)[1])
    plain = by_equations(host, [A, TEXT, B], one("a cat"))
    assert differs(halved, plain)
    for latents, right in zip(pictures, (plain, halved, plain)):
        assert_close(latents, right)
