"""The command line, from arguments to the written picture."""

import json
import re

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from PIL import Image
from safetensors.torch import save_file

from lib_loratorio import cli
from lib_loratorio.settings import Settings

FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""How AUTOMATIC1111 reads the last line of an infotext."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pipe = tiny.sd()
    pipe.save_pretrained(folder / "tiny-sd")
    tiny.write_lora(pipe, folder / "a" / "style.safetensors", 1, text=tiny.TEXT)
    tiny.write_lora(pipe, folder / "b" / "style.safetensors", 2)
    tiny.sdxl().save_pretrained(folder / "tiny-xl")
    tiny.write_lora(tiny.sdxl(), folder / "xl.safetensors", 3, text=tiny.TEXT)
    return folder


def arguments(folder, *more, model="tiny-sd", loras=("a/style.safetensors:0.8", "b/style.safetensors:0.6")):
    named = [part for lora in loras for part in ("--lora", str(folder / lora))]
    return ["generate", "--model", str(folder / model), *named, "--prompt", "a cat, red", "--size", "64", "--steps", "2", "--seed", "7", *more]


def fields(file):
    text = Image.open(file).text["parameters"]
    *lines, last = text.split("\n")
    found = dict(FIELD.findall(last))
    return lines, {key: json.loads(value) if value.startswith('"') else value for key, value in found.items()}


def test_pictures_maps_and_metadata(folder, tmp_path, capsys):
    assert cli.main(arguments(folder, "--negative", "blurry", "--batch", "2", "--maps", "--verify", "--cfg", "4", "--out", str(tmp_path))) == 0
    out = capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["7-maps.png", "7.png", "8-maps.png", "8.png"]
    assert all(str(tmp_path / name) in out for name in ("7.png", "8-maps.png"))
    assert re.search(r"\d s, 6 UNet evaluations a step and picture", out)
    assert float(re.search(r"verify: max relative error (\S+) over 2 calls", out)[1]) < 1e-4
    lines, found = fields(tmp_path / "8.png")
    assert lines == ["a cat, red <lora:style:0.8> <lora:style:0.6>", "Negative prompt: blurry"]
    settings = Settings.from_infotext(found.pop("LoRAtorio"))
    assert settings == Settings(enabled=True, verify=True)
    version = found.pop("Version")
    assert version.startswith("loratorio-")
    assert found == {"Steps": "2", "Sampler": "DDIM", "CFG scale": "4.0", "Seed": "8", "Size": "64x64", "Model": "tiny-sd"}
    panel = Image.open(tmp_path / "7-maps.png")
    assert panel.width > 4 * 256 and panel.height > 256


def test_batch_is_the_pictures_one_by_one(folder, tmp_path):
    assert cli.main(arguments(folder, "--batch", "2", "--out", str(tmp_path / "two.png"))) == 0
    assert cli.main(arguments(folder, "--seed", "8", "--out", str(tmp_path / "one.png"))) == 0
    two, one = (Image.open(tmp_path / name).convert("RGB") for name in ("two-2.png", "one.png"))
    assert max(abs(a - b) for a, b in zip(two.tobytes(), one.tobytes())) <= 1


@pytest.mark.parametrize("method", ["composite", "switch", "merge"])
def test_other_methods(folder, tmp_path, method):
    assert cli.main(arguments(folder, "--method", method, "--scheduler", "dpmpp_2m_karras", "--out", str(tmp_path / "a.png"))) == 0
    _, found = fields(tmp_path / "a.png")
    assert (found["Sampler"], found["Schedule type"]) == ("DPM++ 2M", "Karras") and f"method={method}" in found["LoRAtorio"]


def test_sdxl_folder(folder, tmp_path):
    assert cli.main(arguments(folder, "--out", str(tmp_path), model="tiny-xl", loras=("xl.safetensors",))) == 0
    assert (tmp_path / "7.png").is_file()
    assert cli.main(arguments(folder, "--out", str(tmp_path), model="tiny-xl", loras=("xl.safetensors",))) == 0
    assert (tmp_path / "7-2.png").is_file()


@pytest.mark.parametrize("more, match", [
    (("--size", "60"), "multiples of 8"),
    (("--size", "big"), "no size"),
    (("--steps", "0"), "0 is below 1"),
    (("--cfg", "much"), "'much' is no number"),
    (("--temperature", "0"), "temperature is '0'; it must be a number from"),
    (("--start", "0.5", "--end", "0.5"), "start is 0.5"),
    (("--scheduler", "magic"), "no scheduler 'magic'; there are ddim, "),
    (("--model", "/nowhere/model"), "there is no file /nowhere/model"),
    (("--lora", "/nowhere/a.safetensors:0.5"), "there is no file /nowhere/a.safetensors"),
    (("--lora", "/nowhere/a.safetensors:abc"), "the strength 'abc' in"),
    (("--maps", "--method", "merge"), "--maps needs the method loratorio"),
    (("--prompt", "a <lora:b:1>"), "give each LoRA with --lora"),
    (("--device", "cuda:99"), "the device 'cuda:99' cannot be used"),
])
def test_errors_are_one_line(folder, capsys, more, match):
    assert cli.main(arguments(folder, *more)) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


def test_lora_of_another_kind_of_model(folder, capsys, tmp_path):
    assert cli.main(arguments(folder, "--out", str(tmp_path), loras=("xl.safetensors",))) == 2
    error = capsys.readouterr().err
    assert "matches no layer of this model" in error and error.count("\n") == 1


def test_models_that_cannot_be_used(folder, capsys, tmp_path):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "empty").mkdir()
    save_file({}, tmp_path / "other.safetensors")
    for model, match in (("flux", "is a FluxPipeline, which is not supported"), ("empty", "no model_index.json"), ("other.safetensors", "is no checkpoint")):
        assert cli.main(arguments(folder, model=tmp_path / model)) == 2
        assert match in capsys.readouterr().err


def test_missing_packages(folder, capsys, monkeypatch):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name in ("diffusers", "peft") else find(name))
    assert cli.main(arguments(folder)) == 2
    assert "needs diffusers, peft: pip install torch diffusers" in capsys.readouterr().err


@pytest.mark.parametrize("text, path, strength", [
    ("a.safetensors", "a.safetensors", 1.0),
    ("a.safetensors:0.8", "a.safetensors", 0.8),
    ("dir.v1/a.b.safetensors:-1", "dir.v1/a.b.safetensors", -1.0),
    (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
    (r"C:\loras\a.safetensors:.5", r"C:\loras\a.safetensors", 0.5),
])
def test_lora_arguments(text, path, strength):
    found = cli.parse_lora(text)
    assert (str(found[0]), found[1]) == (path, strength)
