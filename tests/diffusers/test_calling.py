"""How `composed` is called, what it answers to other ways, and what the composition tells afterwards."""

import threading
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import numpy as np
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_loratorio.deltas import bank
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.hosts.diffusers.arguments import read_loras, read_settings
from lib_loratorio.hosts.diffusers.loader import LOADING
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return [tiny.write_lora(pipe, folder / f"{name}.safetensors", seed) for seed, name in enumerate(("a", "b", "c"))]


def made(pipe, seed=1, count=1, **kwargs):
    kwargs = {"output_type": "latent", "num_inference_steps": 2, **kwargs}
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]
    return pipe(["a cat"] * count, height=tiny.SIZE, width=tiny.SIZE, generator=generators, **kwargs).images


A, B = Lora(Path("a")), Lora(Path("b"), 0.5)
WINDOW = LoraTag(end=0.5)


@pytest.mark.parametrize(
    "given, expected",
    [
        ("a", [A]),
        (Path("a"), [A]),
        (("a", 1), [A]),
        (("b", np.float32(0.5)), [B]),
        (("b", torch.tensor(0.5)), [B]),
        (("b", torch.tensor([0.5])), [B]),
        (("b", np.array(0.5)), [B]),
        (Lora("b", 0.5), [B]),
        (["a", ("b", 0.5)], [A, B]),
        (("a", "b"), [A, B._replace(strength=1.0)]),
        (("a", ("b", 0.5)), [A, B]),
        ((A, B), [A, B]),
        ([["a", 1], ["b", 0.5]], [A, B]),
        ({"a": 1, "b": np.float64(0.5)}, [A, B]),
        ([{"a": 1.0}, B], [A, B]),
        ([("a", 1, WINDOW)], [A._replace(tag=WINDOW)]),
        (("a", 1.0, WINDOW, True), [A._replace(tag=WINDOW, pooled=True)]),
        ((one for one in ("a", ("b", 0.5))), [A, B]),
        ([], []),
    ],
)
def test_forms_of_loras(given, expected):
    found = [lora._replace(path=Path(lora.path)) for lora in read_loras(given)]
    assert found == expected and all(type(lora.strength) is float for lora in found)


@pytest.mark.parametrize(
    "given, match",
    [
        (None, "the LoRAs are None; give a file, \\(file, strength\\)"),
        (3, "3 is no LoRA; give a file, \\(file, strength\\)"),
        ([0.8, "a"], "the list of LoRAs has 0.8; give a file"),
        ([None], "the list of LoRAs has None; give a file"),
        (("a", True), "the strength of a is True; it must be a number"),
        ([("a", "0.8")], "the strength of a is '0.8'; it must be a number"),
        ({"a": "0.8"}, "the strength of a is '0.8'; it must be a number"),
        ({"a": None}, "the strength of a is None; it must be a number"),
        (("a", torch.ones(2)), "the strength of a is tensor"),
        ([("a", float("nan"))], "the strength of a is nan; it must be a number"),
        ([("a", {"unet": 0.5})], "the strength of a is a dict; give one number"),
        ([("a", 0.5, "global")], "the LoRA a has 'global' for its tag; give a LoraTag"),
        ([("a", 0.5, 0, 1, 2, 3, 4, 5, 6, 7)], "a LoRA is given as \\('a', 0.5"),
        ([()], "a LoRA is given as \\(\\); give a file"),
        ({3: 0.5}, "the LoRA 3 is no file or folder"),
        ("", "the LoRA '' is no file or folder"),
    ],
)
def test_other_forms_are_told_the_right_one_in_a_sentence(given, match):
    with pytest.raises(LoratorioError, match=match) as error:
        read_loras(given)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_settings_by_name():
    assert read_settings(None, {}) == Settings()
    assert read_settings(Settings(lam=1), {"temperature": np.float32(0.5)}) == Settings(lam=1, temperature=0.5)
    assert read_settings({"lam": 1}, {"top_k": torch.tensor(2)}) == Settings(lam=1, top_k=2)
    for settings, changes, match in (
        (None, {"temprature": 1}, "no argument 'temprature'; the settings are method, patch_size, temperature"),
        (None, {"temperature": -1}, "temperature is -1; it must be a number from 1e-06 up"),
        (("b", 0.5), {}, "the settings are \\('b', 0.5\\); give Settings\\(...\\) or single ones by name"),
        ("b", {}, "several LoRAs as one list"),
        ({"lamda": 1}, {}, "unknown setting lamda"),
        (None, {"enabled": False}, "enabled is a setting of the WebUIs; here, leave"),
        (None, {"maps": True}, "composition.panels"),
        ({"pool": "a"}, {}, "composed\\(..., pool="),
    ):
        with pytest.raises(LoratorioError, match=match):
            read_settings(settings, changes)


def test_every_form_makes_the_same_picture(pipe, files):
    a, b, _ = files
    with composed(pipe, [(a, 0.8), (b, 1.0)], Settings(temperature=0.05)):
        expected = made(pipe)
    for loras in ({a: np.float32(0.8), str(b): 1}, (Lora(a, 0.8), str(b)), [[str(a), torch.tensor(0.8)], b]):
        with composed(pipe, loras, temperature=0.05):
            torch.testing.assert_close(made(pipe), expected)
    with composed(pipe, (a, 0.8), pool=b, temperature=0.05) as composition:
        torch.testing.assert_close(made(pipe), expected)
        assert [adapter.pooled for adapter in composition.adapters] == [False, True]


def test_calls_without_loras_or_with_the_arguments_swapped(pipe, files):
    for args, match in (
        ((pipe,), "there is no LoRA of a strength other than 0"),
        ((files[0], pipe), "PosixPath is no|PosixPath is not supported"),
        ((pipe, pipe), "a StableDiffusionPipeline is no LoRA; give a file"),
        ((pipe, files[0], 0.8), "the settings are 0.8; give Settings"),
        ((pipe, ("none", "0.8")), "there is no LoRA file none"),
    ):
        with pytest.raises(LoratorioError, match=match), composed(*args):
            pass


def test_what_a_composition_tells(pipe, files):
    with composed(pipe, dict.fromkeys(files[:2], 1), patch_size=2, verify=True) as composition:
        with pytest.raises(LoratorioError, match="no LoRA has been weighed"):
            composition.map_images()
        assert composition.shares == {}
        made(pipe, count=2, output_type="pil")
        pictures = made(pipe, count=2, output_type="pil")
    assert composition.evaluations == 2 * 2 * 2 * 3
    shares = composition.shares
    assert list(shares) == ["a", "b"] and sum(shares["a"] + shares["b"]) == pytest.approx(2)
    maps = composition.map_images()
    assert [list(of_picture) for of_picture in maps] == [["a", "b"]] * 2 and maps[0]["a"].size == (4, 4)
    mean = np.asarray(maps[1]["b"]).mean() / 255
    assert mean == pytest.approx(shares["b"][1], abs=0.003) and mean != pytest.approx(shares["b"][0], abs=1e-4)
    large = composition.map_images((64, 64))[1]["b"]
    assert np.array_equal(np.asarray(large)[::16, ::16], np.asarray(maps[1]["b"]))
    panels = composition.panels(pictures)
    assert len(panels) == 2 and all(panel.width > 4 * 256 for panel in panels)
    assert isinstance(composition.panels(pictures)[0], Image.Image)
    with pytest.raises(LoratorioError, match="takes the 2 PIL images"):
        composition.panels(pictures[0])
    told = repr(composition)
    assert told.startswith("<loratorio of a, b; 24 evaluations in 2 calls of the denoiser; a ")
    assert "max relative error" in told and composition.verified in told


# Where a LoRA comes from


def test_loras_that_the_pipeline_has_are_named(pipe, files):
    """By their adapters' names: composed as their files are, and left in the pipeline as they were."""
    with composed(pipe, [(files[0], 0.8), (files[1], 0.6)]):
        expected = made(pipe)
    for file, name in zip(files, ("pixel", "toy", "other")):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["pixel", "other"], [0.3, 0.4])
    try:
        before = made(pipe)
        for loras in ({"pixel": 0.8, "toy": 0.6}, [("pixel", 0.8), (files[1], 0.6)]):
            with composed(pipe, loras, verify=True) as composition:
                torch.testing.assert_close(made(pipe), expected, rtol=1e-4, atol=1e-4)
            assert composition.labels[0] == "pixel" and 0 < composition.tally.worst < 1e-4
            assert torch.equal(made(pipe), before)
        assert pipe.get_list_adapters() == {"unet": ["pixel", "toy", "other"]}
        assert pipe.get_active_adapters() == ["pixel", "other"]
        for loras, match in (
            (["pixel", ("pixel", 0.5)], "the pipeline's LoRA pixel is asked for twice"),
            ("pixle", "no LoRA file pixle, and the pipeline's LoRAs are other, pixel, toy"),
            (Lora("toy", 1.0, LoraTag.read({"lbw": "ALL"}, "toy")), "toy has lbw=ALL, which needs its file"),
        ):
            with pytest.raises(LoratorioError, match=match), composed(pipe, loras):
                pass
        with composed(pipe, "pixel", trigger_words=True):
            made(pipe)
    finally:
        pipe.unload_lora_weights()


def test_state_dicts(pipe, files):
    a, b = (load_file(file) for file in files[:2])
    with composed(pipe, [(files[0], 0.8), files[1]]):
        expected = made(pipe)
    for loras in ([(a, 0.8), Lora(b, name="toy")], ((a, 0.8), b)):
        with composed(pipe, loras) as composition:
            torch.testing.assert_close(made(pipe), expected)
    assert composition.labels == ["state dict (1)", "state dict (2)"]
    with composed(pipe, [a, Lora(b, name="toy")]) as composition:
        assert composition.labels == ["state dict", "toy"]
    broken = {key: tensor for key, tensor in a.items() if "lora_up" not in key}
    with pytest.raises(LoratorioError, match="the LoRA 'state dict' is incomplete"), composed(pipe, broken):
        pass
    with pytest.raises(LoratorioError, match="a LoRA's state dict has other things than tensors"):
        read_loras({**a, "alpha": 3})


def test_repositories_and_folders_of_several_files(pipe, files, monkeypatch, caplog):
    folder = files[0].parent
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        if "nobody" in repository:
            raise ConnectionError("we are\noffline")
        return str(folder)

    def hf_hub_download(repository, name):
        asked.append((repository, name))
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    with composed(pipe, [Lora(folder, 0.8, weight_name="a.safetensors"), files[1]]) as composition:
        expected = made(pipe)
        assert composition.labels == ["a", "b"]
    with composed(pipe, [Lora("someone/loras", 0.8, weight_name="a.safetensors"), files[1]]) as composition:
        assert torch.equal(made(pipe), expected) and composition.labels == ["a", "b"]
    assert asked == [("someone/loras", "a.safetensors")]
    for path, match in (
        ("someone/loras", "is a folder with 3 .safetensors files, none of which is called"),
        ("nobody/loras", "no LoRA file nobody/loras, and the hub does not give it \\(we are\\)"),
        ("loras/a.safetensors", "there is no LoRA file loras/a.safetensors"),
    ):
        with pytest.raises(LoratorioError, match=match), composed(pipe, path):
            pass
    assert len(asked) == 3


# Several at once


def test_two_pipelines_in_two_threads(pipe, files):
    pipes = [pipe, tiny.sd("v_prediction")]
    alone, together = [], [None, None]
    for one in pipes:
        with composed(one, files[:2]):
            alone.append(made(one))
    ready = threading.Barrier(2, timeout=60)

    def work(number):
        ready.wait()
        with composed(pipes[number], files[:2]):
            ready.wait()
            together[number] = made(pipes[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together):
        assert torch.equal(expected, found)


def test_loading_is_locked(pipe, files, monkeypatch):
    """Of what loads and what puts back, one is at work at a time, whichever thread it is in."""
    seen = []

    def others_may():
        taken = []

        def take():
            taken.append(LOADING.acquire(blocking=False))
            if taken[0]:
                LOADING.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return taken[0]

    load = pipe.load_lora_weights
    monkeypatch.setattr(
        pipe, "load_lora_weights", lambda *args, **kwargs: seen.append(others_may()) or load(*args, **kwargs)
    )
    with composed(pipe, files[0]):
        seen.append(others_may())
    assert seen == [False, True]


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch without stances")
def test_the_compilers_stance_comes_back_after_blocks_that_overlap():
    from torch._dynamo import eval_frame

    before = eval_frame._stance.stance
    first, second = bank.AdapterBank({}, [], 0).attached(), bank.AdapterBank({}, [], 0).attached()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert eval_frame._stance.stance == before
