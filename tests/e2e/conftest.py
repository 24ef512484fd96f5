"""Fixtures of the end-to-end tests: a running WebUI, and adapter files made for its checkpoint."""

import shutil
from collections.abc import Iterator

import chromium
import lora_files
import pytest
from webui_page import WIDE, WebUIPage
from webui_server import WebUI, lora_folder


@pytest.fixture(scope="session")
def webui(request) -> WebUI:
    """The WebUI at --webui-url, with the extension installed."""
    url = request.config.getoption("--webui-url")
    if not url:
        pytest.skip("needs --webui-url, the address of a running WebUI")
    server = WebUI(url)
    scripts = server.client.get_scripts()
    assert all("loratorio" in scripts[tab] for tab in ("txt2img", "img2img")), f"LoRAtorio is not installed at {url}"
    server.keep_overridden_options()
    return server


@pytest.fixture(scope="session")
def lora_dir(request, webui) -> Iterator:
    """A folder of the WebUI's LoRA folder that is there for this session only."""
    webui_dir = request.config.getoption("--webui-dir")
    if not webui_dir:
        pytest.skip("needs --webui-dir, the folder of the running WebUI")
    folder = lora_folder(webui_dir)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)
    webui.refresh_loras()


@pytest.fixture(scope="session")
def loras(webui, lora_dir) -> None:
    """One adapter of each kind, e2e_<kind>, for the checkpoint that the WebUI has loaded."""
    lora_files.write_all(webui.current_checkpoint()["filename"], lora_dir)
    webui.refresh_loras()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium.browser() as browser:
        yield browser


@pytest.fixture
def page(request, browser, webui) -> Iterator[WebUIPage]:
    """The WebUI's page; its scripts must have had no problems."""
    with chromium.page(browser, request.config.getoption("--webui-url"), **WIDE) as page:
        yield WebUIPage(page, request.config.getoption("--screenshots"))
        assert page.problems == []
