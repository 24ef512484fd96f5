"""The guider for Modular Diffusers, against single adapters in float64."""

import copy
from itertools import pairwise

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import numpy as np
import single_adapters
import tiny_pipelines as tiny
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3T2ICoreDenoiseStep,
)

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.guidance import LoRAtorioGuidance
from lib_loratorio.settings import Settings

ADAPTERS = {"one": 0.8, "two": 0.6, "three": -0.7}
STEPS, SCALE = 3, 4.0


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """SD 3's smallest modular pipeline, which denoises; its LoRAs are loaded, and the first of them is active."""
    whole = tiny.sd3()
    pipe = StableDiffusion3T2ICoreDenoiseStep().init_pipeline()
    pipe.update_components(transformer=whole.transformer, scheduler=whole.scheduler)
    for seed, name in enumerate(ADAPTERS):
        path = tmp_path_factory.mktemp("loras") / f"{name}.safetensors"
        tiny.write_lora(whole, path, seed, (*tiny.DIT_ATTENTION, "x_embedder"), layout="diffusers")
        whole.load_lora_weights(str(path), adapter_name=name)  # into the transformer that both have
    whole.transformer.set_adapters(["one"], [0.3])
    return pipe


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(2, *shape, generator=generator)

    width = tiny.WIDTH + tiny.WIDTH_2
    return {
        "prompt_embeds": random(8, 48),
        "negative_prompt_embeds": random(8, 48),
        "pooled_prompt_embeds": random(width),
        "negative_pooled_prompt_embeds": random(width),
    }


def sampled(pipe, texts, guider):
    """The latents, and those of each call of the transformer."""
    pipe.update_components(guider=guider)
    asked = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append((kwargs["hidden_states"], kwargs["timestep"])), with_kwargs=True
    )
    try:
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        size = {"height": tiny.SIZE, "width": tiny.SIZE}
        return pipe(**texts, **size, latents=noise, num_inference_steps=STEPS, output="latents"), asked
    finally:
        hook.remove()


def predictions(transformer, texts, latents, timestep):
    """`[1 + N, (cond, uncond), B, C, H, W]`: the base's, then each LoRA's alone, by diffusers' own switches."""
    found = []
    for name, strength in [(None, 0), *ADAPTERS.items()]:
        if name is None:
            transformer.disable_lora()
        else:
            transformer.enable_lora()
            transformer.set_adapters([name], [strength])
        pair = []
        for beginning in ("", "negative_"):
            with torch.no_grad():
                pair.append(
                    transformer(
                        hidden_states=latents.double(),
                        timestep=timestep.double(),
                        encoder_hidden_states=texts[f"{beginning}prompt_embeds"].double(),
                        pooled_projections=texts[f"{beginning}pooled_prompt_embeds"].double(),
                        return_dict=False,
                    )[0]
                )
        found.append(torch.stack(pair))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("lam, evaluations", [(0.0, 4 + 3), (0.3, 4 + 4), (1.0, 4 + 1)])
def test_guided_steps_are_those_of_single_adapters(pipe, texts, lam, evaluations):
    guider = LoRAtorioGuidance(ADAPTERS, SCALE, temperature=0.05, patch_size=2, lam=lam)
    latents, asked = sampled(pipe, texts, guider)
    assert len(asked) == STEPS * evaluations
    transformer = copy.deepcopy(pipe.transformer).to(torch.float64)
    steps = [*asked[::evaluations], (latents, None)]
    sigmas = pipe.scheduler.sigmas.double().numpy()
    for number, ((before, timestep), (after, _)) in enumerate(pairwise(steps)):
        models = predictions(transformer, texts, before, timestep)
        cond, uncond = models[:, 0], models[:, 1]
        weights = single_adapters.weights_of(cond, Settings(temperature=0.05, patch_size=2))
        composed = (weights * cond[1:]).sum(0)
        negative = lam * uncond[0] + (1 - lam) * (weights * uncond[1:]).sum(0)
        guided = negative + SCALE * (composed - negative)
        expected = before.double().numpy() + (sigmas[number + 1] - sigmas[number]) * guided
        assert np.abs(after.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
        assert min(np.abs(one - cond[0]).max() for one in cond[1:]) > 0.01 * np.abs(cond[0]).max()


def test_the_adapters_are_afterwards_as_they_were(pipe, texts):
    ordinary, _ = sampled(pipe, texts, ClassifierFreeGuidance(SCALE))
    composed, _ = sampled(pipe, texts, LoRAtorioGuidance(ADAPTERS, SCALE))
    assert not torch.allclose(composed, ordinary, atol=0.01)
    assert torch.equal(sampled(pipe, texts, ClassifierFreeGuidance(SCALE))[0], ordinary)


def test_steps_without_guidance_are_composed(pipe, texts):
    _, asked = sampled(pipe, texts, LoRAtorioGuidance(ADAPTERS, SCALE, lam=0, stop=0.5))
    assert len(asked) == 7 + 4 + 4


def test_it_is_saved_and_copied_with_its_settings(tmp_path):
    guider = LoRAtorioGuidance({"a": 0.8}, 3.0, temperature=0.2)
    guider.save_pretrained(tmp_path)
    for found in (LoRAtorioGuidance.from_pretrained(tmp_path), guider.new()):
        assert found.adapters == [("a", 0.8)] and found.guidance_scale == 3.0 and found.settings.temperature == 0.2


def test_one_lora_is_guided_without_the_bases_conditional_prediction():
    guider = LoRAtorioGuidance({"one": 1}, guidance_scale=3.0, lam=1.0)
    assert guider.num_conditions == 2
    cond, uncond = torch.randn(2, 1, 4, 8, 8)
    output = guider.forward(pred_cond_1=cond, pred_uncond_0=uncond)
    torch.testing.assert_close(output.pred, uncond + 3 * (cond - uncond))


def test_what_is_refused(pipe, texts):
    for adapters in ({}, ["one"]):
        with pytest.raises(LoratorioError, match="a dict of adapters' names and strengths"):
            LoRAtorioGuidance(adapters)
    with pytest.raises(LoratorioError, match="the strength of one is 'much'"):
        LoRAtorioGuidance({"one": "much"})
    with pytest.raises(LoratorioError, match="temperature is 0"):
        LoRAtorioGuidance({"one": 1}, temperature=0)
    with pytest.raises(LoratorioError, match="has no LoRA four, it has one, three, two; load it"):
        sampled(pipe, texts, LoRAtorioGuidance({"four": 1}))
    guider = LoRAtorioGuidance({"one": 1}, guidance_scale=1.0)
    with pytest.raises(LoratorioError, match=r"predicts 3 dimensions, not \[B, C, H, W\]"):
        guider.forward(pred_cond_0=torch.ones(1, 4, 4), pred_cond_1=torch.ones(1, 4, 4))
