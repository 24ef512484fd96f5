"""A pool's factors wait in host memory, outside of the model that goes to the device."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import pipelines
import tiny_pipelines as tiny
import torch
from peft.tuners.lora import LoraLayer

from lib_loratorio.hosts.diffusers import Lora, composed

SD = pipelines.CASES["SD 1.x"]


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def held(bank, number):
    """The factors that the bank has of an adapter, by layer."""
    of_layers = [rows.low_rank.deltas for _, rows in bank._layers if rows.low_rank]
    return [deltas[number] for deltas in of_layers if number in deltas]


def test_a_pools_factors_are_not_in_the_model(loras):
    pipe = tiny.sd()
    with composed(pipe, loras[:1]) as composition:
        without = size(pipe.unet), size(pipe.text_encoder)
    with composed(pipe, loras[:1], pool=loras[1:]) as composition:
        assert (size(pipe.unet), size(pipe.text_encoder)) == without
        pipelines.called(pipe, SD)
        assert size(pipe.unet) == without[0]
        pipe.to(torch.bfloat16)
        for number in (1, 2):
            assert all(
                one.down.numel() and one.down.dtype == torch.float32 and one.down.device.type == "cpu"
                for one in held(composition.bank, number)
            )
        assert len(held(composition.bank, 1)) > len(held(composition.bank, 2)) > 20


def test_a_pool_is_composed_as_other_loras_are(loras):
    """Also where one is merged for a while, as verify does, and where they change the text encoder."""
    pipe = tiny.sd()
    settings = {"verify": True, "pool_mode": "exact", "temperature": 0.05}
    with composed(pipe, loras, settings) as composition:
        expected, evaluations = pipelines.called(pipe, SD), composition.evaluations
    with composed(pipe, loras[:1], settings, pool=loras[1:]) as composition:
        size_before = size(pipe.unet)
        assert torch.equal(pipelines.called(pipe, SD), expected)
        assert composition.evaluations == evaluations and 0 < composition.tally.worst < 1e-4
        assert size(pipe.unet) == size_before
        pipe.to(torch.bfloat16)
        pipelines.called(pipe, SD)
        assert 1e-4 < composition.tally.worst < 0.1  # a factor that is filled again is in the model's precision


def grouped(pipe):
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    return pipe


@pytest.mark.parametrize("offloaded", [tiny.offloaded, grouped])
def test_a_pool_of_an_offloaded_pipeline(loras, offloaded):
    with composed(pipe := tiny.sd(), loras[:1], pool=loras[1:]):
        expected = pipelines.called(pipe, SD)
    pipe = offloaded(tiny.sd())
    with composed(pipe, loras[:1], pool=loras[1:], verify=True) as composition:
        assert torch.equal(pipelines.called(pipe, SD), expected) and 0 < composition.tally.worst < 1e-4


def test_an_adapter_that_the_pipeline_has_stays_in_it_as_one_of_the_pool(loras):
    pipe = tiny.sd()
    pipe.load_lora_weights(str(loras[1][0].parent), weight_name=loras[1][0].name, adapter_name="own")
    before = size(pipe.unet)
    with composed(pipe, loras[:1], pool=[("own", 0.6), Lora(*loras[2])], verify=True) as composition:
        pipelines.called(pipe, SD)
        waiting = [
            name
            for layer in pipe.unet.modules()
            if isinstance(layer, LoraLayer)
            for name, part in layer.lora_A.items()
            if not part.weight.numel()
        ]
        assert set(waiting) == {composition.adapters[2].source.name}
        assert 0 < composition.tally.worst < 1e-4
    assert size(pipe.unet) == before
