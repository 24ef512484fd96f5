"""Pipelines of every kind against single adapters in float64, and what cannot be composed."""

from types import SimpleNamespace

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import diffusers
import pipelines
import single_adapters
import tiny_pipelines as tiny
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.hosts.diffusers.loader import loaded
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

CASES = pipelines.CASES


@pytest.mark.parametrize("name", CASES)
def test_composed_calls_are_those_of_single_adapters(name, tmp_path):
    case = CASES[name]
    pipe = case.make()
    loras, settings = pipelines.write_loras(pipe, tmp_path), Settings(patch_size=2, temperature=0.05, lam=0.3)
    before = pipelines.called(pipe, case)
    error, composition, apart, calls = single_adapters.largest_error(
        pipe,
        loras,
        settings,
        lambda pipe: pipelines.called(pipe, case),
        pipelines.PROMPTS,
        pipelines.NEGATIVES,
        case.guided,
    )
    assert error < 1e-4 < 0.01 < apart
    assert calls == case.calls and composition.evaluations == 3 * 2 * case.rows and composition.calls == 3
    assert torch.equal(pipelines.called(pipe, case), before)


# Rows that are divided in other ways


@pytest.fixture(scope="module")
def sd():
    return tiny.sd()


@pytest.fixture(scope="module")
def flux():
    return tiny.flux()


@pytest.fixture(scope="module")
def flux_loras(flux, tmp_path_factory):
    return pipelines.write_loras(flux, tmp_path_factory.mktemp("flux"))


SD, FLUX_CFG = CASES["SD 1.x"], CASES["FLUX.1 true CFG"]


def rows_and_outputs(pipe, loras, settings, call):
    composition, calls = single_adapters.record(pipe, loras, settings, call)
    return composition, [output for *_, output in calls]


def test_guidance_that_a_callback_switches_off(sd, loras):
    def switch_off(pipe, step, timestep, tensors):
        if step == 0:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-2:]
        return tensors

    watched = {"callback_on_step_end": switch_off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    composition, guided = rows_and_outputs(sd, loras, Settings(), lambda pipe: pipelines.called(pipe, SD))
    composition, outputs = rows_and_outputs(sd, loras, Settings(), lambda pipe: pipelines.called(pipe, SD, **watched))
    assert [len(output) for output in outputs] == [4, 2, 2] and composition.evaluations == 2 * (8 + 4 + 4)
    assert torch.equal(outputs[0], guided[0])


def changed_prompt(pipe, step, timestep, tensors):
    tensors["prompt_embeds"] = torch.cat([tensors["prompt_embeds"][:2], tensors["prompt_embeds"][2:].flip(0)])
    tensors["prompt_embeds"][2:] *= 1.5
    return tensors


CHANGES = {"callback_on_step_end": changed_prompt, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


def test_text_that_a_callback_changes(sd, loras):
    """Right where all LoRAs read it alike, told apart by the negative prompt; else refused."""
    composition, _ = rows_and_outputs(
        sd, loras[1:2], Settings(verify=True, lam=0), lambda pipe: pipelines.called(pipe, SD, **CHANGES)
    )
    assert 0 < composition.tally.worst < 1e-4 and composition.evaluations == 3 * 2 * 2
    with pytest.raises(LoratorioError, match="the text was changed on its way to the denoiser, as by a callback"):
        rows_and_outputs(sd, loras, Settings(), lambda pipe: pipelines.called(pipe, SD, **CHANGES))


class UnconditionalLast(StableDiffusionPipeline):
    """One of one's own, with the rows the other way round, and without any of what diffusers' classes tell."""

    do_classifier_free_guidance = property()

    def __call__(self, prompt, negative_prompt, steps, same=False):
        cond, uncond = self.encode_prompt(prompt, "cpu", 1, True, negative_prompt)
        self.scheduler.set_timesteps(steps)
        latents = torch.randn(len(prompt), 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            text, uncond_text = self.unet(
                torch.cat([latents, latents]), t, encoder_hidden_states=torch.cat([cond, uncond])
            ).sample.chunk(2)
            latents = self.scheduler.step(uncond_text + 4 * (text - uncond_text), t, latents).prev_sample
        return latents


def test_a_class_of_ones_own_with_the_rows_in_its_own_order(sd, loras):
    parts = {**sd.components, "safety_checker": None, "feature_extractor": None, "image_encoder": None}
    own = UnconditionalLast(**parts, requires_safety_checker=False)

    def usual(pipe):
        return pipelines.called(pipe, SD, latents=torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))

    with torch.no_grad():
        with composed(sd, loras, temperature=0.02) as composition:
            expected = usual(sd)
        with composed(own, loras, temperature=0.02) as of_own:
            found = own(pipelines.PROMPTS, pipelines.NEGATIVES, 3)
            assert of_own.evaluations == composition.evaluations == 48
            with pytest.raises(LoratorioError, match="cannot be told, as prompt and negative prompt are the same text"):
                own(["a cat"], ["a cat"], 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_that_is_the_prompt(sd, loras):
    """Told by diffusers' own order: the weighted rows are the second half."""
    same = {"negative_prompt": pipelines.PROMPTS}
    composition, calls = single_adapters.record(
        sd, loras, Settings(lam=1), lambda pipe: pipelines.called(pipe, SD, **same)
    )
    assert composition.evaluations == 3 * 2 * 5
    with torch.no_grad():
        (args, kwargs, output), *_ = calls
        base = sd.unet(*args, **{**kwargs, "return_dict": False})[0]
    torch.testing.assert_close(output[:2], base[:2], rtol=1e-5, atol=1e-5)
    assert (output[2:] - base[2:]).abs().max() > 0.01


def test_several_pictures_for_a_prompt(sd, loras):
    """The same as the prompt given so many times."""
    two = dict(prompt=["a red cat"], negative_prompt=["blurry"], num_images_per_prompt=2)
    twice = dict(prompt=["a red cat"] * 2, negative_prompt=["blurry"] * 2)
    found = [
        rows_and_outputs(sd, loras, Settings(), lambda pipe, kwargs=kwargs: pipelines.called(pipe, SD, **kwargs))[1]
        for kwargs in (two, twice)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "settings", [{"guidance_every": 2}, {"start": 0.5}, {"method": "composite"}, {"lam": 1.0}, {"refresh_every": 2}]
)
def test_a_negative_prompt_in_calls_of_its_own(flux, flux_loras, settings):
    """FLUX.1 with true CFG, against the engine's own merge and against what each setting says of the rows."""
    rows = {
        "guidance_every": 8 + 5 + 8,
        "start": 2 + 8,
        "method": 3 * 6,
        "lam": 3 * 5,
        "refresh_every": 9 + 2 + 9,
    }[next(iter(settings))]
    rows += 2 if "start" in settings else 0
    composition, calls = single_adapters.record(
        flux, flux_loras, Settings(**settings, verify=True), lambda pipe: pipelines.called(pipe, FLUX_CFG)
    )
    assert composition.evaluations == 2 * rows and 0 < composition.tally.worst < 1e-4
    assert composition.calls == 3 and len(calls) == 6
    if "guidance_every" in settings:
        with torch.no_grad():
            (_, first, every), (_, second, reused) = calls[1], calls[3]
            bases = [flux.transformer(**{**kwargs, "return_dict": False})[0] for kwargs in (first, second)]
        expected = bases[1] + every - bases[0]
        assert (reused - expected).abs().max() < 1e-4 * expected.abs().max() < (every - bases[0]).abs().max()
    shares = composition.maps.shares_by_call
    assert len(shares) == (0 if settings.get("method") else composition.tally.calls)


def test_trigger_words_are_in_no_negative_prompt(flux, flux_loras, monkeypatch):
    read = []
    encode = flux.encode_prompt
    monkeypatch.setattr("lib_loratorio.hosts.diffusers.sampling.trigger_words", lambda path: "big")
    monkeypatch.setattr(flux, "encode_prompt", lambda **kwargs: read.append(kwargs["prompt"]) or encode(**kwargs))
    with composed(flux, flux_loras[:1], trigger_words=True):
        pipelines.called(flux, FLUX_CFG)
    prompts, negatives = pipelines.PROMPTS, pipelines.NEGATIVES
    assert read == [prompts, [f"{prompt}, big" for prompt in prompts], negatives, negatives]


# What is refused


def refused(pipe, loras, match, call=lambda pipe: None, **settings):
    with pytest.raises(LoratorioError, match=match), composed(pipe, loras, **settings):
        call(pipe)


def test_pipelines_that_share_the_denoiser_are_told_to_have_a_block_of_their_own(sd, loras):
    other = pipelines.of("StableDiffusionImg2ImgPipeline", lambda: sd)()

    def call(pipe):
        pipelines.called(pipe, SD)
        pipelines.called(other, CASES["SD img2img"])

    refused(sd, loras, "called by a StableDiffusionImg2ImgPipeline other than the pipeline that is composed", call)
    refused(
        sd,
        loras,
        "called by something other than the pipeline",
        lambda pipe: pipe.unet(torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 77, 16)),
    )


def test_more_rows_than_can_be_paired(sd, loras):
    """As InstructPix2Pix has them, whose class diffusers has left without `encode_prompt`."""
    pipe = pipelines.of("StableDiffusionInstructPix2PixPipeline", lambda: sd)()
    refused(pipe, loras, "InstructPix2PixPipeline is not supported: it has no encode_prompt")

    def call(pipe):
        cond, uncond = pipe.encode_prompt(["a cat"], "cpu", 1, True, ["blurry"])
        pipe.unet(torch.zeros(3, 4, 8, 8), 1, torch.cat([cond, uncond, uncond]))

    refused(sd, loras, "1 conditional and 2 unconditional rows at once, which cannot be paired", call)

    def negative_first(pipe):
        _, uncond = pipe.encode_prompt(["a cat"], "cpu", 1, True, ["blurry"])
        pipe.unet(torch.zeros(1, 4, 8, 8), 1, uncond)

    refused(sd, loras, "asks for the negative prompt's rows before the prompt's", negative_first)

    def row_too_few(pipe):
        cond, uncond = pipe.encode_prompt(["a cat"] * 3, "cpu", 1, True, ["blurry"] * 3)
        added = (torch.zeros(2, 32, 8, 8),)
        pipe.unet(torch.zeros(6, 4, 8, 8), 1, torch.cat([uncond, cond]), down_block_additional_residuals=added)

    refused(sd, loras, "argument down_block_additional_residuals has 2 rows in a call of 6", row_too_few)


def test_what_is_refused_by_name(sd, flux, loras, flux_loras, tmp_path):
    pag = pipelines.of("StableDiffusionPAGPipeline", lambda: sd)()
    refused(pag, loras, "StableDiffusionPAGPipeline is not supported: its perturbed rows")
    sd3 = tiny.sd3()
    own = pipelines.write_loras(sd3, tmp_path)
    skipping = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -1, "skip_layer_guidance_stop": 2}
    refused(sd3, own, "skip_guidance_layers", lambda pipe: pipelines.called(pipe, CASES["SD 3"], **skipping))
    sd3.scheduler = sd.scheduler
    refused(sd3, own, "DDIMScheduler is not of flow matching, as this model needs; use FlowMatchEuler")
    kontext = diffusers.FluxKontextPipeline(**flux.components)
    asked = {"image": pipelines.picture(), "max_area": 64 * 64, "_auto_resize": False, "num_inference_steps": 1}
    asked |= {"prompt": "a cat", "height": 64, "width": 64, "max_sequence_length": 16}
    refused(kontext, flux_loras, "more than the picture's own tokens", lambda pipe: pipe(**asked))
    refused(SimpleNamespace(unet=torch.nn.Linear(1, 1)), loras, "a Linear is not supported as a denoiser; supported")
    refused(SimpleNamespace(vae=1), loras, "SimpleNamespace is not supported: it has no unet and no transformer")
    refused(SimpleNamespace(unet=sd.unet, transformer=flux.transformer), loras, "it has both a unet and a transformer")
    refused(SimpleNamespace(unet=sd.unet), loras, "has no load_lora_weights, so it cannot load LoRAs")


def test_a_denoiser_that_keeps_parts_of_earlier_calls(flux, flux_loras):
    flux.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))
    try:
        refused(flux, flux_loras, "call its disable_cache\\(\\) first")
    finally:
        flux.transformer.disable_cache()


def test_loras_that_are_changed_within_the_block(sd, loras):
    def call(pipe):
        pipe.enable_lora()
        pipelines.called(pipe, SD)

    before = pipelines.called(sd, SD)
    refused(sd, loras, "the pipeline's LoRAs were changed within the block", call)
    assert torch.equal(pipelines.called(sd, SD), before)


def test_schedulers_and_dtypes_that_are_changed_within_the_block(loras):
    pipe = tiny.sd()
    with composed(pipe, loras, verify=True) as composition:
        pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
        pipelines.called(pipe, SD)
        assert composition.calls == 5 and composition.tally.worst < 1e-4
        pipe.scheduler = diffusers.EDMEulerScheduler()
        with pytest.raises(LoratorioError, match="EDMEulerScheduler has no alphas_cumprod"):
            pipelines.called(pipe, SD)
        pipe.scheduler = CASES["SD 1.x"].make().scheduler
        pipe.to(torch.bfloat16)
        pipelines.called(pipe, SD)
        assert composition.tally.worst < 0.1
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.bfloat16}


# Compiled denoisers


def never(graph, inputs):
    raise AssertionError("this was compiled")


def test_compiled_denoisers_are_used_uncompiled(sd, loras, caplog):
    with composed(sd, loras) as composition:
        expected = pipelines.called(sd, SD)
    plain, compiled = sd.unet, torch.compile(sd.unet, backend=never)
    sd.unet = compiled
    try:
        with composed(sd, loras, verify=True) as composition:
            assert torch.equal(pipelines.called(sd, SD), expected) and composition.tally.worst < 1e-4
        assert sd.unet is compiled
    finally:
        sd.unet = plain
    assert caplog.messages == ["LoRAtorio: the compiled denoiser is used uncompiled within the block."]


def test_regions_that_are_compiled_are_used_uncompiled(flux, flux_loras, caplog):
    case = CASES["FLUX.1-dev"]
    with composed(flux, flux_loras) as composition:
        expected = pipelines.called(flux, case)
    flux.transformer.compile_repeated_blocks(backend=never)
    blocks = [module for module in flux.transformer.modules() if module._compiled_call_impl is not None]
    calls = [block._compiled_call_impl for block in blocks]
    try:
        with composed(flux, flux_loras, verify=True) as composition:
            assert torch.equal(pipelines.called(flux, case), expected) and composition.tally.worst < 1e-4
        assert len(blocks) == 4 and [block._compiled_call_impl for block in blocks] == calls
    finally:
        for block in blocks:
            block._compiled_call_impl = None
    assert "used uncompiled within the block" in caplog.text


# FLUX.1's files


def flux_file(names):
    """Of layers by the model's own names and, for kohya, a text encoder's: their factors."""
    generator = torch.Generator().manual_seed(5)

    def factors(outputs, inputs):
        return torch.randn(4, inputs, generator=generator), torch.randn(outputs, 4, generator=generator)

    return {name: factors(*shape) for name, shape in names.items()}


OF_FLUX = {
    "double_blocks.1.img_attn.qkv": (96, 32),
    "double_blocks.0.txt_mlp.0": (128, 32),
    "single_blocks.1.linear2": (32, 160),
}
IN_DIFFUSERS = {
    "transformer_blocks.1.attn.to_q": ("double_blocks.1.img_attn.qkv", slice(0, 32)),
    "transformer_blocks.1.attn.to_k": ("double_blocks.1.img_attn.qkv", slice(32, 64)),
    "transformer_blocks.1.attn.to_v": ("double_blocks.1.img_attn.qkv", slice(64, 96)),
    "transformer_blocks.0.ff_context.net.0.proj": ("double_blocks.0.txt_mlp.0", slice(None)),
    "single_transformer_blocks.1.proj_out": ("single_blocks.1.linear2", slice(None)),
}


def kohya(factors):
    state = {}
    for name, (down, up) in factors.items():
        name = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    return state, 0.5


def comfyui(factors):
    state = {}
    for name, (down, up) in factors.items():
        state |= {
            f"diffusion_model.{name}.lora_A.weight": down,
            f"diffusion_model.{name}.lora_B.weight": up,
        }
    return state, 1.0


@pytest.mark.parametrize("layout", [kohya, comfyui])
def test_files_in_fluxs_own_names(flux, tmp_path, layout):
    factors = flux_file(OF_FLUX)
    state, scale = layout(factors)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "flux.safetensors")
    with loaded(flux, tmp_path / "flux.safetensors") as (adapter,):
        assert adapter.changes_denoiser and not adapter.changes_text
        layers = {name: one for name, one in flux.transformer.named_modules() if isinstance(one, LoraLayer)}
        assert layers.keys() == IN_DIFFUSERS.keys()
        for name, (own, rows) in IN_DIFFUSERS.items():
            down, up = factors[own]
            torch.testing.assert_close(layers[name].get_delta_weight(adapter.source.name), scale * (up @ down)[rows])


def test_block_weights_of_flux(flux, flux_loras):
    """61 numbers: text encoder, then of the transformer its inputs, double blocks, single blocks and output."""
    numbers = ["1", "1", "0", *(["0", "0.5"] + ["1"] * 17), *(["0", "0.25"] + ["1"] * 36), "1"]
    path, _ = flux_loras[1]
    tag = LoraTag.read({"lbw": ",".join(numbers)}, "more")
    factors = {"transformer_blocks.1.": 0.5, "single_transformer_blocks.1.": 0.25}
    with loaded(flux, path) as (plain,):
        whole = {
            name: one.get_delta_weight(plain.source.name)
            for name, one in flux.transformer.named_modules()
            if isinstance(one, LoraLayer)
        }
    with loaded(flux, Lora(path, tag=tag)) as (adapter,):
        found = {name: one for name, one in flux.transformer.named_modules() if isinstance(one, LoraLayer)}
        assert found.keys() == {name for name in whole if name.startswith(tuple(factors))} and "x_embedder" in whole
        for name, layer in found.items():
            factor = next(factor for begin, factor in factors.items() if name.startswith(begin))
            torch.testing.assert_close(layer.get_delta_weight(adapter.source.name), factor * whole[name])
    with pytest.raises(LoratorioError, match="lbw=OUTALL, 17 numbers; this model needs 61"):
        with loaded(flux, Lora(path, tag=LoraTag.read({"lbw": "OUTALL"}, "more"))):
            pass
