"""The command line, from arguments to the written picture."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_loratorio import cli
from lib_loratorio.hosts.diffusers.models import load_pipeline
from lib_loratorio.settings import SETTINGS, Settings

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
    return [
        "generate",
        "--model",
        str(folder / model),
        *named,
        "--prompt",
        "a cat, red",
        "--size",
        "64",
        "--steps",
        "2",
        "--seed",
        "7",
        *more,
    ]


def fields(file):
    text = Image.open(file).text["parameters"]
    *lines, last = text.split("\n")
    found = dict(FIELD.findall(last))
    return lines, {key: json.loads(value) if value.startswith('"') else value for key, value in found.items()}


def test_pictures_maps_and_metadata(folder, tmp_path, capsys):
    assert (
        cli.main(
            arguments(
                folder,
                "--negative",
                "blurry",
                "--batch",
                "2",
                "--maps",
                "--verify",
                "--cfg",
                "4",
                "--out",
                str(tmp_path),
            )
        )
        == 0
    )
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
    assert found == {
        "Steps": "2",
        "Sampler": "DDIM",
        "CFG scale": "4.0",
        "Seed": "8",
        "Size": "64x64",
        "Model": "tiny-sd",
    }
    panel = Image.open(tmp_path / "7-maps.png")
    assert panel.width > 4 * 256 and panel.height > 256


def test_batch_is_the_pictures_one_by_one(folder, tmp_path):
    assert cli.main(arguments(folder, "--batch", "2", "--out", str(tmp_path / "two.png"))) == 0
    assert cli.main(arguments(folder, "--seed", "8", "--out", str(tmp_path / "one.png"))) == 0
    two, one = (Image.open(tmp_path / name).convert("RGB") for name in ("two-2.png", "one.png"))
    assert max(abs(a - b) for a, b in zip(two.tobytes(), one.tobytes())) <= 1


@pytest.mark.parametrize("method", ["composite", "switch", "merge"])
def test_other_methods(folder, tmp_path, method):
    assert (
        cli.main(
            arguments(folder, "--method", method, "--scheduler", "dpmpp_2m_karras", "--out", str(tmp_path / "a.png"))
        )
        == 0
    )
    _, found = fields(tmp_path / "a.png")
    assert (found["Sampler"], found["Schedule type"]) == ("DPM++ 2M", "Karras") and f"method={method}" in found[
        "LoRAtorio"
    ]


def test_pool_is_scouted(folder, tmp_path, capsys):
    """Two LoRAs in the pool, too weak to win a place beside the prompt's: all three at first, then that one."""
    pool = tmp_path / "pool"
    pool.mkdir()
    for name, source in (("one", "a"), ("two", "b")):
        shutil.copy(folder / source / "style.safetensors", pool / f"{name}.safetensors")
    scouting = ("--pool", f"{pool}:0.01", "--pool-mode", "scout", "--scout", "0.5", "--scout-share", "0.9")
    assert cli.main(arguments(folder, *scouting, "--out", str(tmp_path / "a.png"), loras=("b/style.safetensors",))) == 0
    out = capsys.readouterr().out
    told = "step 1: style, one, two; step 2: style"
    assert (
        f"pool: {told}" in out and "5.5 UNet evaluations a step and picture" in out
    )  # 8 in the first step, 3 in the second
    lines, found = fields(tmp_path / "a.png")
    assert lines == ["a cat, red <lora:style:1>"] and found["LoRAtorio pool"] == told
    settings = Settings.from_infotext(found["LoRAtorio"])
    assert (settings.pool, settings.pool_mode, settings.scout, settings.scout_share) == (
        "one:0.01,two:0.01",
        "scout",
        0.5,
        0.9,
    )


def test_pool_alone_and_a_lora_that_is_in_both(folder, tmp_path, capsys):
    pool = ("--pool", str(folder / "a"), "--pool", str(folder / "b" / "style.safetensors:0.5"))
    assert cli.main(arguments(folder, *pool, "--out", str(tmp_path / "a.png"), loras=())) == 0
    assert "pool: step 1: style (1), style (2)" in capsys.readouterr().out
    assert cli.main(arguments(folder, *pool, "--out", str(tmp_path / "b.png"), loras=("b/style.safetensors:0.8",))) == 0
    assert Settings.from_infotext(fields(tmp_path / "b.png")[1]["LoRAtorio"]).pool == "style:1"


@pytest.mark.parametrize("part, start", [(":lt=global", "0"), ("", "0.9")])
def test_no_maps_where_nothing_was_weighed(folder, tmp_path, capsys, part, start):
    assert (
        cli.main(
            arguments(
                folder, "--maps", "--start", start, "--out", str(tmp_path), loras=(f"a/style.safetensors:0.8{part}",)
            )
        )
        == 0
    )
    assert "maps: no LoRA was weighed, so there are none\n" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["7.png"]


@pytest.mark.parametrize(
    "pool, expected",
    [
        (("b", "b/style.safetensors:0.5"), "style:1"),
        (("b/style.safetensors:0.5", "b"), "style:0.5"),
        (("b/style.safetensors:0", "b"), ""),
    ],
)
def test_a_file_that_the_pool_names_twice_competes_once(folder, tmp_path, pool, expected):
    pool = [part for name in pool for part in ("--pool", str(folder / name))]
    assert cli.main(arguments(folder, *pool, "--out", str(tmp_path / "a.png"), loras=("a/style.safetensors",))) == 0
    _, found = fields(tmp_path / "a.png")
    assert Settings.from_infotext(found["LoRAtorio"]).pool == expected
    assert found.get("LoRAtorio pool") == ("step 1: style (1), style (2)" if expected else None)


def test_merge_has_no_pool(folder, tmp_path, capsys):
    pool = ("--method", "merge", "--pool", str(folder / "b"))
    assert cli.main(arguments(folder, *pool, "--out", str(tmp_path / "a.png"), loras=("a/style.safetensors",))) == 0
    assert "the method merge has no pool; only the LoRAs of --lora are merged.\n" in capsys.readouterr().err
    assert Settings.from_infotext(fields(tmp_path / "a.png")[1]["LoRAtorio"]).pool == ""
    assert cli.main(arguments(folder, *pool, loras=())) == 2
    assert "give at least one with --lora" in capsys.readouterr().err


def test_misfits_in_a_pool_are_left_out_and_named(folder, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr("lib_loratorio.hosts.diffusers.other_kinds.is_known", lambda: False)
    pool = tmp_path / "pool"
    pool.mkdir()
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(2)}, pool / "loha.safetensors")
    misfits = (
        r"^LoRAtorio: 2 LoRAs of the pool cannot be used: loha \(is a LoHa file[^()]*\); "
        r"xl \(.*: it is for another kind of model\)"
    )
    shutil.copy(folder / "xl.safetensors", pool)
    assert cli.main(arguments(folder, "--pool", str(pool), loras=())) == 2
    assert re.search(f"{misfits}; there is no other LoRA.$", capsys.readouterr().err, re.MULTILINE)
    shutil.copy(folder / "b" / "style.safetensors", pool / "zebra.safetensors")
    caplog.clear()
    assert (
        cli.main(
            arguments(
                folder,
                "--pool",
                str(pool),
                "--out",
                str(tmp_path / "a.png"),
                "--verify",
                loras=("a/style.safetensors",),
            )
        )
        == 0
    )
    assert len(caplog.messages) == 1 and re.search(f"{misfits}; left out.$", caplog.messages[0])
    assert "pool: step 1: style, zebra" in capsys.readouterr().out


def test_sdxl_folder(folder, tmp_path):
    assert cli.main(arguments(folder, "--out", str(tmp_path), model="tiny-xl", loras=("xl.safetensors",))) == 0
    assert (tmp_path / "7.png").is_file()
    assert cli.main(arguments(folder, "--out", str(tmp_path), model="tiny-xl", loras=("xl.safetensors",))) == 0
    assert (tmp_path / "7-2.png").is_file()


@pytest.fixture(scope="module")
def transformers(folder):
    """Folders of SD 3 and FLUX.1, and LoRAs for them."""
    for name, pipe in (("sd3", tiny.sd3()), ("flux", tiny.flux()), ("schnell", tiny.flux(guidance_embeds=False))):
        pipe.save_pretrained(folder / name)
        for number in (1, 2):
            path = folder / name / f"{number}.safetensors"
            tiny.write_lora(pipe, path, number, tiny.DIT_ATTENTION, tiny.TEXT, layout="diffusers")
    return folder


def of_transformer(folder, tmp_path, name, *more, model=None):
    loras = (f"{name}/1.safetensors:0.8", f"{name}/2.safetensors:0.6")
    out = ("--out", str(tmp_path / "a.png"))
    return cli.main(arguments(folder, *out, "--verify", *more, model=model or name, loras=loras))


@pytest.mark.parametrize(
    "name, more, rows, told",
    [
        ("sd3", ("--negative", "blurry"), 6, {"CFG scale": "7.0"}),
        ("sd3", ("--cfg", "1"), 3, {"CFG scale": "1.0"}),
        ("flux", (), 3, {"CFG scale": "1.0", "Distilled CFG Scale": "3.5"}),
        (
            "flux",
            ("--cfg", "2", "--negative", "blurry", "--distilled-cfg", "1.5", "--scheduler", "euler"),
            6,
            {"CFG scale": "2.0", "Distilled CFG Scale": "1.5"},
        ),
        ("schnell", ("--maps",), 3, {"CFG scale": "1.0"}),
    ],
)
def test_sd3_and_flux(transformers, tmp_path, capsys, name, more, rows, told):
    assert of_transformer(transformers, tmp_path, name, *more) == 0
    out = capsys.readouterr().out
    assert f"{rows} transformer evaluations a step and picture" in out
    assert float(re.search(r"verify: max relative error (\S+) over", out)[1]) < 1e-4
    lines, found = fields(tmp_path / "a.png")
    assert lines[1:] == (["Negative prompt: blurry"] if "blurry" in more else [])
    guidance = {key: value for key, value in found.items() if "CFG" in key}
    assert guidance == told and (found["Sampler"], found["Model"], found["Size"]) == ("Euler", name, "64x64")
    assert (tmp_path / "a-maps.png").is_file() == ("--maps" in more)


def test_guidance_reaches_the_model(transformers, tmp_path):
    seen = []
    for more in ((), ("--distilled-cfg", "8"), ("--cfg", "3")):
        assert of_transformer(transformers, tmp_path, "flux", *more) == 0
        seen.append(Image.open(tmp_path / "a.png").tobytes())
    assert len({*seen}) == 3


def test_a_model_by_its_name_on_the_hub(transformers, tmp_path, capsys, monkeypatch):
    asked = []

    def download(name):
        asked.append(name)
        if name != "someone/flux":
            raise OSError("404 Client Error\nand its details")
        return str(transformers / "flux")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    assert of_transformer(transformers, tmp_path, "flux", "--model", "someone/flux") == 0
    assert fields(tmp_path / "a.png")[1]["Model"] == "flux" and asked == ["someone/flux"]
    capsys.readouterr()
    assert of_transformer(transformers, tmp_path, "flux", "--model", "models/flux") == 2
    expected = "there is no model models/flux, and the hub does not give it (404 Client Error).\n"
    assert capsys.readouterr().err == f"LoRAtorio: {expected}"


def test_a_folder_of_another_class_makes_pictures_of_text(transformers, tmp_path):
    model = tmp_path / "img2img"
    shutil.copytree(transformers / "sd3", model)
    index = json.loads((model / "model_index.json").read_text()) | {"_class_name": "StableDiffusion3Img2ImgPipeline"}
    (model / "model_index.json").write_text(json.dumps(index))
    assert type(load_pipeline(model, None, torch.float32)).__name__ == "StableDiffusion3Pipeline"


def test_half_precision_is_the_models_own(transformers):
    assert load_pipeline(transformers / "flux", None, None).transformer.dtype == torch.bfloat16
    assert load_pipeline(transformers / "tiny-sd", None, None).unet.dtype == torch.float16


@pytest.mark.parametrize(
    "name, more, match",
    [
        ("flux", ("--negative", "blurry"), "FLUX.1 reads a negative prompt only with --cfg above 1"),
        ("sd3", ("--distilled-cfg", "3"), "--distilled-cfg is for models with embedded guidance"),
        ("schnell", ("--distilled-cfg", "3"), "--distilled-cfg is for models with embedded guidance"),
        ("flux", ("--size", "72"), "with this model width and height must be multiples of 16"),
        ("sd3", ("--scheduler", "ddim"), "the scheduler ddim is not of flow matching, as this model needs; use euler"),
        ("sd3", ("--model", "incomplete"), "is incomplete: there is no tokenizer_2/tokenizer.json"),
        ("sd3", ("--model", "unknown"), "is a SanaPipeline, which is not supported; supported are SD 1.x"),
    ],
)
def test_what_sd3_and_flux_do_not_take(transformers, tmp_path, capsys, monkeypatch, name, more, match):
    monkeypatch.chdir(tmp_path)
    ignored = shutil.ignore_patterns("*.safetensors", "tokenizer_2")
    shutil.copytree(transformers / "sd3", tmp_path / "incomplete", ignore=ignored)
    (tmp_path / "unknown").mkdir()
    index = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
    (tmp_path / "unknown" / "model_index.json").write_text(json.dumps(index))
    assert of_transformer(transformers, tmp_path, name, *more) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "more, match",
    [
        (("--size", "60"), "multiples of 8"),
        (("--size", "big"), "no size"),
        (("--steps", "0"), "0 is below 1"),
        (("--cfg", "much"), "'much' is no number"),
        (("--temperature", "0"), "temperature is '0'; it must be a number from"),
        (("--start", "0.5", "--end", "0.5"), "start is 0.5"),
        (("--scheduler", "magic"), "no scheduler 'magic'; there are ddim, "),
        (("--model", "/nowhere/model"), "there is no file /nowhere/model"),
        (("--lora", "/nowhere/a.safetensors:0.5"), "there is no file /nowhere/a.safetensors"),
        (("--lora", "/nowhere/a.safetensors:abc"), "the LoRA 'a.safetensors' has the strength 'abc'; it must"),
        (("--pool", "/nowhere/a.safetensors:0.5"), "there is no file /nowhere/a.safetensors"),
        (("--maps", "--method", "merge"), "--maps needs the method loratorio"),
        (("--prompt", "a <lora:b:1>"), "give each LoRA with --lora"),
        (("--device", "cuda:99"), "the device 'cuda:99' cannot be used"),
    ],
)
def test_errors_are_one_line(folder, capsys, more, match):
    assert cli.main(arguments(folder, *more)) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


def test_nothing_to_compose(folder, capsys, tmp_path):
    assert cli.main(arguments(folder, loras=())) == 2
    assert "give at least one with --lora or --pool" in capsys.readouterr().err
    assert cli.main(arguments(folder, "--pool", str(tmp_path))) == 2
    assert "no .safetensors file in" in capsys.readouterr().err


def test_lora_of_another_kind_of_model(folder, capsys, tmp_path):
    assert cli.main(arguments(folder, "--out", str(tmp_path), loras=("xl.safetensors",))) == 2
    error = capsys.readouterr().err
    assert "it is for another kind of model" in error and error.count("\n") == 1


def test_models_that_cannot_be_used(folder, capsys, tmp_path):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "empty").mkdir()
    save_file({}, tmp_path / "other.safetensors")
    for model, match in (
        ("flux", "is a FluxPipeline, which is not supported"),
        ("empty", "no model_index.json"),
        ("other.safetensors", "is no checkpoint"),
    ):
        assert cli.main(arguments(folder, model=tmp_path / model)) == 2
        assert match in capsys.readouterr().err


def test_every_setting_is_an_option_but_those_in_another_form(folder, tmp_path):
    named = {
        "method": "composite",
        "patch_size": 3,
        "temperature": 0.25,
        "lam": 0.75,
        "top_k": 2,
        "start": 0.1,
        "end": 0.9,
        "text_encoder": "merged",
        "adapters_per_pass": 1,
        "pool_mode": "scout",
        "scout": 0.3,
        "scout_every": 4,
        "scout_share": 0.6,
        "guidance_every": 2,
        "refresh_every": 3,
        "feather": 0.2,
    }
    options = [part for name, value in named.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(arguments(folder, *options, "--verify", "--trigger-words", "--out", str(tmp_path / "a.png"))) == 0
    settings = Settings.from_infotext(fields(tmp_path / "a.png")[1]["LoRAtorio"])
    assert settings == Settings(enabled=True, verify=True, trigger_words=True, **named)
    assert (
        {*named, "verify", "trigger_words"} == set(cli.OPTIONS) == set(SETTINGS) - {"enabled", "maps", "pool", "mask"}
    )


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name in cli.OPTIONS:
        assert f"--{name.replace('_', '-')} " in told
        assert SETTINGS[name].described.replace("-", "") in told.replace("- ", "").replace("-", "")


def test_missing_packages(folder, capsys, monkeypatch):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: None if name in ("diffusers", "peft") else find(name)
    )
    assert cli.main(arguments(folder)) == 2
    assert "needs diffusers, peft: pip install torch diffusers" in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(folder):
    """The tiny SD model as a single file, and a folder with everything of it but the weights."""
    export = pytest.importorskip("lab.export")
    save_file(
        {key: value.contiguous() for key, value in export.original_layout(tiny.sd()).items()},
        folder / "single.safetensors",
    )
    shutil.copytree(folder / "tiny-sd", folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / "single.safetensors"


def same_picture(folder, tmp_path, single, whole, loras):
    assert (
        cli.main(
            arguments(
                folder,
                "--config",
                str(folder / "config"),
                "--out",
                str(tmp_path / "single.png"),
                model=single,
                loras=loras,
            )
        )
        == 0
    )
    assert cli.main(arguments(folder, "--out", str(tmp_path / "folder.png"), model=whole, loras=loras)) == 0
    one, two = (Image.open(tmp_path / name) for name in ("single.png", "folder.png"))
    assert max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes())) <= 1


def test_single_file_with_its_configuration(folder, checkpoint, tmp_path):
    same_picture(folder, tmp_path, checkpoint, "tiny-sd", ("a/style.safetensors:0.8",))
    assert fields(tmp_path / "single.png")[1]["Model"] == "single"


def test_yaml_beside_a_single_file_describes_it(folder, checkpoint, tmp_path):
    from lab import export

    text = export.yaml.safe_dump(export.webui_config(tiny.sd(), "unused"))
    checkpoint.with_suffix(".yaml").write_text(text)
    try:
        same_picture(folder, tmp_path, checkpoint, "tiny-sd", ("a/style.safetensors:0.8",))
        checkpoint.with_suffix(".yaml").write_text(
            text.replace("timesteps: 1000", "timesteps: 1000\n    parameterization: v")
        )
        pipe = load_pipeline(checkpoint, folder / "config", torch.float32)
        assert pipe.scheduler.config.prediction_type == "v_prediction"
    finally:
        checkpoint.with_suffix(".yaml").unlink()


def test_single_file_needs_its_configuration_offline(folder, checkpoint, capsys, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("diffusers.loaders.single_file._download_diffusers_model_config_from_hub", offline)
    assert cli.main(arguments(folder, model=checkpoint)) == 2
    error = capsys.readouterr().err
    assert "no network" in error and "give its configuration and tokenizer with --config" in error


OPEN_CLIP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    ".layer_norm": ".ln_",
    ".mlp.fc1": ".mlp.c_fc",
    ".mlp.fc2": ".mlp.c_proj",
    ".self_attn.out_proj": ".attn.out_proj",
    "text_model.encoder.layers": "transformer.resblocks",
}


def sdxl_layout(export, pipe):
    """The names of the original SDXL checkpoints, whose second text encoder is OpenCLIP's."""
    names = export.unet_names(pipe.unet.config) | {
        f"add_embedding.linear_{n + 1}": f"label_emb.0.{2 * n}" for n in range(2)
    }
    unet = export._renamed(pipe.unet.state_dict(), names, lambda p: export.RESIDUAL if "resnets" in p else {})
    vae = {
        key: value for key, value in export.original_layout(tiny.sd()).items() if key.startswith("first_stage_model.")
    }
    open_clip, text = {}, pipe.text_encoder_2.state_dict()
    for key, value in text.items():
        if "q_proj" in key:
            three = torch.cat([text[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            key, value = key.replace("self_attn.q_proj.", "attn.in_proj_"), three
        elif "k_proj" in key or "v_proj" in key:
            continue
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        open_clip[key] = value
    open_clip["positional_embedding"] = open_clip.pop("text_model.embeddings.position_embedding.weight")
    open_clip["text_projection"] = open_clip.pop("text_projection.weight").T
    clip = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in pipe.text_encoder.state_dict().items()
    }
    parts = {
        "model.diffusion_model": unet,
        "conditioner.embedders.0.transformer": clip,
        "conditioner.embedders.1.model": open_clip,
    }
    state = vae | {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.items()}
    return {key: value.contiguous() for key, value in state.items()}


def test_sdxl_single_file(folder, tmp_path):
    export = pytest.importorskip("lab.export")
    pipe = tiny.sdxl()
    pipe.vae = tiny.sd().vae
    pipe.save_pretrained(folder / "xl-whole")
    config = folder / "xl-config" / "config"
    shutil.copytree(folder / "xl-whole", config, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(sdxl_layout(export, pipe), folder / "xl-single.safetensors")
    for name, model, more in (
        ("single", "xl-single.safetensors", ("--config", str(config))),
        ("whole", "xl-whole", ()),
    ):
        assert (
            cli.main(
                arguments(folder, *more, "--out", str(tmp_path / f"{name}.png"), model=model, loras=("xl.safetensors",))
            )
            == 0
        )
    one, two = (Image.open(tmp_path / f"{name}.png") for name in ("single", "whole"))
    assert max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes())) <= 1


NOISY = """
import logging, sys, warnings
from lib_loratorio import cli

quiet = cli._quiet

def arranged():
    quiet()
    from lib_loratorio.hosts.diffusers import models
    models._from_folder = fail

def fail(*args):
    warnings.warn("something will change", FutureWarning)
    for name in ("diffusers.loaders", "transformers.tokenization", "huggingface_hub.utils", "peft", "accelerate"):
        logging.getLogger(name).error("something failed")
    raise ValueError("this is it\\nand its details")

cli._quiet = arranged
sys.exit(cli.main(sys.argv[1:]))
"""


def run(command, *more):
    root = Path(cli.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *command, *more], cwd=root, env=environment, capture_output=True, text=True)


def test_one_line_is_all_that_an_error_prints(folder, tmp_path):
    """Whatever the libraries have to say, at import, while they load, or of the file that is at fault."""
    found = run(["-c", NOISY], *arguments(folder))
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == f"LoRAtorio: the model {folder / 'tiny-sd'} cannot be loaded (this is it).\n"
    broken = {key: value / 0 for key, value in load_file(folder / "a" / "style.safetensors").items()}
    save_file(broken, tmp_path / "broken.safetensors")
    found = run(["-m", "lib_loratorio"], *arguments(folder, loras=(tmp_path / "broken.safetensors",)))
    assert (found.returncode, found.stdout) == (2, "")
    assert re.fullmatch(r"LoRAtorio: the LoRA .*broken.safetensors is broken: it has values .*\.\n", found.stderr)


def test_a_model_without_tokenizer_is_told_of_in_one_line(folder, tmp_path):
    shutil.copytree(folder / "tiny-sd", tmp_path / "model", ignore=lambda where, names: {"tokenizer"} & {*names})
    found = run(["-m", "lib_loratorio"], *arguments(folder, model=tmp_path / "model"))
    assert (found.returncode, found.stdout) == (2, "")
    assert re.fullmatch(r"LoRAtorio: .*model is incomplete: there is no tokenizer/.*\.\n", found.stderr)


def test_a_model_that_memory_is_too_small_for(folder, capsys, monkeypatch):
    def full(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.to", full)
    assert cli.main(arguments(folder)) == 2
    assert capsys.readouterr().err == f"LoRAtorio: memory ran out while the model {folder / 'tiny-sd'} was loaded.\n"
