"""The WebUI's page in the system's Chromium: what its user types, presses and sees."""

import io
import re

import chromium
import numpy as np
import pytest
from PIL import Image
from webui_page import WIDE, WebUIPage
from webui_server import SCRIPT, VISIBLE, lora

from lib_loratorio.page.infotext import png_info
from lib_loratorio.presets import START
from lib_loratorio.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
SMALL = {"steps": 3, "width": 64, "height": 64, "seed": 1}
SET = {"temperature": 0.25, "patch_size": 2}


def enabled(page, prompt=PAIR, **settings):
    page.request(prompt, **SMALL)
    page.tick.check()
    page.open()
    for name, value in settings.items():
        page.set(name, value)


def reload(page):
    """The WebUI's page is built anew, with what its settings say now."""
    page.show("Settings")
    with page.page.expect_navigation(timeout=120_000):
        page.page.locator("#settings_restart_gradio").click()
    page.loaded()


def test_settings_page_and_reload(page, webui):
    name = "loratorio_default_temperature"
    page.show("Settings")
    page.page.locator("#settings button", has_text=re.compile(f"^\\s*{SCRIPT}\\s*$")).click()
    page.fill(f"#setting_{name} input[type=number]", 0.75)
    page.page.locator("#settings_submit").click()
    try:
        page.expect(page.page.locator("#settings_result").first).to_contain_text("changed")
        reload(page)
        enabled(page)
        page.check(temperature=0.75)
        page.expect(page.live).to_have_text(
            "2 LoRAs (e2e_lora 0.8, e2e_locon 0.6): 3.5 model evaluations a step (ordinary: 2)."
        )
        page.generate()
        page.expect(page.infotext).to_contain_text("temperature=0.75")
    finally:
        webui.client.set_options({name: Settings().temperature})
    reload(page)  # other tests find the page as it was
    page.expect(page.mode("balanced")).to_be_checked()


def test_from_the_prompt_to_img2img(page):
    page.expect(page.live).to_have_text("No LoRA in the prompt: the picture will be the ordinary one.")
    enabled(page, **SET)
    page.expect(page.live).to_have_text(
        "2 LoRAs (e2e_lora 0.8, e2e_locon 0.6): 3.5 model evaluations a step (ordinary: 2)."
    )
    page.control("maps").check()
    picture, panel = map(page.image, page.generate())
    assert picture.size == (64, 64)
    assert panel.width > 3 * panel.height
    page.expect(page.infotext).to_contain_text(f"{SCRIPT}: method=loratorio patch_size=2 temperature=0.25")

    page.find("#TAB_send_to_img2img").click()
    page.tab = "img2img"
    page.expect(page.find("#TAB_prompt textarea")).to_have_value(PAIR)
    page.check(**SET)
    page.expect(page.live).to_have_text(
        "2 LoRAs (e2e_lora 0.8, e2e_locon 0.6): 3.5 model evaluations a step (ordinary: 2)."
    )
    page.open()
    page.set("temperature", 0.5)
    page.request(PAIR, **SMALL)
    assert len(page.generate()) == 2
    page.expect(page.infotext).to_contain_text(f"{SCRIPT}: method=loratorio patch_size=2 temperature=0.5")
    page.show("txt2img")
    page.check(**SET)


def upload(page, picture):
    """Shows a picture in PNG Info and sends what it holds to txt2img."""
    page.show("PNG Info")
    page.page.locator("#pnginfo_image input[type=file]").first.set_input_files(
        {"name": "picture.png", "mimeType": "image/png", "buffer": picture}
    )
    page.page.locator("#tab_pnginfo .gradio-html, #tab_pnginfo .infotext").filter(has_text="Steps: ").first.wait_for()
    page.page.locator("#tab_pnginfo #txt2img_tab").click()
    page.tab = "txt2img"


def png(webui, prompt, settings=None):
    """A picture's file as the WebUI writes it."""
    buffer = io.BytesIO()
    Image.fromarray(webui.generate(prompt).image.astype("uint8")).save(
        buffer, "png", pnginfo=png_info(webui.generate(prompt, settings).infotext)
    )
    return buffer.getvalue()


def test_pasting_from_pictures(page, webui):
    upload(page, png(webui, PAIR, SET))
    page.expect(page.find("#TAB_prompt textarea")).to_have_value(PAIR)
    page.check(**SET)
    upload(page, png(webui, "a dog"))
    page.expect(page.find("#TAB_prompt textarea")).to_have_value("a dog")
    page.expect(page.tick).not_to_be_checked()


def test_the_paste_button(page):
    def paste(text):
        page.fill("#TAB_prompt textarea", text)
        page.find("#TAB_tools #paste").click()
        page.expect(page.find("#TAB_prompt textarea")).to_have_value("a cat")

    paste(
        "a cat\nSteps: 3, Seed: 1, Size: 64x64, LoRAtorio: method=loratorio patch_size=4 temperature=0.5 lam=1.0 "
        "top_k=1"
    )
    page.check(patch_size=4, temperature=0.5, lam=1, top_k=1)
    paste("a cat\nSteps: 3, Seed: 2, Size: 64x64, LoRAtorio: method=loratorio temperature=hot")
    page.expect(page.page.get_by_text("LoRAtorio: temperature is 'hot'; it must be a number").first).to_be_visible()
    page.check(patch_size=4, temperature=0.5)
    paste("a cat\nSteps: 3, Seed: 3, Size: 64x64")
    page.expect(page.tick).not_to_be_checked()


def test_presets_and_greying_in_each_tab(page):
    for page.tab in ("img2img", "txt2img"):
        page.show(page.tab)
        page.tick.check()
        page.open()
        page.expect(page.mode("balanced")).to_be_checked()
        page.set("temperature", 0.5)
        page.request(PAIR)
        page.expect(page.mode("custom")).to_be_checked()
        page.mode("fast").click()
        page.check(lam=1, refresh_every=3, temperature=Settings().temperature)
        page.expect(page.live).to_contain_text(": 3 model evaluations a step (ordinary: 2).")
        page.find("#script_TAB_loratorio_preset_reset").click()
        page.check(lam=1, refresh_every=START.refresh_every)
        page.expect(page.mode("balanced")).to_be_checked()
        page.choose("#script_TAB_loratorio_method", "composite")
        page.expect(page.control("temperature")).to_be_disabled()
        page.expect(page.control("start")).to_be_enabled()
        page.choose("#script_TAB_loratorio_method", "loratorio")
        page.expect(page.control("temperature")).to_be_enabled()


def test_grid_over_temperature(page):
    enabled(page)
    page.choose("#TAB_script_container #script_list", "X/Y/Z plot")
    page.fill(
        "#script_TAB_xyz_plot_x_values textarea", "0.01,1"
    )  # first: choosing the axis fills in again what was here
    page.choose("#script_TAB_xyz_plot_x_type", "[LoRAtorio] Temperature")
    grid, *_ = page.generate()
    grid = page.image(grid)
    assert grid.width >= 2 * 64 and grid.height > 64
    page.expect(page.infotext).to_contain_text("temperature=0.01")
    cells = [
        np.asarray(grid.convert("RGB").crop((x, grid.height - 64, x + 64, grid.height))).astype(int)
        for x in (0, grid.width - 64)
    ]
    assert abs(cells[0] - cells[1]).max() > VISIBLE


@pytest.fixture
def tiny(request, webui):
    """The project's own model in the WebUI, for pictures that show something."""
    if not request.config.getoption("--screenshots"):
        pytest.skip("needs --screenshots, a folder for pictures of the page")
    checkpoint = webui.checkpoint_named("loratorio-tiny")
    if not checkpoint:
        pytest.skip("needs the tiny model in the WebUI: python -m lab.export --webui DIR")
    with webui.using_checkpoint(checkpoint["title"]):
        yield


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshots(request, browser, webui, tiny, theme):
    url = request.config.getoption("--webui-url")
    with chromium.page(browser, url, f"/?__theme={theme}", **WIDE) as raw:
        page = WebUIPage(raw, request.config.getoption("--screenshots"))
        page.request(
            "tovik and krelt on a vundar ground <lora:tiny-mushroom:1> <lora:tiny-robot:1> <lora:tiny-bricks:1>",
            steps=20,
            width=128,
            height=128,
            cfg_scale=4,
            seed=7,
        )
        page.choose("#TAB_sampling", "DDIM")
        page.tick.check()
        page.open()
        page.control("maps").check()
        page.expect(page.live).to_contain_text(
            "3 LoRAs (tiny-mushroom 1, tiny-robot 1, tiny-bricks 1): 4 model evaluations"
        )
        _, panel = page.generate()
        page.find("#TAB_gallery .thumbnails button").nth(1).click()
        page.expect(page.find("#TAB_gallery img").first).to_have_attribute("src", panel)
        page.shoot(f"page-{theme}")
        page.shoot(f"accordion-{theme}", page.accordion)
        page.page.set_viewport_size({"width": 400, "height": 900})
        page.accordion.scroll_into_view_if_needed()
        page.shoot(f"narrow-{theme}", page.accordion)
        assert page.accordion.evaluate("element => element.scrollWidth <= element.clientWidth")
