"""Weight maps: panels behind the pictures, and the LoRAs' shares in the answer's info."""

import json

import pytest
from PIL import Image
from webui_server import CLOSE, VISIBLE, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"


@pytest.mark.parametrize("batch", [{"batch_size": 2}, {"n_iter": 2}])
def test_panels_follow_the_pictures(webui, batch):
    without = webui.generate(PAIR, {}, do_not_save_grid=True, **batch)
    shown = webui.generate(PAIR, {"maps": True}, do_not_save_grid=True, **batch)
    pictures = len(without.images)
    assert len(shown.images) == pictures + 2
    assert all((one == other).all() for one, other in zip(without.images, shown.images))
    panels = shown.images[-2:]
    assert all(panel.shape[1] > 4 * shown.images[0].shape[1] for panel in panels)
    assert (panels[0] != panels[1]).any()
    shares = json.loads(shown.params["LoRAtorio shares"])
    assert len(shares) == 2
    for share in shares:
        assert set(share["mean"]) == {"e2e_lora", "e2e_locon"} and sum(share["mean"].values()) == pytest.approx(1)
        assert len(share["by_call"]) == 4


def test_shares_follow_the_temperature(webui):
    def spread(temperature):
        (share,) = json.loads(
            webui.generate(PAIR, {"maps": True, "temperature": temperature}).params["LoRAtorio shares"]
        )
        return abs(share["mean"]["e2e_lora"] - 0.5)

    assert spread(1e9) < 1e-3 < spread(0.01)


def test_maps_of_hires_fix(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
    shown = webui.generate(PAIR, {"maps": True}, **hires)
    assert len(shown.images) == 2
    assert (
        difference(webui.generate(PAIR, {}, **hires), type(shown)(shown.images[:1], shown.infotext, shown.params)) == 0
    )


def test_maps_of_inpainting_only_masked_are_of_the_part_that_was_made(webui):
    whole = Image.radial_gradient("L").resize((128, 128)).convert("RGB")
    mask = Image.new("L", whole.size)
    mask.paste(255, (64, 64, 128, 128))
    shown = webui.generate(
        PAIR,
        {"maps": True},
        init_images=[whole],
        mask=mask,
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=True,
        inpaint_full_res_padding=0,
        denoising_strength=0.9,
    )
    picture, panel = shown.images
    assert picture.shape == (128, 128, 3)
    made = panel[8:264, 8:264][::4, ::4]  # the first tile: 64 pixels, enlarged to 256
    assert abs(made - picture[64:, 64:]).max() <= CLOSE
    assert abs(made - picture[:64, :64]).max() > VISIBLE
