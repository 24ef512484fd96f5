"""LoRA files that nobody here thought of: what their contents tell, and what the engine makes of them."""

from types import SimpleNamespace

import pytest
import torch
from made_adapters import adapter
from safetensors.torch import save_file
from torch import nn

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.deltas.dense import DeltaError, Dense
from lib_loratorio.deltas.low_rank import LowRank
from lib_loratorio.deltas.row_layout import Block, Layout
from lib_loratorio.engine.composer import Composer
from lib_loratorio.errors import LoratorioError
from lib_loratorio.loras import kinds
from lib_loratorio.loras.helpers import acts_everywhere
from lib_loratorio.settings import Settings

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def factors(rank=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rank, 4, generator=generator).to(dtype), torch.randn(4, rank, generator=generator).to(dtype)


def names(pattern):
    down, up = factors()
    return {pattern.format("A"): down, pattern.format("B"): up}


@pytest.mark.parametrize(
    "tensors, layout",
    [
        ({"lora_unet_a.lora_down.weight": torch.ones(2, 4)}, kinds.KOHYA),
        ({"lora_te1_a.hada_w1_a": torch.ones(2, 4)}, kinds.KOHYA),
        (names(f"unet.{LAYER}.lora_{{}}.weight"), kinds.PEFT),
        ({f"unet.{LAYER}.lora.down.weight": torch.ones(2, 4)}, kinds.DIFFUSERS),
        (names(f"unet.{LAYER}.lora_{{}}.default.weight"), kinds.NAMED_PEFT),
        (names(f"base_model.model.{LAYER}.lora_{{}}.weight"), kinds.NAMED_PEFT),
        ({"modules_to_save.weight": torch.ones(2, 4)}, kinds.UNKNOWN),
    ],
)
def test_layouts(tmp_path, tensors, layout):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    assert kinds.layout(str(path)) == layout


def test_a_file_that_is_no_safetensors_file_has_no_layout(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"broken")
    assert kinds.layout(str(path)) is None and kinds.layers(str(path)) is None


def test_layers_are_counted_by_part_of_the_model(tmp_path):
    tensors = {f"lora_unet_{n}.lora_down.weight": torch.ones(2, 4) for n in range(3)}
    tensors |= {f"lora_unet_{n}.alpha": torch.tensor(1.0) for n in range(3)}
    tensors |= {"lora_te1_x.lora_up.weight": torch.ones(4, 2), "bundle_emb.word.vectors": torch.ones(1, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert kinds.layers(str(tmp_path / "a.safetensors")) == kinds.Layers(denoiser=3, text=1)


@pytest.mark.parametrize(
    "name, metadata, expected",
    [
        ("lcm-lora-sdv1-5", None, True),
        ("Hyper-SD15-8steps", None, True),
        ("sdxl_lightning_4step", None, True),
        ("AgeSlider_v2", None, True),
        ("muscle_slider", None, True),
        ("my style", {"modelspec.title": "Turbo helper"}, True),
        ("x", {"ss_output_name": "dmd2_sdxl"}, True),
        ("hyperrealistic portrait", None, False),
        ("turbofan", None, False),
        ("cat", {"modelspec.title": "cat"}, False),
    ],
)
def test_acceleration_and_sliders_are_recognised_by_name_or_metadata(tmp_path, name, metadata, expected):
    path = tmp_path / f"{name}.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    assert acts_everywhere(str(path)) is expected


# In the engine


def bank_of(layer, *deltas):
    return AdapterBank({"layer": layer}, [{"layer": delta} for delta in deltas], budget=2**20)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.float16], ids=str)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_any_storage_is_cast_before_arithmetic(dtype, precision):
    layer = nn.Linear(4, 4, dtype=precision)
    down, up = ((3 * part).to(dtype) for part in factors())
    bank, x = bank_of(layer, LowRank(down, up, 0.5)), torch.randn(1, 4, dtype=precision)
    with bank.attached(), bank.rows(Layout((Block((0,), 1),))), torch.no_grad():
        found = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
    expected = x.float() @ (0.5 * up.float() @ down.float()).T
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    assert expected.abs().max() > 0.5 and bank.damaged == [[]] and bank.effective == [True]


BAD = {
    "down": lambda down, up: LowRank(down * torch.nan, up),
    "up": lambda down, up: LowRank(down, up / 0),
    "scale": lambda down, up: LowRank(down, up, float("inf")),
    "dense": lambda down, up: Dense(lambda: (up @ down * torch.nan, None)),
    "bias": lambda down, up: Dense(lambda: (up @ down, torch.full((4,), torch.inf))),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_values_that_are_no_numbers_are_found(bad):
    bank = bank_of(nn.Linear(4, 4), LowRank(*factors()), bad(*factors()))
    assert bank.damaged == [[], ["layer"]]


NOTHING = {
    "down": lambda down, up: LowRank(down * 0, up),
    "up": lambda down, up: LowRank(down, up * 0),
    "alpha": lambda down, up: LowRank(down, up, 0.0),
    "dense": lambda down, up: Dense(lambda: (torch.zeros(4, 4), torch.zeros(4))),
}


@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
def test_an_adapter_without_effect_is_told(nothing):
    bank = bank_of(nn.Linear(4, 4), nothing(*factors()), LowRank(*factors()))
    assert bank.effective == [False, True]


def test_a_half_precision_rule_that_the_cpu_has_not_is_told_in_our_words():
    def fails():
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    bank = bank_of(nn.Linear(4, 4), Dense(fails))
    assert isinstance(bank.failures[0]["layer"], DeltaError)
    assert "use a float32 file" in str(bank.failures[0]["layer"])


class Host:
    """A model of one linear layer."""

    def __init__(self, layer):
        self.run, self.fits, self.same_length = layer, lambda rows: True, lambda model: True


@pytest.mark.parametrize("wrong, told", [((1,), "'lora (2)'"), ((0, 1), "'lora (1)' and with the LoRA 'lora (2)'")])
def test_a_prediction_that_is_no_number_stops_with_the_step_and_the_lora(wrong, told):
    layer = nn.Linear(4, 4)
    bank = bank_of(layer, *(LowRank(*factors(), 1e38 if number in wrong else 1.0) for number in range(2)))
    composer = Composer(Settings(patch_size=1), [adapter(), adapter()], bank, Host(layer))
    call = composer.call(composer.plan(0.5, 7), torch.zeros(1, dtype=torch.long))
    with bank.attached(), torch.no_grad(), pytest.raises(LoratorioError) as error:
        call.evaluate([0, -1], lambda model, rows: torch.full((2, 4), 30.0)[rows])
    assert f"since step 8, the prediction with the LoRA {told} holds values that are no numbers" in str(error.value)


def test_a_model_that_gives_no_numbers_by_itself_blames_no_lora():
    layer = nn.Linear(4, 4)
    bank = bank_of(layer, LowRank(*factors()))
    composer = Composer(Settings(), [adapter()], bank, Host(layer))
    call = composer.call(composer.plan(0.0, 0), torch.zeros(1, dtype=torch.long))
    with bank.attached(), torch.no_grad(), pytest.raises(LoratorioError, match=r"since step 1, the model's .* without"):
        call.evaluate([0, -1], lambda model, rows: torch.full((2, 4), torch.nan)[rows])


def test_two_of_one_name_are_numbered():
    from lib_loratorio.loras.adapter import numbered_names

    assert numbered_names([SimpleNamespace(name=name) for name in "aba"]) == ["a (1)", "b", "a (2)"]
