"""The pipeline before and after; LoRA files that cannot be used."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import diffusers
import tiny_pipelines as tiny
import torch
from safetensors.torch import save_file
from tiny_pipelines import latents

from lib_loratorio.deltas.dense import DenseDelta
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.hosts.diffusers.loader import PREFIX
from lib_loratorio.settings import Settings


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return [tiny.write_lora(pipe, folder / f"{number}.safetensors", number, text=tiny.TEXT) for number in range(3)]


def state(pipe):
    """Everything that composing could leave behind."""
    found = {}
    for name in ("unet", "text_encoder"):
        model = getattr(pipe, name)
        found |= {f"{name}.{key}": value.clone() for key, value in model.state_dict().items()}
        found |= {
            f"{name}.{key}": (type(module).__name__, len(module._forward_hooks))
            for key, module in model.named_modules()
        }
        found |= {f"{name}.{key} grad": parameter.requires_grad for key, parameter in model.named_parameters()}
        found[name] = sorted(key for key in model.__dict__ if "peft" in key or key == "forward")
    found["pipe"] = "encode_prompt" in pipe.__dict__
    return found


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key], key


@pytest.mark.parametrize("method", ["loratorio", "merge"])
def test_pipeline_is_what_it_was(pipe, files, method):
    before, ordinary = state(pipe), latents(pipe)
    with composed(pipe, [(file, 1.0) for file in files], Settings(method=method)):
        assert not torch.equal(latents(pipe), ordinary)
    assert_same(before, state(pipe))
    assert torch.equal(latents(pipe), ordinary)


def test_pipeline_is_what_it_was_after_an_exception_in_mid_sampling(pipe, files):
    before, ordinary = state(pipe), latents(pipe)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), composed(pipe, [(file, 1.0) for file in files], Settings(start=0.1)):
        latents(pipe, callback_on_step_end=stop)
    assert_same(before, state(pipe))
    assert torch.equal(latents(pipe), ordinary)


def test_the_pipelines_own_loras_come_back(pipe, files):
    alone = composed_latents(pipe, files[:2])
    pipe.load_lora_weights(str(files[2].parent), weight_name=files[2].name, adapter_name="own")
    pipe.set_adapters(["own"], [0.5])
    try:
        before = latents(pipe)
        torch.testing.assert_close(composed_latents(pipe, files[:2]), alone)
        assert torch.equal(latents(pipe), before) and pipe.get_list_adapters() == {
            "unet": ["own"],
            "text_encoder": ["own"],
        }
        pipe.fuse_lora()
        with pytest.raises(LoratorioError, match="unfuse_lora"), composed(pipe, [(files[0], 1.0)]):
            pass
    finally:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()


def composed_latents(pipe, files, **settings):
    with composed(pipe, [(file, 0.8) for file in files], Settings(**settings)):
        return latents(pipe)


def test_strength_zero_is_no_adapter(pipe, files):
    with composed(pipe, [(files[0], 1.0), (files[1], 0.0)]) as composition:
        assert composition.labels == ["0"]
    with pytest.raises(LoratorioError, match="no LoRA of a strength other than 0"), composed(pipe, [(files[0], 0)]):
        pass


def test_several_calls_in_one_block(pipe, files):
    with composed(pipe, [(files[0], 1.0)]) as composition:
        first = latents(pipe)
        assert torch.equal(latents(pipe), first) and composition.calls == 2
        with pytest.raises(LoratorioError, match="composed already"), composed(pipe, [(files[1], 1.0)]):
            pass
        assert torch.equal(latents(pipe), first)


def test_cross_attention_scale_is_refused(pipe, files):
    with pytest.raises(LoratorioError, match="strength"), composed(pipe, [(files[0], 1.0)]):
        latents(pipe, cross_attention_kwargs={"scale": 0.5})


def test_dora_in_diffusers_layout_is_dense(pipe, tmp_path):
    plain = tiny.write_lora(pipe, tmp_path / "dora.safetensors", 1, unet=("to_q", "conv1"), layout="diffusers")
    with composed(pipe, [(tiny.as_dora(plain), 0.7)], Settings(verify=True)) as composition:
        latents(pipe)
        assert any(
            isinstance(delta, DenseDelta) for _, rows in composition.bank._layers for delta in rows.dense.values()
        )
        assert 0 < composition.tally.worst < 1e-4


def refused(pipe, path, match):
    before = state(pipe)
    with pytest.raises(LoratorioError, match=match), composed(pipe, [(path, 1.0)]):
        pass
    assert_same(before, state(pipe))


def test_files_that_cannot_be_used(pipe, files, tmp_path, monkeypatch):
    refused(pipe, tmp_path / "none.safetensors", "there is no LoRA file")
    (tmp_path / "text.safetensors").write_text("not a file of tensors")
    refused(pipe, tmp_path / "text.safetensors", "cannot be read as a safetensors file")
    down, up = torch.zeros(2, 8), torch.zeros(8, 2)
    name = "lora_unet_down_blocks_7_attentions_0_proj"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)},
        tmp_path / "other.safetensors",
    )
    refused(pipe, tmp_path / "other.safetensors", "matches no layer of this model")
    save_file(
        {"transformer.blocks.0.attn.lora_A.weight": down, "transformer.blocks.0.attn.lora_B.weight": up},
        tmp_path / "flux.safetensors",
    )
    refused(pipe, tmp_path / "flux.safetensors", "matches no layer of this model")
    save_file({f"{name}.hada_w1_a": down}, tmp_path / "loha.safetensors")
    monkeypatch.setattr("lib_loratorio.hosts.diffusers.other_kinds.is_known", lambda: False)
    refused(pipe, tmp_path / "loha.safetensors", "is a LoHa file")
    refused(pipe, tiny.write_lora(tiny.sdxl(), tmp_path / "xl.safetensors", 1), "it is for another kind of model")


@pytest.mark.parametrize("first", [True, False])
def test_a_misfit_of_a_pool_leaves_no_trace(pipe, files, tmp_path, monkeypatch, caplog, first):
    """Not even of one that diffusers notices late, when the UNet has it."""
    file = tiny.write_lora(pipe, tmp_path / "misfit.safetensors", 1, unet=("to_k", "proj_out"), text=tiny.TEXT)
    misfit, loras = Lora(file, pooled=True), [Lora(files[0]), Lora(files[1], pooled=True)]
    before = state(pipe)
    with composed(pipe, loras):
        expected = latents(pipe)
        layers = {name for name, module in pipe.unet.named_modules() if hasattr(module, "lora_A")}
    load = pipe.load_lora_into_text_encoder

    def refuse(*args, adapter_name, **kwargs):
        if adapter_name == f"{PREFIX}{0 if first else 2}":
            raise ValueError("something new\nin a file")
        return load(*args, adapter_name=adapter_name, **kwargs)

    monkeypatch.setattr(pipe, "load_lora_into_text_encoder", refuse)
    with composed(pipe, [misfit, *loras] if first else [*loras, misfit]):
        assert torch.equal(latents(pipe), expected)
        assert {name for name, module in pipe.unet.named_modules() if len(getattr(module, "lora_A", ()))} == layers
        told = "1 LoRAs of the pool cannot be used: misfit (cannot be loaded by diffusers (something new)); left out."
        assert told in caplog.text
    assert_same(before, state(pipe))


def test_other_pipelines_are_refused(pipe):
    other = diffusers.DDIMPipeline(unet=pipe.unet, scheduler=pipe.scheduler)
    with pytest.raises(LoratorioError, match="DDIMPipeline is not supported"), composed(other, [("a", 1.0)]):
        pass
