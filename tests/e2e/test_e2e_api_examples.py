"""The examples of docs/api.md, as they stand there but for address, LoRAs and size."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from webui_server import SCRIPT

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

API = Path(__file__).parents[2] / "docs" / "api.md"


def example(language, url):
    """The section's example in this language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", API.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    changes = {
        "127.0.0.1": host,
        "7860": port,
        "<lora:a:": "<lora:e2e_lora:",
        "<lora:b:": "<lora:e2e_locon:",
        "20": "2",
        "512": "64",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "no_proxy": "*"})
    assert done.returncode == 0, done.stderr


def test_curl(request, tmp_path):
    run("bash", "-c", example("bash", request.config.getoption("--webui-url")), cwd=tmp_path)
    answer = json.loads((tmp_path / "answer.json").read_text())
    picture, panel = (Image.open(io.BytesIO(base64.b64decode(image))) for image in answer["images"])
    assert picture.size == (64, 64) and panel.width > 3 * panel.height
    params = json.loads(answer["info"])["extra_generation_params"]
    assert params[SCRIPT] == "method=loratorio patch_size=1 temperature=0.1 lam=0.5 maps=True"
    assert set(json.loads(params["LoRAtorio shares"])[0]["mean"]) == {"e2e_lora", "e2e_locon"}


def test_webuiapi(request, tmp_path):
    run(sys.executable, "-c", example("python", request.config.getoption("--webui-url")), cwd=tmp_path)
    assert Image.open(tmp_path / "cat.png").size == (64, 64)
    panel = Image.open(tmp_path / "maps.png")
    assert panel.width > 3 * panel.height
