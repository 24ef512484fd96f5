"""Half precision, storage in fp8, and offloading, as far as a CPU tells."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import accelerate
import pipelines
import tiny_pipelines as tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from kinds import CONVOLUTION, LINEAR, written

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.loras.tag import LoraTag

SD = pipelines.CASES["SD 1.x"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def full(loras):
    """In float32: the ordinary picture, and the composed one."""
    pipe = tiny.sd()
    ordinary = pipelines.called(pipe, SD)
    with composed(pipe, loras):
        return ordinary, pipelines.called(pipe, SD)


def difference(found, expected):
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype, least", [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_half_precision_is_as_near_as_the_ordinary_picture(loras, full, dtype, least):
    pipe = tiny.sd().to(dtype)
    ordinary = pipelines.called(pipe, SD)
    with composed(pipe, loras, verify=True) as composition:
        found = pipelines.called(pipe, SD)
    assert found.dtype == dtype and 0 < difference(found, full[1]) < max(least, 3 * difference(ordinary, full[0]))
    assert 0 < composition.tally.worst < least
    assert torch.equal(pipelines.called(pipe, SD), ordinary)


def test_weights_stored_in_fp8_leave_the_loras_exact(loras, full):
    """Layerwise casting: the base is rounded to 8 bits, the factors are not."""
    pipe = tiny.sd()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    ordinary = pipelines.called(pipe, SD)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    rounded = tiny.sd()
    rounded.unet.load_state_dict({name: value.float() for name, value in before.items()})
    with composed(rounded, loras):
        expected = pipelines.called(rounded, SD)
    with composed(pipe, loras, verify=True) as composition:
        found = pipelines.called(pipe, SD)
    assert difference(found, expected) < 1e-4 < 0.01 < difference(found, full[1])
    assert 0 < composition.tally.worst < 1e-4
    after = pipe.unet.state_dict()
    assert all(torch.equal(value.float(), after[name].float()) for name, value in before.items())
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    assert torch.equal(pipelines.called(pipe, SD), ordinary)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading(loras, full, kind):
    pipe = tiny.sd()
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks)
    with composed(pipe, loras, verify=True) as composition:
        assert torch.equal(pipelines.called(pipe, SD), full[1]) and composition.tally.worst < 1e-4
    assert torch.equal(pipelines.called(pipe, SD), full[0])


@pytest.mark.parametrize("method", ["loratorio", "merge"])
def test_hooks_that_are_put_on_anew_after_each_picture(loras, method, monkeypatch):
    """As enable_model_cpu_offload does it: they replace the denoiser's forward."""
    pipe = tiny.sd()
    ordinary = pipelines.called(pipe, SD)

    def renewed():
        remove_hook_from_module(pipe.unet)
        add_hook_to_module(pipe.unet, ModelHook())

    renewed()
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", renewed, raising=False)
    with composed(pipe, loras, method=method) as composition:
        first = pipelines.called(pipe, SD)
        assert torch.equal(pipelines.called(pipe, SD), first) and not torch.equal(first, ordinary)
        assert composition.calls == 3 and composition.evaluations == {"loratorio": 48, "merge": 12}[method]
    assert torch.equal(pipelines.called(pipe, SD), ordinary)
    remove_hook_from_module(pipe.unet)
    assert torch.equal(pipelines.called(pipe, SD), ordinary)


def kept(pipe):
    """What an offloaded denoiser is: of each parameter whether it is trained, and the values in host memory."""
    found = {}
    for name, parameter in pipe.unet.named_parameters():
        layer, _, own = name.rpartition(".")
        hook = pipe.unet.get_submodule(layer)._hf_hook
        assert parameter.is_meta and hook.execution_device == CPU and not hook.offload_buffers
        found[name] = parameter.requires_grad, hook.weights_map[own].clone()
    return found


@pytest.fixture(scope="module")
def of_whole_weights(tmp_path_factory):
    """Kinds that PEFT does not know, which change whole weights and are merged in their place."""
    folder, pipe = tmp_path_factory.mktemp("whole"), tiny.sd()
    wanted = {"dora": ((LINEAR, CONVOLUTION), 0.7), "full": ((LINEAR, CONVOLUTION), -0.8)}
    return [(written(pipe, folder, kind, ends)[0], strength) for kind, (ends, strength) in wanted.items()]


@pytest.mark.parametrize("settings", [{}, {"method": "merge"}, {"start": 0.5}, {"lam": 1.0}])
@pytest.mark.parametrize("whole", [False, True])
def test_sequential_offloading(loras, of_whole_weights, full, whole, settings):
    wanted = of_whole_weights if whole else loras
    with composed(pipe := tiny.sd(), wanted, settings):
        expected = pipelines.called(pipe, SD)
    pipe = tiny.offloaded(tiny.sd())
    pipe.unet.requires_grad_(False)
    before = kept(pipe)
    with composed(pipe, wanted, settings, dense_budget=0, verify=True) as composition:
        found = pipelines.called(pipe, SD)
        assert all(parameter.is_meta for parameter in pipe.unet.parameters())
    assert difference(found, expected) < 1e-5 < 0.01 < difference(found, full[0])
    if "method" not in settings:
        assert 0 < composition.tally.worst < 1e-4
    after = kept(pipe)
    assert before.keys() == after.keys()
    for name, (trained, values) in before.items():
        assert after[name][0] == trained and torch.equal(after[name][1], values)
    assert torch.equal(pipelines.called(pipe, SD), full[0])


def test_strengths_that_change_of_an_offloaded_models_whole_weights(of_whole_weights):
    """Their weights are read anew in each step."""
    ramps = [Lora(path, strength, LoraTag.read({"ltw": "1@0,0.3@1"}, "ramp")) for path, strength in of_whole_weights]
    with composed(pipe := tiny.sd(), ramps):
        expected = pipelines.called(pipe, SD)
    with composed(pipe := tiny.offloaded(tiny.sd()), ramps, verify=True) as composition:
        assert difference(pipelines.called(pipe, SD), expected) < 1e-5
    assert 0 < composition.tally.worst < 1e-4


def test_an_error_leaves_an_offloaded_pipeline_as_it_was(loras, full, tmp_path):
    pipe = tiny.offloaded(tiny.sd())
    before = kept(pipe)
    with pytest.raises(LoratorioError, match="there is no LoRA file"), composed(pipe, tmp_path / "none.safetensors"):
        pass
    with pytest.raises(ZeroDivisionError), composed(pipe, loras):
        raise ZeroDivisionError
    assert before.keys() == kept(pipe).keys() and torch.equal(pipelines.called(pipe, SD), full[0])


def test_dora_of_peft_is_refused_with_weights_away(tmp_path):
    """PEFT hands such a layer's weight on as it is between calls."""
    pipe = tiny.offloaded(tiny.sd())
    path = tiny.as_dora(tiny.write_lora(pipe, tmp_path / "dora.safetensors", 4, ("to_q",), layout="diffusers"))
    with pytest.raises(LoratorioError, match=r"the LoRA dora is DoRA, .*; use enable_model_cpu_offload"):
        with composed(pipe, path):
            pass
    assert kept(pipe)


def test_weights_on_disk_are_refused(loras, tmp_path):
    pipe = tiny.sd()
    accelerate.disk_offload(pipe.unet, tmp_path, CPU)
    with pytest.raises(LoratorioError, match=r"neither on its device nor in host memory, .*; use enable_model_cpu"):
        with composed(pipe, loras):
            pass
