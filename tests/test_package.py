"""The package that pip installs: what is in it, that it works away from the checkout, and that versions agree."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import lib_loratorio

ROOT = Path(__file__).parents[1]
NEEDED = ("lib_loratorio", "pyproject.toml", "README.md", "LICENSE")
TAGS = {
    *("script", "localization", "tab", "dropdown", "ads", "training", "models", "UI related", "prompting", "editing"),
    *("manipulations", "online", "animation", "query", "science", "extras"),
}
"""Of the WebUI's index of extensions that an extension may have."""
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def run(*command, cwd):
    """Without anything of this process's paths."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the unpacked sdist, that one from a copy of the checkout."""
    pytest.importorskip("setuptools", "77")
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    sdist = out / run(sys.executable, "-c", BUILD, "build_sdist", out, cwd=copy).split()[-1]
    shutil.unpack_archive(sdist, out, filter="data") if sys.version_info >= (3, 12) else shutil.unpack_archive(
        sdist, out
    )
    unpacked = out / sdist.name.removesuffix(".tar.gz")
    return out / run(sys.executable, "-c", BUILD, "build_wheel", out, cwd=unpacked).split()[-1]


def test_what_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        metadata = opened.read(next(name for name in names if name.endswith("METADATA"))).decode()
    own = {str(file.relative_to(ROOT)) for file in (ROOT / "lib_loratorio").rglob("*.py")}
    assert {name for name in names if ".dist-info" not in name} == own | {"lib_loratorio/py.typed"}
    assert f"\nVersion: {lib_loratorio.__version__}\n" in metadata
    assert {"diffusers", "lycoris"} == set(re.findall(r"Provides-Extra: (\S+)", metadata))
    assert "gradio" not in metadata.split("\n\n")[0]


def test_it_works_in_a_fresh_environment(wheel, tmp_path):
    """With this environment's libraries, which it finds behind its own."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh", cwd=tmp_path)
    scripts = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    install = ("install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=tmp_path)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    version = f"{lib_loratorio.__version__}\n"
    assert run(scripts / "loratorio", "--version", cwd=tmp_path) == version
    assert run(python, "-m", "lib_loratorio", "--version", cwd=tmp_path) == version
    assert run(scripts / "loratorio", "settings", cwd=tmp_path) == (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert run(scripts / "loratorio", "--help", cwd=tmp_path).startswith("usage: loratorio ")
    where = "import lib_loratorio; print(lib_loratorio.__file__)"
    if find_spec("diffusers") and find_spec("peft"):
        where = f"from lib_loratorio.hosts.diffusers import composed; {where}"
    assert Path(run(python, "-c", where, cwd=tmp_path).strip()) == site / "lib_loratorio" / "__init__.py"


def test_the_version_stands_in_one_place():
    """The changelog's first heading tells of it; all else reads it."""
    version = lib_loratorio.__version__
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    files = [
        ROOT / name for name in listed.stdout.splitlines() if name.endswith((".py", ".ini", ".toml", ".js", ".json"))
    ]
    assert [str(file.relative_to(ROOT)) for file in files if version in file.read_text("utf-8")] == [
        "lib_loratorio/__init__.py"
    ]
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "metadata.ini")
    assert dict(metadata["Extension"]) == {"name": "sd-webui-loratorio"}
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == version


def test_the_entry_for_the_index_of_extensions():
    """The index has these keys and knows these tags; it adds the date by itself."""
    entry = json.loads((ROOT / "docs" / "index-entry.json").read_text("utf-8"))
    assert list(entry) == ["name", "url", "description", "tags"]
    assert re.fullmatch(r"https://github\.com/[\w-]+/sd-webui-loratorio\.git", entry["url"])
    assert entry["tags"] and set(entry["tags"]) <= TAGS
    assert len(entry["description"]) < 250


def test_forms_for_issues():
    """Their fields have names of their own, and ask for what finding a fault takes."""
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in folder.glob("*.yml")}
    assert set(forms) == {"bug", "config", "feature"}
    asked = {part["id"] for part in forms["bug"]["body"] if part.get("validations", {}).get("required")}
    assert asked == {"what", "infotext", "verify", "console", "host", "version"}
    for name in ("bug", "feature"):
        fields = [part["id"] for part in forms[name]["body"] if part["type"] != "markdown"]
        assert len(fields) == len(set(fields)) and {"name", "description", "body"} <= set(forms[name])
    assert [link["url"].rsplit("/main/")[1] for link in forms["config"]["contact_links"]] == ["docs/troubleshooting.md"]
    assert (ROOT / "docs" / "troubleshooting.md").exists()
