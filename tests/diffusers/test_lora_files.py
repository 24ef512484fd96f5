"""LoRA files in every layout and storage that trainers write, and files that are something else: read, or the true
reason told.
"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import tiny_pipelines as tiny
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from lab import export
from lib_loratorio.deltas.precision import in_floats
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.hosts.diffusers.files import LoraFile, LoraFileError
from lib_loratorio.hosts.diffusers.fitting import fitted
from lib_loratorio.hosts.diffusers.layouts import layers
from lib_loratorio.hosts.diffusers.loader import loaded
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings

NAN, INF = math.nan, math.inf
UNET, TEXT = ("to_q", "to_out.0", "proj_in"), ("q_proj", "out_proj", "fc1")
"""The layers of most files here: 30 of the tiny UNet, and 6 of each text encoder."""
PARTS = ("unet", "text_encoder", "text_encoder_2")
BEGINNINGS = (
    ("lora_unet_", "unet."),
    ("lora_te_", "lora_te1_", "text_encoder."),
    ("lora_te2_", "text_encoder_2."),
)
"""Of layers' names, by part of the pipeline."""


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@pytest.fixture(scope="module")
def xl():
    return tiny.sdxl()


@pytest.fixture(scope="module")
def kohya(pipe, tmp_path_factory):
    """The tensors of a kohya file for UNet and text encoder."""
    return load_file(tiny.write_lora(pipe, tmp_path_factory.mktemp("kohya") / "a.safetensors", 1, UNET, TEXT))


@pytest.fixture(scope="module")
def peft(pipe, tmp_path_factory):
    """The tensors of a file in diffusers' layout, which is PEFT's behind the names of the pipeline's parts."""
    path = tmp_path_factory.mktemp("peft") / "a.safetensors"
    return load_file(tiny.write_lora(pipe, path, 2, UNET, TEXT, layout="diffusers"))


@pytest.fixture
def written(tmp_path):
    """Writes a file of these tensors and returns its path."""

    def write(state, name="odd", metadata=None):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata=metadata)
        return path

    return write


def deltas(pipe, *paths):
    """What one LoRA changes in the layers' weights, by the part of the pipeline and the layer, in kohya's spelling."""
    found = {}
    with loaded(pipe, [Lora(path) for path in paths]) as (adapter, *_):
        for part in PARTS:
            for name, layer in getattr(pipe, part).named_modules() if hasattr(pipe, part) else ():
                if isinstance(layer, LoraLayer) and adapter.source.name in layer.lora_A:
                    found[part, spelled(name)] = layer.get_delta_weight(adapter.source.name).detach().clone()
    return found


def spelled(name):
    return name.removeprefix("text_model.").replace(".", "_")


def expected(state, scales=None):
    """The same of the tensors of a file in kohya's or PEFT's layout; `scales` are by layer, else alpha by rank."""
    found = {}
    for key in state:
        name = key.removesuffix(".lora_down.weight").removesuffix(".lora_A.weight")
        if name == key:
            continue
        up = state[f"{name}.lora_up.weight" if key.endswith(".lora_down.weight") else f"{name}.lora_B.weight"].float()
        down, rank = state[key].float(), state[key].shape[0]
        scale = (scales or {}).get(name, state.get(f"{name}.alpha", torch.tensor(rank)).item() / rank)
        prefix, part = next(
            (prefix, part) for part, prefixes in enumerate(BEGINNINGS) for prefix in prefixes if name.startswith(prefix)
        )
        name = spelled(name.removeprefix(prefix)).removeprefix("text_model_")
        found[PARTS[part], name] = scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, delta in wanted.items():
        torch.testing.assert_close(found[key], delta, rtol=1e-5, atol=1e-6)


def refused(pipe, path, match):
    with pytest.raises(LoratorioError, match=match), loaded(pipe, [Lora(path)]):
        pass


# Storage


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "int16", "float16", "bfloat16", "float64"])
def test_what_is_stored_small_is_computed_with_as_floats(pipe, kohya, written, dtype):
    scale = 20 if dtype.startswith("int") else 1
    state = {key: (tensor * scale).to(getattr(torch, dtype)) for key, tensor in kohya.items()}
    file = written(state)
    found = {key: delta.float() for key, delta in deltas(pipe, file).items()}
    exact = dtype not in ("float16", "bfloat16")
    assert found.keys() == expected(state).keys()
    for key, delta in expected(state).items():
        torch.testing.assert_close(found[key], delta, rtol=1e-5 if exact else 2e-2, atol=1e-5 if exact else 2e-2)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_what_is_stored_small_is_composed(pipe, kohya, written, dtype):
    stored = {k: (v * 20).to(getattr(torch, dtype)) if v.dim() else v / 400 for k, v in kohya.items()}
    pictures = []
    for state in (stored, {key: tensor.float() for key, tensor in stored.items()}):
        with composed(pipe, [Lora(written(state))]):
            pictures.append(
                pipe("a cat", height=64, width=64, num_inference_steps=1, output_type="latent", generator=generator())
            )
    assert torch.equal(pictures[0].images, pictures[1].images) and torch.isfinite(pictures[0].images).all()


def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("part", ["lora_unet_.*lora_down", "lora_unet_.*lora_up", "lora_te_.*lora_up", "alpha"])
def test_values_that_are_not_finite_are_refused(pipe, kohya, written, part, value):
    key = next(key for key in kohya if re.search(part, key))
    tensor = kohya[key].clone()
    tensor.view(-1)[-1] = value
    refused(pipe, written({**kohya, key: tensor}), rf"odd.safetensors is broken: .* not finite .*{re.escape(key)}")


def test_values_that_are_not_finite_in_float8(pipe, kohya, written):
    key = next(key for key in kohya if "lora_up" in key)
    refused(pipe, written({**kohya, key: torch.full_like(kohya[key], NAN).to(torch.float8_e4m3fn)}), "not finite")


def test_a_broken_file_of_a_pool_is_left_out_and_named(pipe, kohya, peft, written, caplog):
    key = next(key for key in kohya if "lora_up" in key)
    broken, good = written({**kohya, key: kohya[key] * NAN}, "broken"), written(peft, "good")
    with loaded(pipe, [Lora(broken, pooled=True), Lora(good, pooled=True)]) as adapters:
        assert [adapter.name for adapter in adapters] == ["good"]
    assert len(caplog.messages) == 1
    assert "1 LoRAs of the pool cannot be used: broken (is broken: it has values that are not finite" in caplog.text


@pytest.mark.parametrize("value", [NAN, INF, "0.8", None])
def test_strengths_that_are_no_numbers_are_refused(pipe, kohya, written, value):
    with pytest.raises(LoratorioError, match=r"the strength of .*odd.safetensors is .*; it must be a number"):
        with loaded(pipe, [Lora(written(kohya), value)]):
            pass


# Layouts


def renamed(state, **parts):
    """`parts`: what the beginnings `unet.` and so on become."""
    return {
        parts[part] + key.removeprefix(f"{part}."): tensor
        for key, tensor in state.items()
        if (part := key.split(".")[0]) in parts
    }


def of(state, *parts):
    return {key: tensor for key, tensor in state.items() if key.split(".")[0] in parts}


WRAPPER = "base_model.model."


@pytest.mark.parametrize(
    "parts",
    [
        {"unet": "unet.", "text_encoder": "text_encoder."},
        {"unet": f"unet.{WRAPPER}", "text_encoder": f"text_encoder.{WRAPPER}"},
        {"unet": f"{WRAPPER}unet.", "text_encoder": f"{WRAPPER}text_encoder."},
        {"unet": WRAPPER},
        {"unet": ""},
        {"text_encoder": WRAPPER},
        {"text_encoder": ""},
    ],
)
@pytest.mark.parametrize("adapter", ["", ".default", ".my-style_2"])
def test_peft_files_are_read(pipe, peft, written, parts, adapter):
    state = renamed(peft, **parts)
    state = {key.replace(".weight", f"{adapter}.weight"): tensor for key, tensor in state.items()}
    assert_same(deltas(pipe, written(state)), expected(of(peft, *parts)))


def test_peft_file_of_a_text_encoder_finds_the_one_it_fits(xl, written, tmp_path):
    state = load_file(tiny.write_lora(xl, tmp_path / "a.safetensors", 1, UNET, TEXT, layout="diffusers"))
    for part in PARTS:
        assert_same(deltas(xl, written(renamed(state, **{part: WRAPPER}))), expected(of(state, part)))


def test_peft_file_of_a_text_encoders_feed_forward_layers_alone(pipe, peft, written):
    """diffusers does not recognise their layout."""
    state = {key: tensor for key, tensor in of(peft, "text_encoder").items() if "fc1" in key}
    assert_same(deltas(pipe, written(state)), expected(state))


def test_several_adapters_in_a_file_are_refused(pipe, peft, written):
    both = {key.replace(".weight", f".{name}.weight"): v.clone() for key, v in peft.items() for name in ("one", "two")}
    refused(pipe, written(both), "holds several adapters \\(one, two\\)")


CONFIG = {"peft_type": "LORA", "r": tiny.RANK, "lora_alpha": 2 * tiny.RANK, "target_modules": ["to_q"]}


def test_folder_as_peft_saves_it(pipe, peft, written, tmp_path):
    file = written(renamed(peft, unet=WRAPPER), "my.style/adapter_model")
    (file.parent / "adapter_config.json").write_text(json.dumps(CONFIG))
    doubled = {key: 2 * delta for key, delta in expected(of(peft, "unet")).items()}
    for path in (file, file.parent):
        assert_same(deltas(pipe, path), doubled)
        with loaded(pipe, [Lora(path)]) as (adapter,):
            assert (adapter.name, adapter.path) == ("my.style", str(file))
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert_same(deltas(pipe, file.parent), doubled)


def test_folder_with_one_of_pefts_for_each_part(pipe, peft, written, tmp_path):
    for part in ("unet", "text_encoder"):
        file = written(renamed(peft, **{part: WRAPPER}), f"style/{part}/adapter_model")
        (file.parent / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert_same(deltas(pipe, tmp_path / "style"), {key: 2 * delta for key, delta in expected(peft).items()})


def test_folder_as_diffusers_saves_it_and_folders_of_one_file(pipe, peft, written, tmp_path):
    for name in ("pytorch_lora_weights", "whatever"):
        file = written(peft, f"{name} folder/{name}")
        assert_same(deltas(pipe, file.parent), expected(peft))
    shutil.copy(file, file.with_name("again.safetensors"))
    refused(pipe, file.parent, "is a folder with 2 .safetensors files, none of which is called adapter_model")
    (tmp_path / "nothing").mkdir()
    refused(pipe, tmp_path / "nothing", "is a folder without .safetensors files")


def test_old_layouts_of_diffusers(pipe, peft, written):
    old = {
        "to_q": "processor.to_q_lora",
        "to_k": "processor.to_k_lora",
        "to_v": "processor.to_v_lora",
        "to_out.0": "processor.to_out_lora",
        "q_proj": "to_q_lora",
        "k_proj": "to_k_lora",
        "v_proj": "to_v_lora",
        "out_proj": "to_out_lora",
    }
    state, newer = {}, {}
    for key, tensor in peft.items():
        layer, _, part = key.removesuffix(".weight").rpartition(".")
        end = next((end for end in old if layer.endswith(f".{end}")), None)
        part = {"lora_A": "down", "lora_B": "up"}[part]
        middle = f"{layer.removesuffix(end)}{old[end]}" if end else f"{layer}.lora"
        state[f"{middle}.{part}.weight"] = tensor
        linear = "lora" if key.startswith("unet.") else "lora_linear_layer"
        newer[f"{layer}.{linear}.{part}.weight"] = tensor
    assert_same(deltas(pipe, written(state)), expected(peft))
    assert_same(deltas(pipe, written(newer)), expected(peft))
    assert_same(deltas(pipe, written(renamed(of(state, "unet"), unet=""))), expected(of(peft, "unet")))


def kohya_of(peft, alpha=2.0, dotted=None, original=None):
    """kohya's factors and alphas of a file in PEFT's layout; `dotted` are prefixes that keep the names' dots, as
    OneTrainer and ComfyUI have them; `original` are the original model's names of layers.
    """
    prefixes = dotted or {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    state = {}
    for key, tensor in peft.items():
        part, _, name = key.partition(".")
        layer, end = name.removesuffix(".weight").rsplit(".", 1)
        layer = (original or {}).get(layer, layer) if part == "unet" else layer
        layer = prefixes[part] + (layer if dotted else layer.replace(".", "_"))
        state[f"{layer}.{'lora_down' if end == 'lora_A' else 'lora_up'}.weight"] = tensor
        state[f"{layer}.alpha"] = torch.tensor(alpha)
    return state


def original_names(pipe):
    """The original model's names of the UNet's layers."""
    names = export.unet_names(pipe.unet.config)
    residual = export.RESIDUAL
    found = {}
    for name, _ in pipe.unet.named_modules():
        start = max((start for start in names if name == start or name.startswith(f"{start}.")), key=len, default=None)
        if start is not None:
            end = name.removeprefix(start).removeprefix(".")
            end = residual.get(end, end) if "resnets" in start else end
            found[name] = f"{names[start]}.{end}".rstrip(".")
    return found


ONETRAINER = {"unet": "unet.", "text_encoder": "clip_l.", "text_encoder_2": "clip_g."}
COMFY = {
    "unet": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}


@pytest.mark.parametrize("dotted", [None, ONETRAINER, COMFY])
@pytest.mark.parametrize("names", ["diffusers", "original"])
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_files_of_kohya_onetrainer_and_comfyui(pipe, xl, written, tmp_path, model, names, dotted):
    pipe = {"sd": pipe, "sdxl": xl}[model]
    unet = (*UNET, "conv1", "time_emb_proj", "conv_in")
    peft = load_file(tiny.write_lora(pipe, tmp_path / "a.safetensors", 3, unet, TEXT, layout="diffusers"))
    state = kohya_of(peft, 2.0, dotted, original_names(pipe) if names == "original" else None)
    assert_same(deltas(pipe, written(state)), {key: 0.5 * delta for key, delta in expected(peft).items()})


def test_kohyas_names_with_pefts_factors(pipe, kohya, written):
    state = {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for key, value in kohya.items()}
    assert_same(deltas(pipe, written(state)), expected(kohya))


def test_pointwise_convolutions_and_linear_layers_are_one(pipe, kohya, written):
    """Whichever of them a trainer has seen where this model has the other."""
    state = {
        key: value[..., None, None] if value.dim() == 2 else value.flatten(1) if value.dim() == 4 else value
        for key, value in kohya.items()
    }
    assert {value.dim() for key, value in kohya.items() if "proj_in" in key} == {0, 4}
    wanted = {key: delta for key, delta in expected(kohya).items()}
    assert_same(deltas(pipe, written(state)), wanted)


def test_cp_convolutions_are_read(pipe, written, tmp_path):
    """Two pointwise ones with a small one between them."""
    path = tiny.write_lora(pipe, tmp_path / "a.safetensors", 1, unet=("conv1",))
    state = load_file(path)
    for key in [key for key in state if "lora_down" in key]:
        state[key.replace("lora_down", "lora_mid")] = torch.randn(tiny.RANK, tiny.RANK, 3, 3)
        state[key] = torch.randn(tiny.RANK, state[key].shape[1], 1, 1)
    found = deltas(pipe, written(state))
    assert len(found) == sum("lora_mid" in key for key in state) > 5
    for (_, name), delta in found.items():
        down, mid, up = (state[f"lora_unet_{name}.lora_{part}.weight"] for part in ("down", "mid", "up"))
        x = torch.randn(1, down.shape[1], 5, 5)
        wanted = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up) * tiny.ALPHA / tiny.RANK
        torch.testing.assert_close(F.conv2d(x, delta, padding=1), wanted, rtol=1e-4, atol=1e-4)


# Alphas


def test_layers_without_alpha_have_their_rank_as_alpha(pipe, kohya, written):
    alphas = [key for key in kohya if key.endswith(".alpha")]
    state = {key: value for key, value in kohya.items() if key not in alphas[::2]}
    assert_same(deltas(pipe, written(state)), expected(state))
    assert_same(deltas(pipe, written({**kohya_without(kohya, alphas)})), expected(kohya_without(kohya, alphas)))


def kohya_without(kohya, keys):
    return {key: value for key, value in kohya.items() if key not in keys}


def test_alphas_and_ranks_of_each_layer(pipe, kohya, written):
    """diffusers itself reads such a file's alphas as if they were one."""
    state = dict(kohya)
    for number, key in enumerate(key for key in kohya if key.endswith(".alpha")):
        state[key] = torch.tensor(0.5 + number % 7)
        rank = 1 + number % tiny.RANK
        layer = key.removesuffix(".alpha")
        state[f"{layer}.lora_down.weight"] = state[f"{layer}.lora_down.weight"][:rank]
        state[f"{layer}.lora_up.weight"] = state[f"{layer}.lora_up.weight"][:, :rank]
    assert_same(deltas(pipe, written(state)), expected(state))


def test_alphas_in_diffusers_metadata_and_in_pefts_configuration(pipe, peft, written):
    config = {"r": tiny.RANK, "lora_alpha": 1, "alpha_pattern": {"to_q": 8, "down_blocks.1.attentions.0.proj_in": 2}}
    scales = {}
    for key in of(peft, "unet"):
        layer = key.removesuffix(".lora_A.weight")
        alpha = 8 if layer.endswith("to_q") else 2 if layer.endswith("down_blocks.1.attentions.0.proj_in") else 1
        scales[layer] = alpha / tiny.RANK
    metadata = {f"unet.{name}": value for name, value in config.items()}
    file = written(peft, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    assert_same(deltas(pipe, file), expected(peft, scales))
    file = written(renamed(peft, unet=WRAPPER), "style/adapter_model")
    (file.parent / "adapter_config.json").write_text(json.dumps(config))
    assert_same(deltas(pipe, file), expected(of(peft, "unet"), scales))
    (file.parent / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    scales = {layer: scale * math.sqrt(tiny.RANK) for layer, scale in scales.items()}
    assert_same(deltas(pipe, file), expected(of(peft, "unet"), scales))


def test_what_diffusers_saves_is_read_as_diffusers_reads_it(pipe, written, kohya, tmp_path):
    """Alphas are in its header, with prefixes for a pipeline and without for a single model."""
    pipe.load_lora_weights(kohya, adapter_name="a")
    try:
        pipe.unet.save_lora_adapter(tmp_path / "unet", adapter_name="a")
        pipe.save_lora_weights(
            tmp_path / "both",
            unet_lora_layers=get_peft_model_state_dict(pipe.unet, adapter_name="a"),
            text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder, adapter_name="a"),
            unet_lora_adapter_metadata=pipe.unet.peft_config["a"].to_dict(),
            text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["a"].to_dict(),
        )
    finally:
        pipe.unload_lora_weights()
    wanted = expected(kohya)
    assert_same(deltas(pipe, tmp_path / "both"), wanted)
    assert_same(deltas(pipe, tmp_path / "unet"), {key: delta for key, delta in wanted.items() if key[0] == "unet"})


@pytest.mark.parametrize(
    "text, match",
    [
        ("{nope", "has an unreadable adapter_config.json"),
        ("[]", "is no object"),
        ('{"lora_alpha": "x"}', "alpha cannot be read"),
        ('{"lora_alpha": NaN}', "not finite"),
        ('{"alpha_pattern": 3}', "alpha cannot be read"),
        ('{"alpha_pattern": {"(": 3}}', "alpha cannot be read"),
    ],
)
def test_configurations_that_cannot_be_read(pipe, peft, written, text, match):
    file = written(renamed(peft, unet=WRAPPER), "style/adapter_model")
    (file.parent / "adapter_config.json").write_text(text)
    refused(pipe, file, match)


# Without effect; for another model


def without_effect(kohya):
    yield "zero", {key: value if key.endswith("alpha") else value * 0 for key, value in kohya.items()}
    yield "up", {key: value * 0 if "lora_up" in key else value for key, value in kohya.items()}
    yield (
        "mixed",
        {
            key: value * 0 if "lora_up" in key or ("te_" in key and "down" in key) else value
            for key, value in kohya.items()
        },
    )
    yield "alpha", {key: value * 0 if key.endswith("alpha") else value for key, value in kohya.items()}


def test_loras_without_effect_are_left_out(pipe, kohya, peft, written, caplog):
    idle = [Lora(written(state, name)) for name, state in without_effect(kohya)]
    with composed(
        pipe, [*idle, Lora(written(peft, "good")), *(lora._replace(pooled=True) for lora in idle[:1])]
    ) as found:
        assert found.labels == ["good"]
    assert caplog.messages == [
        "LoRAtorio: 5 LoRAs have no effect, as their factors, alphas or block weights are 0: zero, up, mixed, alpha, "
        "zero; left out."
    ]
    with pytest.raises(LoratorioError, match=r"1 LoRAs have no effect, .*: zero; there is no other LoRA"):
        with loaded(pipe, idle[:1]):
            pass


def test_layers_without_effect_cost_nothing(pipe, kohya, written):
    state = {
        key: value * 0 if key.startswith("lora_te_") and "lora_up" in key else value for key, value in kohya.items()
    }
    with loaded(pipe, [Lora(written(state))]) as (adapter,):
        assert adapter.changes_denoiser and not adapter.changes_text
    assert {part for part, _ in deltas(pipe, written(state))} == {"unet"}


def strange(kohya, share):
    """A file of which this share of the UNet's layers has the names of another model."""
    layers = sorted({key.split(".")[0] for key in kohya if key.startswith("lora_unet_")})
    count = round(share * len(layers))
    return {
        key.replace("lora_unet_", "lora_unet_input_blocks_9_1_") if key.split(".")[0] in layers[:count] else key: value
        for key, value in kohya.items()
    }


def test_a_text_encoder_alone_is_not_what_a_file_for_another_model_is_for(pipe, kohya, peft, written, caplog):
    """Fewer than a tenth of its UNet's layers are in this model."""
    match = r"odd.safetensors matches {} of the 30 layers that it has for the UNet, .*another kind of model"
    refused(pipe, written(strange(kohya, 1)), match.format(0))
    refused(pipe, written(strange(kohya, 28 / 30)), match.format(2))
    with loaded(pipe, [Lora(written(strange(kohya, 27 / 30)))]):
        assert "27 of 36 layers of the LoRA" in caplog.text
    transformer = {key.replace("unet.", "transformer."): value for key, value in peft.items()}
    refused(pipe, written(transformer), match.format(0))
    text = {key: value for key, value in kohya.items() if key.startswith("lora_te_")}
    assert_same(deltas(pipe, written(text)), expected(text))


def test_sdxl_files_on_sd_and_sd_files_on_sdxl(pipe, xl, written, tmp_path):
    file = tiny.write_lora(xl, tmp_path / "xl.safetensors", 1, text=tiny.TEXT)
    match = r"has the layer unet.* in the shape \(64, 40\), this model in the shape \(64, 16\): .*another kind of model"
    refused(pipe, file, match)
    refused(xl, tiny.write_lora(pipe, tmp_path / "sd.safetensors", 1, text=tiny.TEXT), "another kind of model")
    no_second = {key: value for key, value in load_file(file).items() if not key.startswith("lora_unet_")}
    assert {part for part, _ in deltas(pipe, written(no_second))} == {"text_encoder"}


# What is no LoRA, or more than one


def one(name, *shape):
    return lambda kohya: {**kohya, name: torch.ones(*shape or (2, 2))}


def only(name, *shape):
    return lambda kohya: {name: torch.ones(shape)}


def each(part, change):
    """The file with each tensor changed whose name has this part, and without it where it is None."""
    changed = lambda key, value: change(value) if part in key else value  # noqa: E731
    return lambda kohya: {key: new for key, value in kohya.items() if (new := changed(key, value)) is not None}


@pytest.mark.parametrize(
    "change, match",
    [
        (one("unet.conv_in.modules_to_save.default.weight"), r"holds whole layers .* \(modules_to_save\)"),
        (one("base_model.model.conv_in.weight"), "holds whole layers .* such as base_model.model.conv_in.weight"),
        (one("text_encoder.embeddings.lora_embedding_A", 4, 9), "holds factors of embeddings"),
        (one("lora_unet_x.hada_w1_a"), "is a LoHa file, for which .* lycoris-lora is needed: pip install lycoris-lora"),
        (
            one("lora_unet_x.oft_diag"),
            "is an OFT file, with tensors that are not readable, such as lora_unet_x.oft_diag",
        ),
        (one("lora_unet_x.lokr_w1"), "is a LoKr file"),
        (one("oft_unet_x.oft_blocks"), "is an OFT file"),
        (one("lora_unet_x.lora_down.scale_weight"), "is in a layout that is not readable: .* lora_unet_x.lora_down"),
        (only("model.diffusion_model.conv.weight", 2), "is no LoRA but a checkpoint"),
        (only("emb_params", 2, 8), "is no LoRA but an embedding"),
        (only("clip_l", 2, 8), "is no LoRA but an embedding"),
        (only("conv_in.weight", 2, 8), "is in a layout that is not readable"),
        (only("lora_unet_x.alpha"), "is in a layout that is not readable: it has no layer with a pair of factors"),
        (lambda kohya: {}, "has no tensors"),
        (each("lora_up", lambda up: None), "is incomplete: the layer .* up factor"),
        (each("lora_down", lambda down: None), "is incomplete: the layer .* down factor"),
        (each("lora_down", lambda down: down[:1]), "is broken: the factors of"),
        (each("lora_down", lambda down: down.flatten()), "is broken: the factors of"),
        (each("alpha", lambda alpha: alpha.expand(3)), "is broken: the alpha of"),
    ],
)
def test_other_files_are_refused_for_what_they_are(pipe, kohya, written, change, match, monkeypatch):
    """Those of other kinds without the package that knows them."""
    monkeypatch.setattr("lib_loratorio.hosts.diffusers.other_kinds.is_known", lambda: False)
    with pytest.raises(LoratorioError, match=f"odd.safetensors {match}") as error:
        with loaded(pipe, [Lora(written(change(kohya)))]):
            pass
    assert "another kind of model" not in str(error.value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pt", "a.ckpt"])
@pytest.mark.parametrize("contents", [b"", b"no tensors", b"\0" * 100, b"\xff" * 8 + b"{}"])
def test_files_that_are_broken(pipe, tmp_path, name, contents):
    (tmp_path / name).write_bytes(contents)
    refused(pipe, tmp_path / name, f"{name} cannot be read as a")


def test_pickled_files_are_of_tensors_only(pipe, kohya, tmp_path):
    torch.save(kohya, tmp_path / "a.pt")
    assert_same(deltas(pipe, tmp_path / "a.pt"), expected(kohya))
    torch.save({"state_dict": kohya}, tmp_path / "a.pt")
    refused(pipe, tmp_path / "a.pt", "holds other things than tensors by name")
    torch.save({"a": tiny.sd}, tmp_path / "a.pt")
    refused(pipe, tmp_path / "a.pt", "cannot be read as a file of tensors")


def test_embeddings_that_a_file_brings_are_told_of(pipe, kohya, written, caplog):
    file = written(
        {**kohya, "bundle_emb.my cat.clip_l": torch.ones(2, 16), "bundle_emb.dog.string_to_param.*": torch.ones(1, 16)}
    )
    assert_same(deltas(pipe, file), expected(kohya))
    assert caplog.messages == [
        f"LoRAtorio: the embeddings that the LoRA {file} brings with it are not used: dog, my cat."
    ]


def test_odd_files_never_take_a_pool_down(pipe, kohya, peft, written, tmp_path, caplog):
    key = next(iter(kohya))
    odd = {
        "half": {key: value for key, value in kohya.items() if "lora_up" not in key},
        "diff": {**kohya, "lora_unet_conv_in.diff": torch.ones(2, 2)},
        "nan": {**kohya, key: kohya[key] * NAN},
        "strange": strange(kohya, 1),
        "empty": {},
    }
    files = [written(state, name) for name, state in odd.items()]
    (tmp_path / "text.safetensors").write_text("no tensors")
    files += [tmp_path / "text.safetensors", written(peft, "good"), tmp_path]
    with loaded(pipe, [Lora(file, pooled=True) for file in files]) as adapters:
        assert [adapter.name for adapter in adapters] == ["good"]
    assert "7 LoRAs of the pool cannot be used: half (is incomplete" in caplog.text
    assert all(f"{name} (" in caplog.text for name in odd)


@pytest.mark.parametrize(
    "role, method, is_told",
    [("local", "loratorio", True), ("global", "loratorio", False), ("local", "merge", False)],
)
def test_loras_for_the_whole_picture_are_told_of(pipe, kohya, peft, written, caplog, role, method, is_told):
    loras = [Lora(written(kohya, "lcm-lora-sdv1-5"), tag=LoraTag(role=role)), Lora(written(peft, "cat"))]
    with composed(pipe, loras, Settings(method=method)):
        pass
    assert ("lcm-lora-sdv1-5: acceleration LoRAs and sliders" in caplog.text) == is_told == bool(caplog.messages)


def pieces(*texts):
    return st.sampled_from(texts)


PREFIX = pieces("lora_unet_", "lora_te_", "lora_te2_", "unet.", "text_encoder.", "base_model.model.", "bundle_emb.", "")
LAYER = pieces(
    "down_blocks_1_attentions_0_proj_in",
    "down_blocks.1.attentions.0.proj_in",
    "input_blocks_4_1_proj_in",
    "input_blocks.x.y.z",
    "text_model.encoder.layers.0.mlp.fc1",
    "encoder.layers.0.self_attn.to_q_lora",
    "output_blocks",
    "",
)
END = pieces(
    *(".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight"),
    *(".lora.down.weight", ".up.weight", ".alpha", ".lora_mid.weight", ".diff", ".weight", ".lora_B.bias", "", "."),
)
SHAPE = st.lists(st.integers(0, 4), max_size=4)
DTYPE = pieces(torch.float32, torch.float16, torch.float8_e5m2, torch.int8, torch.bool)
TENSORS = st.dictionaries(
    st.one_of(st.tuples(PREFIX, LAYER, END).map("".join), st.text(max_size=8)), st.tuples(SHAPE, DTYPE), max_size=6
)
ODD = st.one_of(st.none(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
CONFIGS = st.dictionaries(
    pieces("lora_alpha", "alpha_pattern", "use_rslora"), st.one_of(ODD, st.dictionaries(st.text(max_size=3), ODD))
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TENSORS, CONFIGS)
def test_any_tensors_are_read_or_refused(pipe, tensors, config):
    made = {name: in_floats(torch.ones(shape).to(dtype)) for name, (shape, dtype) in tensors.items()}
    try:
        fit = fitted(pipe, Path("odd"), layers(Path("odd"), LoraFile(made, {"": config})))
    except LoraFileError as error:
        assert str(error).startswith("LoRAtorio: the LoRA odd ")
        return
    assert fit.layers and all(math.isfinite(one.scale) for of in fit.layers.values() for one in of.values())
