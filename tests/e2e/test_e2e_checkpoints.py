"""Other models, where the WebUI has them: v-prediction, inpainting, SDXL, and a refiner."""

import lora_files
import pytest
from test_e2e_composition import PAIR, gradient, square_mask
from webui_server import NOTE, assert_identical, check_composed, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

MISFIT = "cannot merge"
"""What a note tells of an input layer of 4 channels, which some WebUIs do not merge into an inpainting model."""


@pytest.fixture
def checkpoint(webui, request):
    """Switches to the checkpoint of the test's parameter, and back afterwards."""
    model = webui.checkpoint_named(request.param)
    if model is None:
        pytest.skip(f"the WebUI has no checkpoint {request.param}")
    with webui.using_checkpoint(model["title"]):
        yield model


@pytest.mark.parametrize("checkpoint", ["tiny-v"], indirect=True)
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "DDIM", "UniPC"])
def test_v_prediction(webui, checkpoint, sampler):
    check_composed(webui, f"a cat {lora('lora', 0.8)} {lora('te', 0.6)}", sampler_name=sampler)


@pytest.mark.parametrize("checkpoint", ["tiny-inpainting"], indirect=True)
@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
@pytest.mark.parametrize("kind", ["te", "locon", "full"])
def test_inpainting_model(webui, checkpoint, sampler, kind):
    if not webui.generates(f"a cat {lora(kind, 0.6)}"):
        pytest.skip(f"the WebUI itself fails with {kind}, which changes an input layer of 4 channels")
    check_composed(
        webui,
        f"a cat {lora('lora', 0.8)} {lora(kind, 0.6)}",
        calls={"Euler a": 4, "DDIM": 2}[sampler],
        init_images=[gradient()],
        mask=square_mask(),
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=False,
        denoising_strength=0.8,
        sampler_name=sampler,
        left_out=MISFIT,
    )


@pytest.mark.parametrize("checkpoint", ["tiny-inpainting"], indirect=True)
def test_inpainting_model_without_a_mask(webui, checkpoint):
    check_composed(webui, f"a cat {lora('lora', 0.8)} {lora('full', 0.6)}", calls=4, batch_size=2, left_out=MISFIT)


@pytest.fixture
def sdxl_loras(webui, checkpoint, lora_dir):
    lora_files.write_all(checkpoint["filename"], lora_dir / "xl", prefix="e2e_xl_")
    webui.refresh_loras()


@pytest.mark.parametrize("checkpoint", ["tiny-sdxl"], indirect=True)
@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_sdxl(webui, checkpoint, sdxl_loras, sampler):
    prompt = f"a cat {lora('xl_lora', 0.8)} {lora('xl_locon', 0.6)} {lora('xl_loha', 0.6)}"
    check_composed(webui, prompt, sampler_name=sampler, batch_size=2)


@pytest.mark.parametrize("checkpoint", ["tiny-sdxl"], indirect=True)
@pytest.mark.parametrize("negative_prompt", ["dark", " ".join(["dark dog"] * 75)], ids=["short", "long"])
def test_sdxl_text_encoders(webui, checkpoint, sdxl_loras, negative_prompt):
    prompt = f"a cat {lora('xl_lora', 0.8)} {lora('xl_te', 0.6)} AND a dog {lora('xl_te_only', 0.9)} :0.5"
    check_composed(webui, prompt, calls=4, negative_prompt=negative_prompt)


def test_refiner(webui):
    refiner = webui.checkpoint_named("tiny-v")
    if refiner is None:
        pytest.skip("the WebUI has no checkpoint tiny-v")
    before = webui.generate(PAIR)
    made = webui.generate(PAIR, {"verify": True}, refiner_checkpoint=refiner["title"], refiner_switch_at=0.5)
    error, calls = made.verification
    assert error < 1e-4
    assert calls == 4 or "refiner" in made.params[NOTE].lower()
    assert_identical(webui.generate(PAIR), before)
