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

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import composed

SD = pipelines.CASES["SD 1.x"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    return pipelines.write_loras(tiny.sd(), tmp_path_factory.mktemp("loras"))


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


def test_sequential_offloading_is_refused(loras):
    pipe = tiny.sd()
    accelerate.cpu_offload(pipe.unet, CPU)
    with pytest.raises(LoratorioError, match=r"with enable_sequential_cpu_offload .*; use enable_model_cpu_offload"):
        with composed(pipe, loras):
            pass
