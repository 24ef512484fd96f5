"""A running WebUI as its user sees it: its page in a browser."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

WIDE = {"viewport": {"width": 1200, "height": 1400}}
"""A window that shows a tab without scrolling, as arguments of the browser's pages."""

TICK = "-visible-checkbox"
"""How the id of the accordion's own check box ends, after the accordion's."""


class WebUIPage:
    """The WebUI's page, on one of its tabs at a time. Waits are for what the page shows."""

    def __init__(self, page, screenshots: str | None):
        from playwright.sync_api import expect

        expect.set_options(timeout=30_000)
        page.set_default_timeout(60_000)
        self.page, self.expect, self.screenshots = page, expect, screenshots
        self.loaded()

    def loaded(self) -> None:
        """Waits until the WebUI's own scripts have set the page up."""
        self.page.locator(f"#script_img2img_loratorio_enabled{TICK}").wait_for(state="attached")
        self.tab = "txt2img"

    def find(self, selector: str):
        return self.page.locator(selector.replace("TAB", self.tab))

    def show(self, tab: str) -> None:
        self.page.locator("#tabs > .tab-nav > button", has_text=re.compile(f"^\\s*{tab}\\s*$", re.IGNORECASE)).click()
        self.tab = tab

    def fill(self, selector: str, value) -> None:
        self.find(selector).first.fill(str(value))
        self.find(selector).first.blur()

    def choose(self, selector: str, option: str) -> None:
        """In a dropdown."""
        self.find(f"{selector} input").click()
        self.page.locator("ul.options li", has_text=re.compile(f"^[\\s✓]*{re.escape(option)}\\s*$")).click()

    # The accordion

    @property
    def tick(self):
        return self.find(f"#script_TAB_loratorio_enabled{TICK}")

    @property
    def live(self):
        return self.find("#script_TAB_loratorio_help .loratorio-live")

    @property
    def accordion(self):
        return self.find("#script_TAB_loratorio_enabled")

    def open(self) -> None:
        """Unfolds the accordion, which its check box alone does not, and its groups."""
        for header in self.accordion.locator(".label-wrap").all():
            if "open" not in header.get_attribute("class").split():
                header.click()

    def mode(self, name: str):
        return self.find(f"#script_TAB_loratorio_mode input[value={name}]")

    def control(self, name: str):
        return self.find(f"#script_TAB_loratorio_{name} input").first

    def number(self, name: str):
        return self.find(f"#script_TAB_loratorio_{name} input[type=number]")

    def set(self, name: str, value) -> None:
        self.fill(f"#script_TAB_loratorio_{name} input[type=number]", value)

    def check(self, **values) -> None:
        """That the accordion, which is ticked, shows these numbers."""
        self.expect(self.tick).to_be_checked()
        for name, value in values.items():
            self.expect(self.number(name)).to_have_value(str(value))

    # Places

    def places(self, part: str):
        """A part of the accordion's group by the end of its class."""
        return self.find(f"#script_TAB_loratorio_places .loratorio-places-{part}")

    @property
    def mask(self):
        """The text box with the mask that a generation gets."""
        return self.find("#script_TAB_loratorio_mask :is(textarea, input)").first

    def change_mask(self, act: Callable[[], None]) -> None:
        """Does something that changes the mask."""
        before = self.mask.input_value()
        act()
        self.expect(self.mask).not_to_have_value(before)

    def paint(self, left: float, top: float, right: float, bottom: float) -> None:
        """A stroke on the canvas between two places, in fractions of it."""
        self.places("canvas").scroll_into_view_if_needed()
        shown = self.places("canvas").bounding_box()
        ends = [
            (shown["x"] + x * shown["width"], shown["y"] + y * shown["height"])
            for x, y in ((left, top), (right, bottom))
        ]

        def stroke() -> None:
            self.page.mouse.move(*ends[0])
            self.page.mouse.down()
            self.page.mouse.move(*ends[1], steps=4)
            self.page.mouse.up()

        self.change_mask(stroke)

    # Generation

    def request(self, prompt: str, **numbers) -> None:
        """Fills in the prompt and the sliders and numbers `steps`, `width`, ..., by their names on the page."""
        self.fill("#TAB_prompt textarea", prompt)
        for name, value in numbers.items():
            self.fill(f"#TAB_{name} input[type=number]", value)

    def pictures(self) -> list[str]:
        """The addresses of the gallery's pictures."""
        return list(dict.fromkeys(image.get_attribute("src") for image in self.find("#TAB_gallery img").all()))

    def generate(self) -> list[str]:
        """The addresses of the new pictures."""
        before = self.pictures()
        self.find("#TAB_generate").click()
        found = "#TAB_gallery img".replace("TAB", self.tab)
        self.page.wait_for_function(
            """([found, interrupt, before]) => {
                const sources = [...document.querySelectorAll(found)].map((image) => image.getAttribute("src"));
                const idle = getComputedStyle(document.querySelector(interrupt)).display === "none";
                return idle && sources.length > 0
                    && sources.every((source) => !before.includes(source) && !source.startsWith("data:"));
            }""",
            arg=[found, f"#{self.tab}_interrupt", before],
            timeout=180_000,
        )
        return self.pictures()

    def image(self, source: str) -> Image.Image:
        """A picture of the gallery, from its address."""
        answer = self.page.request.get(self.page.evaluate("source => new URL(source, location).href", source))
        return Image.open(io.BytesIO(answer.body()))

    @property
    def infotext(self):
        return self.find("#html_info_TAB").first

    # Pictures of the page

    def shoot(self, name: str, target=None, height: int | None = None) -> None:
        """Writes the page, or a part of it, as a small PNG file; nothing without --screenshots."""
        if self.screenshots:
            shot = Image.open(io.BytesIO((target or self.page).screenshot())).convert("RGB")
            if height:
                shot = shot.crop((0, 0, shot.width, min(height, shot.height)))
            shot.quantize(128, dither=Image.Dither.NONE).save(Path(self.screenshots) / f"{name}.png", optimize=True)
