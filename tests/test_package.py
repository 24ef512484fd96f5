"""The package that pip installs: what is in it, that it works away from the checkout, and that versions agree."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest

import lib_loratorio

ROOT = Path(__file__).parents[1]
NEEDED = ("lib_loratorio", "pyproject.toml", "README.md", "LICENSE")
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
    """The CHANGELOG's newest is that version, too."""
    files = [ROOT / name for name in ("metadata.ini", "pyproject.toml", "install.py", "README.md")]
    files += [
        path for folder in ("lib_loratorio", "scripts", "javascript", "docs") for path in (ROOT / folder).rglob("*")
    ]
    texts = [path for path in files if path.suffix in (".ini", ".toml", ".py", ".js", ".md", ".json")]
    having = [path.name for path in texts if lib_loratorio.__version__ in path.read_text("utf-8")]
    assert having == ["__init__.py", "releasing.md"]  # there as an example
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == lib_loratorio.__version__


def test_the_entry_for_the_index_is_complete():
    """As https://github.com/AUTOMATIC1111/stable-diffusion-webui-extensions wants it, with its tags."""
    entry = json.loads((ROOT / "docs/index-entry.json").read_text("utf-8"))
    assert list(entry) == ["name", "url", "description", "added", "tags"]
    assert entry["url"] == "https://github.com/OWNER/sd-webui-loratorio.git"
    assert set(entry["tags"]) <= {"script", "prompting", "manipulations", "UI related", "science"}
    assert date.fromisoformat(entry["added"]) and 50 < len(entry["description"]) < 300


def test_forms_for_issues_ask_for_what_is_needed():
    yaml = pytest.importorskip("yaml")
    forms = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()}
    assert forms.keys() == {"bug.yml", "feature.yml", "config.yml"}
    assert "docs/troubleshooting.md" in forms["config.yml"]["contact_links"][0]["url"]
    needed = {part["id"] for part in forms["bug.yml"]["body"] if part.get("validations", {}).get("required")}
    assert {"host", "versions", "infotext", "verify", "what"} <= needed
    assert "console" in {part["id"] for part in forms["bug.yml"]["body"]}
