"""The accordion in the system's Chromium, on a page of each gradio that the WebUIs have. Needs no WebUI."""

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import chromium
import pytest
from PIL import Image

from lib_loratorio.loras.mask_image import read_image
from lib_loratorio.palette import COLOURS
from lib_loratorio.presets import PRESETS, START
from lib_loratorio.settings import GROUPS, Settings

ROOT = Path(__file__).parents[2]
TABS = ("txt2img", "img2img")
NO_LORA = "No LoRA in the prompt: the picture will be the ordinary one."


@pytest.fixture(scope="module")
def browser():
    with chromium.browser() as browser:
        yield browser


@pytest.fixture(scope="module", params=["gradio3", "gradio4"])
def url(request, browser):
    python = ROOT / f".venv-{request.param}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {python.parents[1].name}, which `make test` sets up where there is a Chromium")
    environment = {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    script = Path(__file__).with_name("page.py")
    with subprocess.Popen(
        [python, script, sysconfig.get_path("purelib")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield next(line.strip() for line in server.stdout if line.startswith("http"))
        server.stdin.close()


@pytest.fixture
def closed(browser, url):
    """The page as it opens."""
    with chromium.page(browser, url) as page:
        page.add_script_tag(content="function gradioApp() { return document; }")
        for script in sorted((ROOT / "javascript").glob("*.js")):
            page.add_script_tag(path=script)
        page.add_style_tag(path=ROOT / "style.css")
        yield Accordions(page)
        assert page.problems == []


@pytest.fixture
def page(closed):
    """With all groups open."""
    closed.open_all()
    return closed


class Accordions:
    """The page's two accordions."""

    def __init__(self, page):
        from playwright.sync_api import expect

        self.page, self.expect = page, expect
        self.show("txt2img")

    def show(self, tab):
        self.tab = tab
        self.page.locator(".tab-nav button", has_text=tab).click()
        self.expect(self.prompt).to_be_visible()

    def group(self, name):
        return self.page.locator(f"#script_{self.tab}_loratorio_group_{name.lower()}")

    def open_all(self):
        for tab in reversed(TABS):
            self.show(tab)
            for name in GROUPS:
                self.group(name).locator(".label-wrap").click()

    def mode(self, name):
        return self.page.locator(f"#script_{self.tab}_loratorio_mode label", has_text=name)

    def pick(self, name):
        self.mode(name).click()

    def shows(self, name):
        self.expect(self.mode(name).locator("input")).to_be_checked()

    def warns(self, text):
        self.expect(self.page.locator(f"#script_{self.tab}_loratorio_help .loratorio-warning")).to_have_text(text)

    @property
    def prompt(self):
        return self.page.locator(f"#{self.tab}_prompt textarea")

    def control(self, name, element="input"):
        return self.page.locator(f"#script_{self.tab}_loratorio_{name} {element}").first

    def choose(self, name, choice):
        self.control(name).click()
        self.page.locator("ul.options li", has_text=choice).click()

    def says(self, text, tab=None):
        self.expect(self.page.locator(f"#script_{tab or self.tab}_loratorio_help .loratorio-live")).to_have_text(text)

    def press(self, name):
        self.page.locator(f"#{self.tab}_{name}, #script_{self.tab}_loratorio_{name}").click()

    def settings(self):
        """What a generation would get."""
        box = self.page.locator(f"#{self.tab}_values textarea")
        before = box.input_value()
        self.press("read")
        self.expect(box).not_to_have_value(before)
        return json.loads(box.input_value().partition(" ")[2])

    # Places

    def places(self, part):
        return self.page.locator(f"#script_{self.tab}_loratorio_places .loratorio-places-{part}")

    @property
    def box(self):
        return self.page.locator(f"#script_{self.tab}_loratorio_mask :is(textarea, input)").first

    def paint(self, *line):
        """A stroke on the canvas, in fractions of it."""
        before = self.box.input_value()
        self.places("canvas").scroll_into_view_if_needed()
        shown = self.places("canvas").bounding_box()
        points = [
            (shown["x"] + across * shown["width"], shown["y"] + down * shown["height"])
            for across, down in (line[:2], line[2:])
        ]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=4)
        self.page.mouse.up()
        self.expect(self.box).not_to_have_value(before)

    def expect_mask(self):
        self.expect(self.box).not_to_have_value("")

    def colours(self):
        """Of the mask that a generation would get; None for what is transparent."""
        image = read_image(Settings(mask=self.settings()["mask"]).mask)
        return {colour[:3] if colour[3] else None for _, colour in image.getcolors(2**20)}

    def paste(self, infotext):
        self.page.locator(f"#{self.tab}_infotext textarea").fill(infotext)
        self.press("paste")


def test_starts_with_the_defaults(page):
    for tab in TABS:
        page.show(tab)
        assert page.settings() == START.to_api()
        page.shows("balanced")
        page.expect(page.mode("custom")).to_have_count(0)


def test_price_while_typing(page):
    page.says(NO_LORA)
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.prompt.press_sequentially("a cat <lora:anna:0.8> ")
    page.says("1 LoRA (anna 0.8): 2 model evaluations a step (ordinary: 2).")
    page.prompt.press_sequentially(
        "<lora:style:0.5:0.7:ltstart=0.2> <lora:off:0> <lora:unet:0:1>, <lora:named:te=0.1:unet=0.1>"
    )
    page.says("4 LoRAs (anna 0.8, style 0.5/0.7, unet 0/1, named 0.1): 4.5 model evaluations a step (ordinary: 2).")
    paths = [urlsplit(address).path for address in asked]
    assert set(paths) == {"/loratorio/v1/price", "/loratorio/v1/places"}, "the scripts ask nothing else"
    assert all(paths.count(path) < 20 for path in set(paths)), "they wait for a pause in the typing"
    page.says(NO_LORA, "img2img")
    page.show("img2img")
    page.prompt.fill("<lora:b:1>")
    page.says("1 LoRA (b 1): 2 model evaluations a step (ordinary: 2).")
    page.says(
        "4 LoRAs (anna 0.8, style 0.5/0.7, unet 0/1, named 0.1): 4.5 model evaluations a step (ordinary: 2).", "txt2img"
    )


@pytest.fixture
def held(page):
    """The page's questions for the price, held back: answered by their `continue_`, in any order."""
    questions = []
    page.says(NO_LORA)
    page.page.route("**/loratorio/v1/price?*", lambda route: questions.append(route))
    return questions


def asked_for(page, questions, prompt):
    """The question for this prompt, once it is asked."""
    for _ in range(100):
        for question in questions:
            if parse_qs(urlsplit(question.request.url).query)["prompt"] == [prompt]:
                return question
        page.page.wait_for_timeout(50)
    raise AssertionError(f"the price of {prompt!r} was not asked")


def test_without_an_answer_nothing_is_told(page, held):
    page.prompt.fill("<lora:a:1>")
    question = asked_for(page, held, "<lora:a:1>")
    page.says("")
    question.continue_()
    page.says("1 LoRA (a 1): 2 model evaluations a step (ordinary: 2).")
    page.prompt.fill("<lora:b:1>")
    asked_for(page, held, "<lora:b:1>").abort()
    page.says("")
    held.clear()
    asked_for(page, held, "<lora:b:1>").continue_()
    page.says("1 LoRA (b 1): 2 model evaluations a step (ordinary: 2).")


def test_a_late_answer_to_an_earlier_question_is_dropped(page, held):
    page.prompt.fill("<lora:a:1>")
    early = asked_for(page, held, "<lora:a:1>")
    page.prompt.fill("<lora:a:1> <lora:b:1>")
    asked_for(page, held, "<lora:a:1> <lora:b:1>").continue_()
    page.says("2 LoRAs (a 1, b 1): 3.5 model evaluations a step (ordinary: 2).")
    with page.page.expect_response("**/loratorio/v1/price?*"):
        early.continue_()
    page.page.wait_for_timeout(700)
    page.says("2 LoRAs (a 1, b 1): 3.5 model evaluations a step (ordinary: 2).")


def test_price_of_settings_that_are_refused(page, url):
    page.prompt.fill("<lora:a:1>")
    page.says("1 LoRA (a 1): 2 model evaluations a step (ordinary: 2).")
    answer = page.page.request.get(f"{url}loratorio/v1/price", params={"prompt": "", "settings": '{"lam": 2}'})
    assert answer.status == 422
    assert answer.json() == {"detail": "LoRAtorio: lam is 2; it must be a number from 0 to 1."}


def test_pool_beside_the_prompt_and_alone(page):
    pool = page.control("pool", "textarea")
    pool.fill(" ,\n")
    page.says(NO_LORA)
    pool.fill("styles/*")
    page.says("No LoRA in the prompt: only those of the pool take part.")
    page.prompt.fill("<lora:a:1>")
    page.says("1 LoRA (a 1): 2 model evaluations a step (ordinary: 2). The LoRAs of the pool come on top.")
    page.choose("method", "merge")
    page.says("1 LoRA (a 1): 2 model evaluations a step (ordinary: 2). The method merge has no pool.")
    page.prompt.fill("")
    page.says(f"{NO_LORA} The method merge has no pool.")


@pytest.mark.parametrize("role", ["global", "Global", " GLOBAL "])
def test_global_loras_cost_nothing(page, role):
    page.prompt.fill(f"<lora:a:1> <lora:style:1:lt={role}>")
    page.says("2 LoRAs (a 1, style 1 global): 2 model evaluations a step (ordinary: 2).")


def test_price_in_another_language(page):
    page.page.evaluate(
        "window.localization = {'1 LoRA ({names}): {evaluations} model evaluations a step (ordinary: 2).': "
        "'{evaluations} statt 2: {names}'}"
    )
    page.prompt.fill("<lora:$&:1>")
    page.says("2 statt 2: $& 1")


@pytest.mark.parametrize("tab", TABS)
def test_presets_and_reset(page, tab):
    page.show(tab)
    page.prompt.fill("<lora:a:1> <lora:b:1>")
    others = {
        "start": 0.1,
        "end": 0.8,
        "text_encoder": "merged",
        "adapters_per_pass": 3,
        "verify": True,
        "maps": True,
        "pool": "styles/*",
        "pool_mode": "scout",
        "scout": 0.2,
        "scout_every": 5,
        "scout_share": 0.3,
        "trigger_words": True,
        "guidance_every": 4,
        "refresh_every": 2,
        "feather": 0.2,
    }
    for name in (*PRESETS, "reset"):
        page.paste(
            "method=composite patch_size=7 temperature=0.9 lam=0.3 top_k=2 "
            + " ".join(f"{key}={value}" for key, value in others.items())
        )
        page.says("2 LoRAs (a 1, b 1): 3.5 model evaluations a step (ordinary: 2). The LoRAs of the pool come on top.")
        page.expect(page.control("patch_size", "input[type=number]")).to_have_value("7")
        page.shows("custom")
        page.press("preset_reset") if name == "reset" else page.pick(name)
        page.expect(page.control("patch_size", "input[type=number]")).to_have_value("1")
        evaluations = {"quality": 4, "balanced": 3.5, "fast": 3, "paper": 4.5, "reset": 3.5}[name]
        pool = "" if name == "reset" else " The LoRAs of the pool come on top."
        page.says(f"2 LoRAs (a 1, b 1): {evaluations} model evaluations a step (ordinary: 2).{pool}")
        page.shows("balanced" if name == "reset" else name)
        page.expect(page.mode("custom")).to_have_count(0)
        expected = (
            START.to_api() if name == "reset" else Settings(**(others | {"refresh_every": 1} | PRESETS[name])).to_api()
        )
        assert page.settings() == {**expected, "enabled": True}


def test_the_first_screen_is_short_and_the_groups_open(closed):
    page = closed
    page.expect(page.control("maps")).to_be_visible()
    for name, inside in {
        "Places": page.places("canvas"),
        "Pool": page.control("pool", "textarea"),
        "Weighing": page.control("temperature"),
        "Text": page.control("trigger_words"),
        "Steps": page.control("refresh_every"),
        "Checks": page.control("verify"),
    }.items():
        page.expect(inside).to_be_hidden()
        header = page.group(name).locator(".label-wrap")
        page.page.wait_for_function("header => header.tabIndex >= 0", arg=header.element_handle())
        header.focus()
        page.expect(header).to_be_focused()
        page.page.keyboard.press("Enter")
        page.expect(inside).to_be_visible()


def test_prices_beside_the_choices(page):
    page.prompt.fill("<lora:a:1> <lora:b:1> <lora:c:1>")
    for name, price in {"quality": "5", "balanced": "4", "fast": "3.3", "paper": "8"}.items():
        page.expect(page.mode(name)).to_have_attribute("data-price", price)


def test_changing_a_setting_by_hand_shows_custom(page):
    box = page.control("lam", "input[type=number]")
    box.fill("0.5")
    box.blur()
    page.shows("custom")
    box.fill("1")
    box.blur()
    page.shows("balanced")


def test_a_choice_by_keyboard(page):
    page.shows("balanced")
    page.page.locator(f"#script_{page.tab}_loratorio_mode input[value=fast]").focus()
    page.page.keyboard.press("Space")
    page.shows("fast")
    page.expect(page.control("refresh_every", "input[type=number]")).to_have_value("3")


def test_what_is_wrong_is_told_while_typing(page):
    page.prompt.fill("<lora:a:1:ltat=left> <lora:a:1> <lora:nobody:1> <lora:sdxl-style:1>")
    page.says("4 LoRAs (a 1 left, a 1, nobody 1, sdxl-style 1): 4.5 model evaluations a step (ordinary: 2).")
    page.warns(
        "Twice in the prompt: a. Keep one tag of each, unless you mean both. "
        "Not among the WebUI's LoRAs: nobody. Check the name, or refresh the list if a file is new. "
        "Made for another kind of model: sdxl-style. Choose another checkpoint, or other LoRAs."
    )
    page.prompt.fill("<lora:a:1:ltat=lef>")
    page.expect(page.page.locator(".loratorio-warning").first).to_contain_text("has ltat=lef; it must be one of left")
    page.prompt.fill("<lora:a:1>")
    page.warns("")


def test_controls_that_do_not_matter_are_grey(page):
    temperature, start, verify = page.control("temperature"), page.control("start"), page.control("verify")
    page.expect(temperature).to_be_enabled()
    for method, disabled in (("composite", [temperature]), ("merge", [temperature, start, verify]), ("loratorio", [])):
        page.choose("method", method)
        for control in (temperature, start, verify):
            page.expect(control).to_be_enabled(enabled=control not in disabled)


def test_pasting(page):
    page.paste("method=switch patch_size=2 temperature=0.25 lam=1.0 text_encoder=merged verify=True")
    page.expect(page.control("patch_size", "input[type=number]")).to_have_value("2")
    assert page.settings() == Settings(True, "switch", 2, 0.25, 1.0, text_encoder="merged", verify=True).to_api()
    page.paste("method=loratorio temperature=-1")
    page.expect(page.page.get_by_text("temperature is '-1'")).to_be_visible()
    page.paste("")
    page.expect(page.page.locator("#script_txt2img_loratorio_enabled-checkbox input")).not_to_be_checked()
    assert page.settings() == Settings(False, "switch", 2, 0.25, 1.0, text_encoder="merged", verify=True).to_api()


def test_fits_a_narrow_window(page):
    page.page.set_viewport_size({"width": 400, "height": 900})
    page.prompt.fill("<lora:a_rather_long_name_of_a_lora_without_a_single_space_in_it:1:ltat=lef> <lora:nobody:1>")
    page.expect(page.page.locator(".loratorio-warning").first).not_to_have_text("")
    accordion = page.page.locator("#script_txt2img_loratorio_enabled")
    assert accordion.evaluate("element => element.scrollWidth <= element.clientWidth")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 400


# Places


def test_places_are_painted_in_the_colours_of_the_prompts_loras(page):
    for tab in TABS:
        page.show(tab)
        page.prompt.fill("<lora:anna:1> <lora:style:1:lt=global> <lora:bob:1>")
        page.expect(page.places("swatch")).to_have_text(["anna", "bob", "nobody"])
        page.expect(page.box).to_be_hidden()
        page.paint(0.1, 0.2, 0.1, 0.8)
        page.places("swatch").nth(1).click()
        page.paint(0.8, 0.2, 0.8, 0.8)
        assert page.colours() == {COLOURS[0], COLOURS[1], None}
        before = page.settings()["mask"]
        page.places("swatch").nth(2).click()
        page.paint(0.8, 0.2, 0.8, 0.8)
        assert page.colours() == {COLOURS[0], None, (0, 0, 0)} and page.settings()["mask"] != before
        page.places("swatch").nth(0).click()
        page.places("fill").click()
        page.expect_mask()
        assert page.colours() == {COLOURS[0]}
        page.places("clear").click()
        assert page.settings()["mask"] == ""


def test_the_price_has_what_is_painted(page):
    """The base is needed once every LoRA has a place; what is asked for the price does not hold the image."""
    asked = []
    page.page.on("request", lambda request: asked.append(request))
    page.prompt.fill("<lora:anna:1> <lora:bob:1>")
    page.choose("method", "composite")
    page.says("2 LoRAs (anna 1, bob 1): 4 model evaluations a step (ordinary: 2).")
    page.paint(0.1, 0.2, 0.1, 0.8)
    page.places("swatch").nth(1).click()
    page.paint(0.8, 0.2, 0.8, 0.8)
    page.says("2 LoRAs (anna 1, bob 1): 4.5 model evaluations a step (ordinary: 2).")
    page.places("clear").click()
    page.says("2 LoRAs (anna 1, bob 1): 4 model evaluations a step (ordinary: 2).")
    assert all(len(request.url) < 1000 for request in asked)
    sent = [request for request in asked if urlsplit(request.url).path == "/loratorio/v1/places/painted"]
    assert 0 < len(sent) < 10 and all(request.method == "POST" for request in sent)


def test_what_is_wrong_with_a_mask_is_told_at_once(page, tmp_path):
    Image.new("RGB", (40, 20), (255, 0, 255)).save(tmp_path / "mask.png")
    page.expect(page.places("take")).to_be_visible()
    page.places("file").set_input_files(tmp_path / "mask.png")
    page.expect(page.places("message")).to_contain_text("mask has the colour #ff00ff, which no LoRA has; #e69f00 is")
    page.places("clear").click()
    page.expect(page.places("message")).to_have_text("")


def test_regions_of_the_prompt_are_shown(page):
    page.prompt.fill("<lora:anna:1:ltat=left+top-right> <lora:bob:1:ltbox=0,0,1,0.2>")
    page.expect(page.places("canvas")).to_have_attribute("data-boxes", "3")
    page.prompt.fill("<lora:anna:1:ltat=leftish>")
    page.expect(page.places("message")).to_contain_text("has ltat=leftish; it must be one of left, right")
    page.expect(page.places("canvas")).to_have_attribute("data-boxes", "0")


def test_the_last_weight_map_is_taken_over_and_painted_on(page):
    page.prompt.fill("<lora:anna:1> <lora:bob:1>")
    page.expect(page.places("swatch")).to_have_text(["anna", "bob", "nobody"])
    page.places("take").click()
    page.expect_mask()
    assert page.colours() == {COLOURS[0], COLOURS[1]}
    page.places("swatch").nth(2).click()
    page.paint(0.5, 0.1, 0.5, 0.9)
    assert page.colours() == {COLOURS[0], COLOURS[1], (0, 0, 0)}


def test_an_image_is_loaded_and_its_name_is_pasted(page, tmp_path):
    Image.new("RGB", (40, 20), COLOURS[2]).save(tmp_path / "mask.png")
    page.expect(page.places("take")).to_be_visible()
    page.places("file").set_input_files(tmp_path / "mask.png")
    page.expect_mask()
    assert page.colours() == {COLOURS[2]}
    assert Settings(mask=page.settings()["mask"]).to_infotext().count("mask=sha256-") == 1
    page.paste("method=loratorio mask=sha256-0123456789abcdef")
    page.expect(page.places("message")).to_contain_text("not at hand")
    page.paste("method=loratorio")
    page.expect(page.places("message")).to_have_text("")
    assert page.settings()["mask"] == ""


def test_a_preset_that_is_picked_right_after_a_change_by_hand(page):
    """The page is still telling that the settings are no preset's when the next one is picked."""
    page.prompt.fill("<lora:a:1> <lora:b:1>")
    page.says("2 LoRAs (a 1, b 1): 3.5 model evaluations a step (ordinary: 2).")
    for name in ("fast", "paper", "quality"):
        page.control("temperature", "input[type=number]").fill("0.7")
        page.control("temperature", "input[type=number]").press("Tab")
        page.pick(name)
        page.expect(page.control("temperature", "input[type=number]")).to_have_value("0.1")
        page.shows(name)
        assert page.settings() == Settings(**PRESETS[name]).to_api() | {"enabled": False}


def test_a_mistake_that_is_mended_is_told_no_more(page):
    page.prompt.fill("<lora:a:1:ltat=lef>")
    page.expect(page.places("message")).to_contain_text("the LoRA 'a' has ltat=lef; it must be one of")
    page.warns(re.compile("^the LoRA 'a' has ltat=lef"))
    page.prompt.fill("<lora:a:1:ltat=left>")
    page.expect(page.places("message")).to_have_text("")
    page.prompt.fill("<lora:a:0,8>")
    page.warns("the LoRA 'a' has the strength '0,8'; it must be a number, such as 0.8, with a point.")


def test_buttons_of_places_have_titles_of_their_own(page):
    """The WebUI gives buttons without one the titles of its own of the same text."""
    titles = {name: page.places(name).get_attribute("title") for name in ("fill", "take", "load", "clear")}
    assert titles["fill"] == "the chosen LoRA may be everywhere" and all(titles.values())


def test_the_canvas_has_the_shape_of_the_picture_to_come(page):
    canvas = page.places("canvas")
    assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [256, 256]
    page.page.locator("#txt2img_width input").fill("384")
    page.page.locator("#txt2img_height input").fill("128")
    page.page.wait_for_function("canvas => canvas.height === 85", arg=canvas.element_handle())
    page.prompt.fill("<lora:a:1>")
    page.expect(page.places("swatch")).to_have_count(2)
    page.paint(0.1, 0.5, 0.9, 0.5)
    page.page.locator("#txt2img_height input").fill("384")
    assert read_image(Settings(mask=page.settings()["mask"]).mask).size == (256, 85), "what is painted stays"


def test_it_is_told_when_loratorio_is_off(page):
    """By the WebUI's check box, which this page does not have."""
    box = 'Object.assign(document.createElement("input"), {type: "checkbox"})'
    page.page.evaluate(f'window.box = {box}; box.id = "script_txt2img_loratorio_enabled-visible-checkbox"')
    page.page.evaluate("document.body.appendChild(box)")
    page.says(NO_LORA)
    page.prompt.fill("<lora:a:1> <lora:b:1>")
    costs = "2 LoRAs (a 1, b 1): 3.5 model evaluations a step (ordinary: 2)."
    page.says(f"Off, so that the picture will be the ordinary one. Ticked: {costs}")
    page.page.evaluate("box.checked = true")
    page.says(costs)
