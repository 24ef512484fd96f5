"""The commands of README and docs are run as far as their arguments, and what docs/design.md shows of the code is the
code's.
"""

import argparse
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_pipelines as tiny

from lib_loratorio import cli
from lib_loratorio.engine import composer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "lab/README.md", "lab/MODEL_CARD.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXTS = {page.name: page.read_text("utf-8") for page in PAGES}


class ReadError(Exception):
    """A command's arguments have been read."""


def commands():
    """`(module or script, arguments)` of each command of Python in the pages, each once."""
    found = set()
    for text in TEXTS.values():
        lines = re.findall(r"`([^`\n]+)`", text) + [line for line in text.splitlines() if "python" in line]
        for line in lines:
            for command in re.findall(r"python (?:-m )?((?:lab\.|benchmarks/|lib_loratorio)[^`#>()|;]*)", line):
                found.add(tuple(shlex.split(command.strip().rstrip(".,"))))
    # A placeholder, and the command line, which test_cli.py is about.
    return sorted(command for command in found if command[0] != "lab.NAME" and "lib_loratorio" not in command[0])


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_take_their_arguments(command, monkeypatch):
    name = command[0]
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, argv=None, namespace=None):
        raise ReadError(read(self, argv, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", list(command))
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = name.removeprefix("benchmarks/").removesuffix(".py")
    with pytest.raises(ReadError):
        importlib.import_module(module).main()


def test_there_are_commands_to_check():
    assert {"lab.evaluate", "lab.export", "benchmarks/step_cost.py", "benchmarks/gpu.py"} <= {c[0] for c in commands()}


def test_the_command_lines_example(tmp_path, monkeypatch, capsys):
    """As it stands there, but for the size and the number of steps."""
    monkeypatch.chdir(tmp_path)
    pipe = tiny.sd()
    pipe.save_pretrained("path/to/sd15-folder")
    for seed, name in enumerate(("character", "style")):
        tiny.write_lora(pipe, Path(f"{name}.safetensors"), seed)
    (line,) = re.findall(r"^loratorio (generate .*\\\n.*)$", TEXTS["command-line.md"], re.MULTILINE)
    line = line.replace("--size 512x768", "--size 64x64").replace("--steps 25", "--steps 3")
    assert cli.main(shlex.split(line.replace("\\\n", " "))) == 0
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert "6 UNet evaluations a step and picture" in capsys.readouterr().out


def tree(block):
    """The paths of a drawn tree, by its indentation."""
    paths, parents = [], []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        if not re.fullmatch(r"[\w./-]+", name) or depth > len(parents):
            continue  # the second line of a description
        parents = [*parents[:depth], name.rstrip("/")]
        paths.append("/".join(parents))
    return paths


def test_the_tree_of_the_design_is_there():
    (block,) = re.findall(r"```\w*\n(scripts/loratorio.py.*?)```", TEXTS["design.md"], re.DOTALL)
    paths = tree(block)
    assert len(paths) > 15 and [path for path in paths if not (ROOT / path).exists()] == []


def test_the_interfaces_of_the_design_are_those_of_the_engine():
    (block,) = re.findall(r"```python\n(class Composer.*?)```", TEXTS["design.md"], re.DOTALL)
    owner, shown = None, {}
    for line in block.splitlines():
        if line.startswith("class "):
            owner = re.match(r"class (\w+)", line)[1]
        elif match := re.match(r" +def (\w+)\(self(?:, )?([^)]*)\)", line):
            shown[owner, match[1]] = [part.split("=")[0] for part in match[2].split(", ") if part]
    assert len(shown) == 8
    for (owner, name), parameters in shown.items():
        signature = inspect.signature(getattr(getattr(composer, owner), name))
        assert list(signature.parameters)[1:] == parameters, (owner, name)
