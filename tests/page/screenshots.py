"""Pictures of the accordion for the documentation: `python -m tests.page.screenshots [FOLDER]`, by default docs/.

Runs the tests' page on gradio 3.41, so `make .venv-gradio3/.ready` comes first, in the system's Chromium. The page
has no pictures for letters, so no font with emoji is needed.
"""

import io
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import chromium  # noqa: E402
from PIL import Image  # noqa: E402

PROMPT = "a knight <lora:knight:1:ltat=left> and a dragon <lora:dragon:0.8:ltat=right> <lora:ink-style:0.6:lt=global>"
SHOTS = {
    "accordion": ("light", 760, PROMPT, ()),
    "accordion-dark": ("dark", 760, f"{PROMPT} <lora:nobody:1>", ()),
    "accordion-narrow": ("light", 400, PROMPT, ("weighing", "steps")),
}
"""Of each picture the theme, the window's width, the prompt, and the groups that are open."""


def shoot(browser, url: str, name: str, folder: Path) -> None:
    theme, width, prompt, groups = SHOTS[name]
    with chromium.page(browser, url, f"?__theme={theme}", viewport={"width": width, "height": 1400}) as page:
        page.add_script_tag(content="function gradioApp() { return document; }")
        for script in sorted((ROOT / "javascript").glob("*.js")):
            page.add_script_tag(path=script)
        page.add_style_tag(path=ROOT / "style.css")
        page.locator("#txt2img_prompt textarea").fill(prompt)
        for group in groups:
            page.locator(f"#script_txt2img_loratorio_group_{group} .label-wrap").click()
        page.locator("#script_txt2img_loratorio_help .loratorio-live", has_text="ink-style").wait_for()
        page.locator("#script_txt2img_loratorio_mode label[data-price]").first.wait_for()
        shot = page.locator("#script_txt2img_loratorio_enabled").screenshot(animations="disabled")
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(folder / f"{name}.png", optimize=True)


def main(folder: Path) -> None:
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "NO_PROXY": "127.0.0.1"}
    command = [ROOT / ".venv-gradio3" / "bin" / "python", Path(__file__).with_name("page.py")]
    with subprocess.Popen(
        [*command, sysconfig.get_path("purelib")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        url = next(line.strip() for line in server.stdout if line.startswith("http"))
        with chromium.browser() as browser:
            for name in SHOTS:
                shoot(browser, url, name, folder)
        server.stdin.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
