"""The examples of docs/diffusers.md, run on tiny random models, in two steps and at 64 pixels."""

import logging
import re
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import diffusers
import pipelines
import tiny_pipelines as tiny

GUIDE = Path(__file__).parents[2] / "docs" / "diffusers.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
MODELS = {
    "": (tiny.sdxl, tiny.ATTENTION),
    "sd15-": (tiny.sd, tiny.ATTENTION),
    "flux-": (tiny.flux, tiny.DIT_ATTENTION),
    "sd3-": (tiny.sd3, tiny.DIT_ATTENTION),
}
"""By the beginnings of LoRA files' names."""


def prefix_of(name):
    """Which of these a pipeline's class is for."""
    return next((prefix for prefix, part in (("", "XL"), ("flux-", "Flux"), ("sd3-", "n3")) if part in name), "sd15-")


@pytest.fixture
def tiny_world(monkeypatch, tmp_path):
    """The files that the guide names, and pipelines that are tiny wherever they come from."""
    monkeypatch.chdir(tmp_path)
    for prefix, (make, layers) in MODELS.items():
        pipe = make()
        for seed, name in enumerate(("character", "style")):
            tiny.write_lora(pipe, tmp_path / f"{prefix}{name}.safetensors", seed, layers, tiny.TEXT, layout="diffusers")
    tiny.write_lora(tiny.sd(), tmp_path / "lcm.safetensors", 9)
    for name in ("sketch", "photo", "edges", "mask"):
        pipelines.picture().save(f"{name}.png")

    def from_pretrained(cls, path, **parts):
        pipe = MODELS[prefix_of(cls.__name__)][0]()
        more = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
        found = cls(**pipe.components, **parts, **more)
        found.set_progress_bar_config(disable=True)
        return found

    def small(cls):
        call = cls.__call__

        def called(self, *args, **kwargs):
            size = {} if kwargs.get("image") is not None else {"height": tiny.SIZE, "width": tiny.SIZE}
            return call(self, *args, **{**kwargs, **size, "num_inference_steps": 2})

        monkeypatch.setattr(cls, "__call__", called)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    net = classmethod(lambda cls, path: tiny.controlnet(tiny.sd()))
    monkeypatch.setattr(diffusers.ControlNetModel, "from_pretrained", net)
    for name in set(re.findall(r"\w+Pipeline\b", "".join(BLOCKS))):
        small(getattr(diffusers, name))

    def modular(cls, path):
        pipe = diffusers.modular_pipelines.StableDiffusion3AutoBlocks().init_pipeline()
        parts = {name: part for name, part in tiny.sd3().components.items() if part is not None}
        pipe.update_components(**parts)
        monkeypatch.setattr(type(pipe), "load_components", lambda self: None)
        return pipe

    monkeypatch.setattr(diffusers.ModularPipeline, "from_pretrained", classmethod(modular))
    return tmp_path


def test_the_example_of_the_command_lines_page_works(tiny_world, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (GUIDE.parent / "command-line.md").read_text("utf-8"), re.DOTALL)
    names = {}
    exec(compile(block, "command-line.md", "exec"), names)
    assert capsys.readouterr().out.startswith("12 {'character': [0.")
    assert len(names["pictures"]) == 1 and (tiny_world / "maps.png").exists()


def test_every_example_works(tiny_world, capsys, caplog):
    names = {}
    told = []
    for block in BLOCKS:
        exec(compile(block, GUIDE.name, "exec"), names)
        told.append(capsys.readouterr().out)
    assert len(BLOCKS) == 7
    assert told[0].startswith("<loratorio of character, style; 12 evaluations in 2 calls of the denoiser; character ")
    evaluations, shares, verified = told[2].splitlines()
    assert evaluations == "8" and shares.startswith("{'character': [0.")
    assert float(re.search(r"error (\S+) over 2 calls", verified)[1]) < 1e-4
    assert names["grey"].size == (512, 512)
    assert names["composition"].evaluations == 2 * 3
    assert {"cat.png", "maps.png"} <= {file.name for file in tiny_world.iterdir()}
    assert [message for message in caplog.messages if "lcm" not in message] == []
    assert logging.getLogger().level <= logging.WARNING
