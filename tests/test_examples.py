"""What README and docs show as code: blocks, commands, tags and settings, each run or read as a user's would be.

The examples for diffusers run in tests/diffusers/test_guide.py; those for the API on a WebUI too, in tests/e2e.
"""

import ast
import base64
import http.server
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from PIL import Image

from lib_loratorio import cli
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.page.live import tags_of
from lib_loratorio.presets import preset_of
from lib_loratorio.settings import Settings, schema

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(page.name, language or "bash", reason, text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (reason, language, text) in enumerate(BLOCK.findall(page.read_text("utf-8")))
]
SPANS = [
    (page.name, span) for page in PAGES for span in re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text("utf-8")))
]


def commands(text):
    """The words of each command of a shell block."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def options_of(file):
    """The options that a script declares."""
    calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
    texts = [argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)]
    return {text for text in texts if str(text).startswith("--")}


def check_command(words):
    """Fails unless the command exists and knows its options; True where it is one of ours."""
    words = [word for word in words if not re.match(r"PYTHONPATH=", word)]
    name = Path(words[0]).name
    if name == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif name == "loratorio" or words[1:3] == ["-m", "lib_loratorio"]:
        cli._parser().parse_args(words[1:] if name == "loratorio" else words[3:])
    elif name.startswith("python") and words[1:2] == ["-m"]:
        if words[2].startswith("lab"):
            file = ROOT / f"{words[2].replace('.', '/')}.py"
            assert {word for word in words if word.startswith("--")} <= options_of(file)
        else:
            assert words[2] in ("pytest", "ruff")
    elif name.startswith("python"):
        assert {word for word in words if word.startswith("--")} <= options_of(ROOT / words[1])
    elif words[:2] == ["pip", "install"]:
        declared = (ROOT / "pyproject.toml").read_text("utf-8")
        for extra in re.findall(r"(?:^\.|sd-webui-loratorio)\[([\w,]+)\]", words[2]):
            assert all(re.search(rf"^{one} = \[", declared, re.MULTILINE) for one in extra.split(","))
    else:
        return False
    return True


@pytest.mark.parametrize(("page", "language", "reason", "text"), BLOCKS)
def test_block_is_of_a_kind_that_is_tested(page, language, reason, text):
    """Formulas and lists are text; other blocks run, or tell why not."""
    assert language in ("bash", "python", "text")
    if language == "bash" and not text.startswith("curl "):
        assert all(check_command(words) for words in commands(text))
    elif language == "python" and not reason:
        compile(text, page, "exec")
        assert page in ("diffusers.md", "command-line.md", "api.md"), "no test runs this page's examples"


def test_blocks_that_are_not_run():
    assert [(block.values[0], block.values[2]) for block in BLOCKS if block.values[2]] == [
        ("design.md", "signatures, without what they do")
    ]


def test_commands_in_sentences():
    found = [span for _, span in SPANS if re.match(r"(make|python -m|loratorio|pip install) ?[\w.]", span)]
    for span in found:
        if "…" not in span and span not in ("loratorio", "loratorio generate", "python -m lib_loratorio generate"):
            words = shlex.split(span.split(" > ")[0])
            assert (words[:3] == ["python", "-m", "lib_loratorio"] and len(words) == 3) or check_command(words), span
    assert len(found) > 5


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def accept(asked):
    """The settings of a request to txt2img, read as the extension does, by names that its schema has."""
    assert asked["width"] % 8 == asked["height"] % 8 == 0 and asked["steps"] > 0
    assert [LoraTag.read(named, name) for name, named in tags_of(asked["prompt"])] == [LoraTag()] * 2
    (given,) = asked["alwayson_scripts"]["LoRAtorio"]["args"]
    assert set(given) <= set(schema()["properties"])
    return Settings.from_api(given)


@pytest.fixture
def webui():
    """Address and requests of a stand-in of the WebUI's API."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"images": [picture()], "info": "{}"}).encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def block_of(page, language):
    (text,) = [b.values[3] for b in BLOCKS if b.values[0] == page and b.values[1] == language]
    return text


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_request_by_curl(webui, tmp_path):
    address, requests = webui
    text = block_of("api.md", "bash").replace("curl ", "curl --noproxy '*' ").replace("127.0.0.1:7860", address)
    subprocess.run(["bash", "-ec", text], cwd=tmp_path, check=True, timeout=60)
    ((path, asked),) = requests
    assert path == "/sdapi/v1/txt2img"
    assert accept(asked) == Settings(enabled=True, temperature=0.1, maps=True)
    assert json.loads((tmp_path / "answer.json").read_text())["images"]


def test_request_by_webuiapi(monkeypatch, tmp_path):
    asked = []

    class WebUIApi:
        def __init__(self, host, port):
            assert (host, port) == ("127.0.0.1", 7860)

        def txt2img(self, **request):
            asked.append(request)
            return types.SimpleNamespace(images=[Image.new("RGB", (8, 8)), Image.new("RGB", (24, 8))])

    monkeypatch.setitem(sys.modules, "webuiapi", types.SimpleNamespace(WebUIApi=WebUIApi))
    monkeypatch.chdir(tmp_path)
    exec(compile(block_of("api.md", "python"), "api.md", "exec"), {})
    assert accept(asked[0]) == Settings(enabled=True, temperature=0.1, maps=True)
    assert Image.open("maps.png").width == 24


def test_settings_as_json():
    found = {span: json.loads(span) for _, span in SPANS if span.startswith('{"') and ".safetensors" not in span}
    for given in found.values():
        Settings.from_api(given)
    assert preset_of({**Settings().to_api(), **found['{"enabled": true, "lam": 1, "refresh_every": 2}']}) == "balanced"


def read(tag):
    """What the one tag of a prompt says, of which the page's parser leaves nothing out."""
    ((name, known),) = tags_of(tag)
    named = dict(part.split("=", 1) for part in tag.strip("<>").split(":") if "=" in part)
    assert known == named
    return LoraTag.read(named, name)


def test_tags_can_be_read():
    tags = {
        tag for _, span in SPANS for tag in re.findall(r"<lora:[^>]*>", span) if "..." not in tag and "dyn" not in tag
    }
    for tag in tags:
        read(tag)
    assert len(tags) > 6
    shown = [span for _, span in SPANS if re.fullmatch(r"(lt(|at|box|share|start|end|w)|lbw)=[^\s…]*\d?", span)]
    shown = [span for span in shown if span.split("=", 1)[1] and "x0" not in span]
    for span in shown:
        read(f"<lora:a:1:{span}>")
    assert len(shown) > 15


def test_tags_do_what_the_pages_say():
    prompts = (ROOT / "docs/prompts.md").read_text("utf-8") + (ROOT / "docs/places.md").read_text("utf-8")

    def shown(tag):
        assert tag in prompts
        return read(tag if tag.startswith("<") else f"<lora:a:1:{tag}>")

    assert shown("<lora:style:0.6:lt=global>").is_global
    stretch = shown("<lora:name:0.8:ltstart=0.2:ltend=0.7>")
    assert [stretch.holds(at, 0) for at in (0.1, 0.2, 0.6, 0.7)] == [False, True, True, False]
    ramp = shown("<lora:anna:0.8:ltw=0@0,1@0.3,0.2@1>")
    assert [round(0.8 * ramp.factor(at, 0), 2) for at in (0, 0.3, 1)] == [0, 0.8, 0.16]
    same = shown("ltstart=0.25:ltend=0.5"), shown("ltw=0@0.25,1@0.25,1@0.5,0@0.5")
    for at in (0, 0.24, 0.26, 0.49, 0.51, 1):
        assert len({tag.holds(at, 0) and tag.factor(at, 0) for tag in same}) == 1
    assert shown("<lora:anna:0.8:ltat=left>").region.boxes == shown("ltbox=0,0,0.5,1").region.boxes
