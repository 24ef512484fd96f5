"""Composed predictions of the diffusers host against a loop over single adapters by diffusers' own `set_adapters`."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import diffusers
import numpy as np
import tiny_pipelines as tiny
import torch
import torch.nn.functional as F
from single_adapters import each_alone

from lib_loratorio.engine.methods import SWITCH_EVERY, Switch
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.hosts.diffusers.noise import noise_space, signal_and_noise
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

PROMPTS = ["a red cat", "two blue dogs"]
STRENGTHS = 0.8, 0.6, -0.7


@pytest.fixture(scope="module")
def pipes():
    return {
        "epsilon": tiny.sd(),
        "v_prediction": tiny.sd("v_prediction"),
        "sample": tiny.sd("sample"),
        "sdxl": tiny.sdxl(),
    }


@pytest.fixture(autouse=True)
def schedulers_put_back(pipes):
    before = {name: pipe.scheduler for name, pipe in pipes.items()}
    yield
    for name, pipe in pipes.items():
        pipe.scheduler = before[name]


@pytest.fixture(scope="module")
def files(pipes, tmp_path_factory):
    """Per kind of model three LoRAs: with text encoders, with convolutions, and in diffusers' layout."""
    found = {}
    for kind, pipe in (("sd", pipes["epsilon"]), ("sdxl", pipes["sdxl"])):
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = [
            tiny.write_lora(pipe, folder / "with.text.safetensors", 1, text=tiny.TEXT),
            tiny.write_lora(pipe, folder / "conv.safetensors", 2, unet=(*tiny.ATTENTION, *tiny.CONVOLUTIONS)),
            tiny.write_lora(pipe, folder / "other" / "conv.safetensors", 3, text=tiny.TEXT, layout="diffusers"),
        ]
    return found


def kind_of(name):
    return "sdxl" if name == "sdxl" else "sd"


def loras(files, name, count=3):
    return list(zip(files[kind_of(name)][:count], STRENGTHS))


def picture(pipe, prompts=PROMPTS, steps=3, cfg=4.0, output_type="np", **kwargs):
    generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    return pipe(
        prompt=prompts,
        negative_prompt=["blurry"] * len(prompts),
        height=tiny.SIZE,
        width=tiny.SIZE,
        num_inference_steps=steps,
        guidance_scale=cfg,
        generator=generators,
        output_type=output_type,
        **kwargs,
    ).images


class Recorded:
    """The calls that a pipeline makes of its UNet: sample, timestep, prediction."""

    def __init__(self, pipe):
        self.calls = []
        self.hook = pipe.unet.register_forward_hook(
            lambda module, args, kwargs, out: self.calls.append((args, kwargs, out[0])), with_kwargs=True
        )


def record(pipe, loras, settings, **kwargs):
    with composed(pipe, loras, settings) as composition:
        recorded = Recorded(pipe)
        try:
            picture(pipe, output_type="latent", **kwargs)
        finally:
            recorded.hook.remove()
    return composition, recorded.calls


def single_predictions(pipe, loras, calls, prompts, cfg):
    """`[calls][models][rows, C, H, W]`: diffusers' own predictions, the base first, then each LoRA alone, with its own
    text.
    """
    found = []
    with torch.no_grad():
        for _ in each_alone(pipe, loras):
            found.append(predictions_as_it_is(pipe, calls, prompts, cfg))
    pipe.unload_lora_weights()
    return [torch.stack(models) for models in zip(*found)]


def merged_predictions(pipe, loras, calls, prompts, cfg):
    """`[calls][rows, C, H, W]`: diffusers' own predictions with all LoRAs merged, and its text as read with them."""
    with torch.no_grad(), composed(pipe, loras, Settings(method="merge")):
        return predictions_as_it_is(pipe, calls, prompts, cfg)


def predictions_as_it_is(pipe, calls, prompts, cfg):
    """`[calls][rows, C, H, W]` of the pipeline with the LoRAs that are set in it."""
    text = pipe.encode_prompt(
        prompt=prompts,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=cfg > 1,
        negative_prompt=["blurry"] * len(prompts),
    )
    states = torch.cat([text[1], text[0]]) if cfg > 1 else text[0]
    found = []
    for args, kwargs, _ in calls:
        kwargs = {**kwargs, "encoder_hidden_states": states}
        if len(text) == 4:
            pooled = torch.cat([text[3], text[2]]) if cfg > 1 else text[2]
            kwargs["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": pooled}
        found.append(pipe.unet(*args, **kwargs)[0])
    return found


def reference(pipe, predictions, x, timestep, settings, guided):
    """The method written out for patches that divide the picture: predictions `[1 + N, rows, C, H, W]` -> rows as
    diffusers has them.
    """
    d = settings.patch_size
    uncond, cond = predictions.chunk(2, 1) if guided else (None, predictions)
    x = x.chunk(2)[1] if guided else x
    squared = pipe.scheduler.alphas_cumprod[int(timestep)]
    alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
    noise = {"epsilon": cond, "v_prediction": alpha * cond + sigma * x, "sample": (x - alpha * cond) / sigma}[
        pipe.scheduler.config.prediction_type
    ]
    models, rows, _, height, width = noise.shape
    patches = F.unfold(noise.flatten(0, 1), d, stride=d).unflatten(0, (models, rows))
    similarity = F.cosine_similarity(patches[1:], patches[:1], dim=2)
    if settings.top_k:
        similarity = similarity.masked_fill(similarity > similarity.sort(0).values[settings.top_k - 1], torch.inf)
    weights = (-similarity / settings.temperature).softmax(0).unflatten(-1, (height // d, width // d))
    weights = weights.repeat_interleave(d, -1).repeat_interleave(d, -2).unsqueeze(2)
    composed_cond = (weights * cond[1:]).sum(0)
    if not guided:
        return composed_cond
    return torch.cat([settings.lam * uncond[0] + (1 - settings.lam) * (weights * uncond[1:]).sum(0), composed_cond])


@pytest.mark.parametrize(
    "name, settings, cfg",
    [
        ("epsilon", {}, 4.0),
        ("epsilon", {"top_k": 2, "patch_size": 1, "temperature": 0.01, "lam": 0.3}, 4.0),
        ("epsilon", {"adapters_per_pass": 1}, 1.0),
        ("v_prediction", {"temperature": 0.02}, 4.0),
        ("sample", {}, 4.0),
        ("sdxl", {}, 4.0),
        ("sdxl", {"patch_size": 4}, 1.0),
    ],
)
def test_loratorio_is_the_loop_over_single_adapters(pipes, files, name, settings, cfg):
    pipe, settings = pipes[name], Settings(**settings)
    composition, calls = record(pipe, loras(files, name), settings, cfg=cfg)
    assert len(calls) == 3 and composition.tally.calls == 3
    singles = single_predictions(pipe, loras(files, name), calls, PROMPTS, cfg)
    for (args, _, output), predictions in zip(calls, singles):
        expected = reference(pipe, predictions, args[0], args[1], settings, cfg > 1)
        assert (predictions[1:] - predictions[0]).abs().amax((1, 2, 3, 4)).min() > 0.1 * predictions[0].abs().max()
        assert (output - expected).abs().max() < 1e-4 * expected.abs().max()


def test_verify_agrees_with_diffusers(pipes, files):
    for name in ("epsilon", "sdxl"):
        composition, _ = record(pipes[name], loras(files, name), Settings(verify=True))
        assert 0 < composition.tally.worst < 1e-4


def test_evaluations_are_counted(pipes, files):
    composition, _ = record(pipes["epsilon"], loras(files, "epsilon"), Settings())
    assert (composition.calls, composition.tally.rows) == (3, 3 * 2 * 4 * 2)
    composition, _ = record(pipes["epsilon"], loras(files, "epsilon"), Settings(lam=1))
    assert composition.tally.rows == 3 * 2 * (4 + 1)


def test_merged_text_is_shared(pipes, files):
    pipe = pipes["epsilon"]
    composition, calls = record(pipe, loras(files, "epsilon"), Settings(text_encoder="merged"))
    assert not composition.texts
    pipe.load_lora_weights(str(files["sd"][0].parent), weight_name=files["sd"][0].name, adapter_name="a")
    pipe.load_lora_weights(str(files["sd"][2].parent), weight_name=files["sd"][2].name, adapter_name="b")
    pipe.set_adapters(["a", "b"], [STRENGTHS[0], STRENGTHS[2]])
    with torch.no_grad():
        cond, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, True, ["blurry"] * 2)
    pipe.unload_lora_weights()
    torch.testing.assert_close(calls[0][1]["encoder_hidden_states"][2:], cond)


def diffusers_merge(pipe, loras, **kwargs):
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, (path, _) in zip(names, loras):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    if names:
        pipe.set_adapters(names, [strength for _, strength in loras])
    try:
        return picture(pipe, **kwargs)
    finally:
        pipe.unload_lora_weights()


@pytest.mark.parametrize("name", ["epsilon", "sdxl"])
def test_merge_is_diffusers_own(pipes, files, name):
    pipe, chosen = pipes[name], loras(files, name)
    expected = diffusers_merge(pipe, chosen)
    with composed(pipe, chosen, Settings(method="merge")) as composition:
        assert np.abs(picture(pipe) - expected).max() < 1 / 255
    assert composition.tally.rows == 3 * 4
    assert np.abs(picture(pipe) - expected).max() > 0.05


def test_outside_of_start_and_end_loras_are_merged(pipes, files):
    pipe, chosen = pipes["epsilon"], loras(files, "epsilon")
    _, merged = record(pipe, chosen, Settings(method="merge"), steps=4)
    composition, late = record(pipe, chosen, Settings(start=0.5), steps=4)
    assert composition.tally.calls == 2
    for call in (0, 1):
        torch.testing.assert_close(late[call][2], merged[call][2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(late[2][2], merged[2][2], atol=1e-2)
    composition, early = record(pipe, chosen, Settings(end=0.5), steps=4)
    assert composition.tally.calls == 2 and not torch.allclose(early[0][2], merged[0][2], atol=1e-2)


def test_adapters_outside_their_window_are_not_evaluated(pipes, files):
    pipe, (first, second, third) = pipes["epsilon"], loras(files, "epsilon")
    windows = LoraTag(0, 0.5), LoraTag(0.25, 0.75), LoraTag(0.25, 0.5)
    chosen = [Lora(*lora, window) for lora, window in zip((first, second, third), windows)]
    composition, calls = record(pipe, chosen, Settings(verify=True), steps=4)
    assert composition.tally.rows == 2 * (3 + 8 + 3 + 2)
    assert 0 < composition.tally.worst < 1e-4
    shares = torch.tensor(composition.maps.shares_by_call)
    assert (shares > 0).tolist() == [[True, False, False], [True, True, True], [False, True, False]]
    singles = single_predictions(pipe, [first, second, third], calls, PROMPTS, 4.0)
    for call, present in enumerate(([0, 1], [0, 1, 2, 3], [0, 2], [0])):
        (args, _, output), predictions = calls[call], singles[call][present]
        expected = (
            predictions[0] if len(present) == 1 else reference(pipe, predictions, args[0], args[1], Settings(), True)
        )
        assert (output - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_global_lora_alone_is_merged(pipes, files):
    pipe, ((path, strength), *_) = pipes["epsilon"], loras(files, "epsilon")
    _, merged = record(pipe, [(path, strength)], Settings(method="merge"))
    _, alone = record(pipe, [Lora(path, strength, LoraTag(role="global"))], Settings())
    for (_, _, expected), (_, _, found) in zip(merged, alone, strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_global_loras_are_in_every_evaluation(pipes, files):
    pipe, (first, second, third) = pipes["epsilon"], loras(files, "epsilon")
    chosen = [Lora(*first), Lora(*second, LoraTag(0, 0.5, "global")), Lora(*third)]
    composition, calls = record(pipe, chosen, Settings(verify=True), steps=4)
    assert composition.tally.rows == 4 * 2 * 2 * 3 and 0 < composition.tally.worst < 1e-4
    assert composition.labels == [first[0].stem, third[0].stem] and composition.maps.mean.shape[0] == 2
    _, without = record(pipe, [first, third], Settings(), steps=4)
    assert (calls[0][2] - without[0][2]).abs().max() > 1e-2
    assert torch.equal(calls[0][0][0], without[0][0][0])


def test_a_pool_is_scouted(pipes, files):
    pipe, (first, second, third) = pipes["epsilon"], loras(files, "epsilon")
    chosen = [Lora(*first), *(Lora(path, 0.01, pooled=True) for path, _ in (second, third))]  # too weak to win a place
    composition, _ = record(pipe, chosen, Settings(pool_mode="scout", scout=0.5, verify=True), steps=4)
    assert composition.tally.rows == 2 * (8 + 8 + 3 + 3) and 0 < composition.tally.worst < 1e-4
    assert composition.composer.planner.scout.history == [(0, (0, 1, 2)), (2, (0,))]


def pooled(*loras):
    return [Lora(*lora, pooled=True) for lora in loras]


@pytest.mark.parametrize("count", [0, 1])
def test_a_pool_is_never_merged(pipes, files, count):
    """Outside of start and end, and with the method merge: of the prompt's LoRAs alone, text encoder included, or the
    base.
    """
    pipe, chosen = pipes["epsilon"], loras(files, "epsilon")
    expected = diffusers_merge(pipe, chosen[:count], output_type="latent", steps=1)
    of_all = diffusers_merge(pipe, chosen, output_type="latent", steps=1)
    chosen = [*chosen[:count], *pooled(*chosen[count:])]
    for settings in (Settings(method="merge"), Settings(start=0.9), Settings(start=0.9, text_encoder="merged")):
        with composed(pipe, chosen, settings):
            found = picture(pipe, output_type="latent", steps=1)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (found - of_all).abs().max() > 0.01 * expected.abs().max()


def test_text_that_is_merged_is_without_the_pool(pipes, files):
    pipe, (first, second, third) = pipes["epsilon"], loras(files, "epsilon")
    _, without = record(pipe, [first], Settings(method="merge"), steps=1)
    _, pool = record(pipe, [Lora(*first), *pooled(second, third)], Settings(text_encoder="merged"), steps=1)
    torch.testing.assert_close(pool[0][1]["encoder_hidden_states"], without[0][1]["encoder_hidden_states"])


def test_prompt_embeds_serve_loras_that_share_one_reading(pipes, files):
    pipe, chosen = pipes["epsilon"], loras(files, "epsilon")
    with torch.no_grad():
        embeds = dict(
            zip(("prompt_embeds", "negative_prompt_embeds"), pipe.encode_prompt(["a cat"], "cpu", 1, True, ["blurry"]))
        )
    size = {"height": tiny.SIZE, "width": tiny.SIZE, "num_inference_steps": 1, "output_type": "latent"}

    def made(loras, settings, **prompts):
        with composed(pipe, loras, settings):
            return pipe(**prompts, **size, generator=torch.Generator().manual_seed(0)).images

    words = {"prompt": ["a cat"], "negative_prompt": ["blurry"]}
    unet_only, merged = chosen[1:2], Settings(text_encoder="merged")
    assert torch.equal(made(unet_only, Settings(), **embeds), made(unet_only, Settings(), **words))
    assert not torch.equal(made(chosen, merged, **embeds), made(chosen, merged, **words)), (
        "the embeds are the base's reading"
    )
    with pytest.raises(LoratorioError, match="give a prompt instead, or text_encoder='merged'"):
        made(chosen, Settings(), **embeds)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_cheaper_guidance_reuses_the_difference_from_the_base(pipes, files, name):
    pipe, chosen = pipes[name], loras(files, name, 2)
    composition, calls = record(pipe, chosen, Settings(guidance_every=3), steps=4)
    assert composition.tally.rows == 2 * (6 + 4 + 4 + 6)
    (first, _, output), (second, _, reused) = calls[:2]
    before, now = (single_predictions(pipe, chosen, [call], PROMPTS, 4.0)[0][0, :2] for call in calls[:2])
    units = [noise_space(pipe.scheduler, args[0][:2], torch.as_tensor(args[1])).unit for args in (first, second)]
    expected = now + (output[:2] - before) * units[0] / units[1]
    assert (reused[:2] - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_each_lora_alone_in_some_steps_only(pipes, files, name):
    """Between these it is the merged prediction that changes, from where composing had left it."""
    pipe, chosen = pipes[name], loras(files, name, 2)
    composition, calls = record(pipe, chosen, Settings(refresh_every=3, lam=1.0, verify=True), steps=4)
    assert composition.tally.rows == 2 * (5 + 2 + 2 + 5) and composition.tally.worst < 1e-4
    before, *between = merged_predictions(pipe, chosen, calls[:3], PROMPTS, 4.0)
    (first, _, refreshed), *reused = calls[:3]
    for merged, (args, _, output) in zip(between, reused, strict=True):
        units = [noise_space(pipe.scheduler, x[2:], torch.as_tensor(t)).unit for x, t in (first, args)]
        expected = merged[2:] + (refreshed[2:] - before[2:]) * units[0] / units[1]
        assert (output[2:] - expected).abs().max() < 1e-3 * expected.abs().max()
    _, every = record(pipe, chosen, Settings(refresh_every=1, lam=1.0), steps=4)
    assert torch.equal(refreshed, every[0][2]) and not torch.equal(calls[1][2], every[1][2])


def test_trigger_words_are_in_the_loras_own_prompt(pipes, files, monkeypatch):
    pipe, ((path, strength), *_) = pipes["epsilon"], loras(files, "epsilon")
    monkeypatch.setattr("lib_loratorio.hosts.diffusers.sampling.trigger_words", lambda path: "big")
    _, own = record(pipe, [(path, strength)], Settings(lam=0, trigger_words=True), prompts=["a red cat"])
    _, written = record(pipe, [(path, strength)], Settings(lam=0), prompts=["a red cat, big"])
    _, without = record(pipe, [(path, strength)], Settings(lam=0), prompts=["a red cat"])
    assert (own[0][2] - written[0][2]).abs().max() < 1e-5 < (own[0][2] - without[0][2]).abs().max()


def schedulers():
    def change(kind, **changes):
        return lambda config: kind.from_config(config, **changes)

    yield "ddim", 4, change(diffusers.DDIMScheduler)
    yield "euler", 4, change(diffusers.EulerDiscreteScheduler)
    yield "dpm++ 2m karras", 4, change(diffusers.DPMSolverMultistepScheduler, use_karras_sigmas=True)
    yield "heun", 7, change(diffusers.HeunDiscreteScheduler)
    yield "kdpm2", 7, change(diffusers.KDPM2DiscreteScheduler)
    yield "unipc", 4, change(diffusers.UniPCMultistepScheduler)
    yield "lcm", 4, change(diffusers.LCMScheduler)


@pytest.mark.parametrize("calls, make", [pytest.param(calls, make, id=name) for name, calls, make in schedulers()])
def test_schedulers(pipes, files, calls, make):
    pipe = pipes["v_prediction"]
    pipe.scheduler = make(pipe.scheduler.config)
    composition, recorded = record(pipe, loras(files, "v_prediction"), Settings(verify=True), steps=4)
    assert (composition.calls, composition.tally.calls) == (calls, calls)
    assert composition.tally.worst < 1e-4 and all(torch.isfinite(out).all() for _, _, out in recorded)


@pytest.mark.parametrize(
    "calls, make",
    [pytest.param(calls, make, id=name) for name, calls, make in schedulers() if name in ("ddim", "heun")],
)
def test_switch_takes_turns_by_steps_not_calls(pipes, files, calls, make, monkeypatch):
    pipe = pipes["epsilon"]
    pipe.scheduler = make(pipe.scheduler.config)
    per_step = pipe.scheduler.order
    turns = []
    plan = Switch.plan
    monkeypatch.setattr(
        Switch,
        "plan",
        lambda self, adapters, step: (
            turns.append(plan(self, adapters, step).conditional[0]) or plan(self, adapters, step)
        ),
    )
    with composed(pipe, loras(files, "epsilon"), Settings(method="switch")):
        picture(pipe, PROMPTS[:1], steps=2 * SWITCH_EVERY + 2, output_type="latent")
    each = SWITCH_EVERY * per_step
    assert turns == [0] * each + [1] * each + [2] * (2 * per_step - (per_step - 1))


@pytest.mark.parametrize("kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_schedulers_without_alphas_are_refused(pipes, files, kind):
    pipe = pipes["epsilon"]
    pipe.scheduler = kind()
    with pytest.raises(LoratorioError, match=f"scheduler {kind.__name__} has no alphas_cumprod"):
        with composed(pipe, loras(files, "epsilon")):
            pass


def test_weight_maps_follow_the_run(pipes, files):
    composition, _ = record(pipes["epsilon"], loras(files, "epsilon"), Settings())
    maps = composition.maps
    assert maps.mean.shape == (3, 2, 8, 8) and len(maps.shares_by_call) == 3
    torch.testing.assert_close(maps.shares().sum(0), torch.ones(2))
    assert composition.labels == ["with.text", "conv (1)", "conv (2)"]


def test_noise_level_at_fractional_timesteps():
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    scheduler.set_timesteps(7)
    for timestep, ratio in zip(scheduler.timesteps, scheduler.sigmas):
        alpha, sigma = signal_and_noise(scheduler.alphas_cumprod, timestep)
        assert sigma / alpha == pytest.approx(ratio.item(), rel=1e-3) and alpha**2 + sigma**2 == pytest.approx(1)


def test_noise_of_a_schedule_that_ends_in_pure_noise():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    x = torch.randn(1, 4, 2, 2)
    offset, scale, unit = noise_space(scheduler, x, torch.tensor(999))
    assert unit == scale
    torch.testing.assert_close(offset + scale * torch.randn(1, 4, 2, 2), x, rtol=1e-3, atol=1e-3)
