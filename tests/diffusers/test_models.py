"""Model folders that are incomplete or broken: named in one sentence, before anything is computed with them."""

import json
import shutil

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_pipelines as tiny
import torch
from safetensors.torch import save_file

from lab import export
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.models import load_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of an SD and an SDXL model, and the former as a single file."""
    folder = tmp_path_factory.mktemp("models")
    pipe = tiny.sd()
    pipe.save_pretrained(folder / "sd")
    tiny.sdxl().save_pretrained(folder / "xl")
    save_file(
        {key: value.contiguous() for key, value in export.original_layout(pipe).items()}, folder / "a.safetensors"
    )
    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """A copy without weights, of which files are changed or taken away."""

    def change(name="sd", remove=(), write=(), weights=False):
        ignore = None if weights else shutil.ignore_patterns("*.safetensors")
        folder = shutil.copytree(saved / name, tmp_path / "model", ignore=ignore)
        for path in remove:
            shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
        for path, contents in write:
            (folder / path).write_bytes(contents)
        return folder

    return change


def refused(saved, folder, match, name="sd"):
    """As a model, and as the configuration of a single file."""
    with pytest.raises(LoratorioError, match=match) as error:
        load_pipeline(folder, None, torch.float32)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    if name == "sd":
        with pytest.raises(LoratorioError, match=f"the configuration .*{match}"):
            load_pipeline(saved / "a.safetensors", folder, torch.float32)


TOKENIZER = "there is no {0}/tokenizer.json or {0}/vocab.json in it"


@pytest.mark.parametrize(
    "name, part, match",
    [
        ("sd", "tokenizer", TOKENIZER.format("tokenizer")),
        ("sd", "scheduler", "there is no scheduler/scheduler_config.json in it"),
        ("sd", "vae", "there is no vae/config.json in it"),
        ("sd", "unet", "there is no unet/config.json in it"),
        ("sd", "text_encoder", "there is no text_encoder/config.json in it"),
        ("xl", "tokenizer", TOKENIZER.format("tokenizer")),
        ("xl", "tokenizer_2", TOKENIZER.format("tokenizer_2")),
        ("xl", "text_encoder_2", "there is no text_encoder_2/config.json in it"),
    ],
)
def test_a_part_that_is_missing(saved, changed, name, part, match):
    refused(saved, changed(name, [part]), f"is incomplete: {match}", name)


@pytest.mark.parametrize("nothing", [None, [None, None]])
@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "vae", "unet", "text_encoder"])
def test_a_part_that_the_index_does_not_name(saved, changed, part, nothing):
    index = json.loads((saved / "sd" / "model_index.json").read_text()) | {part: nothing}
    if nothing is None:
        del index[part]
    folder = changed(write=[("model_index.json", json.dumps(index).encode())])
    refused(saved, folder, f"is incomplete: its model_index.json names no {part}")


@pytest.mark.parametrize(
    "file, contents, match",
    [
        ("model_index.json", b"{nope", "is broken: its model_index.json cannot be read"),
        ("model_index.json", b"\xff\xfe\x00", "is broken: its model_index.json cannot be read"),
        ("model_index.json", b"", "is broken: its model_index.json cannot be read"),
        ("model_index.json", b"[]", "is broken: its model_index.json is no object"),
        ("model_index.json", b"{}", "is broken: its model_index.json names no pipeline"),
        ("unet/config.json", b"{", "is broken: its unet/config.json cannot be read"),
        ("vae/config.json", b"3", "is broken: its vae/config.json is no object"),
        ("scheduler/scheduler_config.json", b"{", "is broken: its scheduler/scheduler_config.json cannot be read"),
        ("tokenizer/tokenizer_config.json", b"{", "is broken: its tokenizer/tokenizer_config.json cannot be read"),
    ],
)
def test_json_that_is_broken(saved, changed, file, contents, match):
    refused(saved, changed(write=[(file, contents)]), match)


@pytest.mark.parametrize(
    "remove, write",
    [
        (["tokenizer/tokenizer.json"], [("tokenizer/vocab.json", b'{"a": 0}'), ("tokenizer/merges.txt", b"")]),
        ([], [("tokenizer/tokenizer.json", b"{")]),
    ],
)
def test_a_tokenizer_that_knows_no_words(changed, remove, write):
    folder = changed(remove=remove, write=write, weights=True)
    with pytest.raises(LoratorioError, match=r"tokenizer .* is broken: it knows|cannot be loaded"):
        load_pipeline(folder, None, torch.float32)


def test_a_tokenizer_without_configuration_has_the_text_encoders_length(changed):
    folder = changed(remove=["tokenizer/tokenizer_config.json"], weights=True)
    assert load_pipeline(folder, None, torch.float32).tokenizer.model_max_length == 77


def test_parts_that_make_no_picture_may_be_missing(saved, changed):
    """Of a download without the safety checker."""
    index = json.loads((saved / "sd" / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    folder = changed(write=[("model_index.json", json.dumps(index).encode())], weights=True)
    assert load_pipeline(folder, None, torch.float32).feature_extractor is None


def test_a_configuration_for_another_kind_of_model(saved):
    with pytest.raises(LoratorioError, match=r"xl is for a StableDiffusionXLPipeline, which .*a.safetensors is not"):
        load_pipeline(saved / "a.safetensors", saved / "xl", torch.float32)


@pytest.mark.parametrize("contents", [b"", b"no tensors"])
def test_weights_that_are_broken(saved, changed, contents):
    folder = changed(write=[("unet/diffusion_pytorch_model.safetensors", contents)], weights=True)
    with pytest.raises(LoratorioError, match="cannot be loaded") as error:
        load_pipeline(folder, None, torch.float32)
    assert "\n" not in str(error.value)
