"""Block weights: what is read behind `lbw=`, and which layers it is for."""

import re

import pytest

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.block_weights import LISTS, PRESETS, BlockWeights, block_of, read_presets, read_weights

ATTENTION = "transformer_blocks_0_attn1_to_q"

BLOCKS = {
    "diffusion_model_input_blocks_0_0": "IN00",
    f"diffusion_model_input_blocks_1_1_{ATTENTION}": "IN01",
    "diffusion_model.input_blocks.11.0.in_layers.2": "IN11",
    "diffusion_model_middle_block_1_proj_in": "M00",
    "diffusion_model.middle_block.2.out_layers.3.weight": "M00",
    f"diffusion_model_output_blocks_3_1_{ATTENTION}": "OUT03",
    "diffusion_model.output_blocks.11.1.proj_out": "OUT11",
    "transformer_text_model_encoder_layers_11_mlp_fc1": "BASE",
    "0_transformer_text_model_encoder_layers_0_self_attn_q_proj": "BASE",
    "1_model_transformer_resblocks_31_attn_in_proj": "BASE",
    "clip_g.transformer.text_model.encoder.layers.3.mlp.fc2.weight": "BASE",
    "transformer_text_model_final_layer_norm": None,
    "1_model_text_projection": None,
    "diffusion_model_time_embed_0": None,
    "diffusion_model.label_emb.0.2": None,
    "diffusion_model_out_2": None,
    "diffusion_model.double_blocks.0.img_attn.qkv.weight": "D00",
    "diffusion_model.double_blocks.18.txt_mlp.0.weight": "D18",
    "diffusion_model.single_blocks.37.linear1.weight": "S37",
    "diffusion_model.img_in.weight": "IN",
    "diffusion_model.time_in.in_layer.weight": "IN",
    "diffusion_model.final_layer.linear.weight": "OUT",
    "diffusion_model.joint_blocks.3.x_block.attn.qkv": None,
}


@pytest.mark.parametrize(("layer", "block"), BLOCKS.items())
def test_blocks_of_layers(layer, block):
    assert block_of(layer) == block


def test_lists():
    """As LoRA Block Weight's page lists them."""
    sd, lycoris, sdxl, sdxl_full, flux = (" ".join(LISTS[length]) for length in (17, 26, 12, 20, 61))
    assert sd == "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
    assert lycoris.split() == ["BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))]
    assert sdxl == "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
    assert sdxl_full.split() == ["BASE", *(f"IN{n:02}" for n in range(9)), "M00", *(f"OUT{n:02}" for n in range(9))]
    assert flux.split() == [
        *("CLIP", "T5", "IN"),
        *(f"D{n:02}" for n in range(19)),
        *(f"S{n:02}" for n in range(38)),
        "OUT",
    ]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("NONE", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"),
        ("ALL", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"),
        ("INS", "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0"),
        ("IND", "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0"),
        ("INALL", "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0"),
        ("MIDD", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"),
        ("OUTD", "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0"),
        ("OUTS", "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1"),
        ("OUTALL", "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"),
        ("ALL0.5", ",".join(["0.5"] * 17)),
        ("FLUXALL", ",".join(["1"] * 61)),
    ],
)
def test_presets(name, numbers):
    assert PRESETS[name] == numbers


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("OUTS", {"BASE": 1, "IN01": 0, "OUT06": 0, "OUT07": 1, "OUT11": 1, "IN00": 0, "OUT00": 0}),
        ("ALL0.5", {"BASE": 0.5, "M00": 0.5, "IN03": 0}),
        (",".join(map(str, range(12))), {"BASE": 0, "IN04": 1, "IN08": 4, "M00": 5, "OUT00": 6, "OUT05": 11}),
        (",".join(map(str, range(20))), {"BASE": 0, "IN00": 1, "IN08": 9, "M00": 10, "OUT00": 11, "OUT08": 19}),
        (" , ".join(f"-{n}e-1 " for n in range(26)), {"IN11": -1.2, "M00": -1.3, "OUT00": -1.4, "OUT11": -2.5}),
    ],
)
def test_factors_of_a_unet(text, factors):
    weights = read_weights(f" {text} ", "a")
    layers = {block: layer for layer, block in BLOCKS.items() if block}
    for block, factor in factors.items():
        assert weights.of_block(block) == pytest.approx(factor), block
        if block in layers:
            assert weights.factor(layers[block]) == pytest.approx(factor)
    assert weights.factor("diffusion_model_time_embed_0") == 1


def test_factors_of_flux():
    weights = read_weights(",".join(map(str, range(61))), "a")
    layers = {
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": 0,
        "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": 1,
        "diffusion_model.img_in.weight": 2,
        "diffusion_model.double_blocks.18.img_attn.qkv.weight": 21,
        "diffusion_model.single_blocks.0.linear1.weight": 22,
        "diffusion_model.final_layer.linear.weight": 60,
    }
    assert {layer: weights.factor(layer) for layer in layers} == layers


@pytest.mark.parametrize(
    ("text", "x", "first"),
    [("X", "1", 1), ("X", "0.7", 0.7), ("X+0.25", "0.5", 0.75), ("X-0.25", "0.5", 0.25), (" 3 ", "1", 3)],
)
def test_numbers_that_depend_on_another(text, x, first):
    assert read_weights(f"{text}{',0' * 16}", "a", x=x).factor("encoder") == pytest.approx(first)


def test_random_numbers_are_drawn_by_a_seed():
    weights = read_weights("1,R,U" + ",R" * 14, "a")
    assert weights.is_random and not read_weights("ALL", "a").is_random
    first, again, other = (weights.drawn(seed) for seed in ("1", "1", "2"))
    assert first == again != other and not first.is_random
    assert first.numbers[0] == 1 and len(set(first.numbers)) > 10
    drawn = [weights.drawn(str(seed)).numbers for seed in range(400)]
    for place, (low, high) in ((1, (0, 1)), (2, (-0.5, 1.5))):
        values = [numbers[place] for numbers in drawn]
        assert low <= min(values) < low + 0.1 and high - 0.1 < max(values) <= high
        assert all(value == round(value, 3) for value in values)


def test_presets_of_a_text():
    text = f"""# my presets
    MINE : {",".join(["0.5"] * 12)}
NOTE: three, commas, only
OLD:{",".join("1" * 17)} # not used any more
ALL:{",".join("2" * 17)}
"""
    assert read_presets(text) == {"MINE": ",".join(["0.5"] * 12), "ALL": ",".join("2" * 17)}
    presets = {**PRESETS, **read_presets(text)}
    assert read_weights("MINE", "a", presets).factor("encoder") == 0.5
    assert read_weights("ALL", "a", presets).factor("encoder") == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("OUTAL", "which is no preset (did you mean OUTALL?); it must be 12 numbers (SDXL), 17 ("),
        ("outall", "did you mean OUTALL?"),
        ("qqq", "which is no preset; it must be 12 numbers (SDXL)"),
        ("", "which is no preset"),
        ("1,1,1", "3 numbers; it must be 12 numbers (SDXL), 17 (SD 1.x, 2.x), 20 (all blocks of SDXL), 26"),
        ("1," * 16, "in which '' is no number"),
        ("1," * 16 + "one", "in which 'one' is no number; there may be numbers, R, U and X"),
        ("1," * 16 + "nan", "in which 'nan' is no number"),
        ("1," * 16 + "X0.5", "in which 'X0.5' (with x=1) is no number"),
    ],
)
def test_what_cannot_be_read_is_named(text, words):
    with pytest.raises(SettingsError, match=re.escape(words)) as error:
        read_weights(text, "some lora")
    assert f"the LoRA 'some lora' has lbw={text}" in str(error.value)


LAYERS = {block: layer for layer, block in BLOCKS.items() if block and layer.startswith("diffusion_model")}
OF_NONE = [layer for layer, block in BLOCKS.items() if block is None and "joint" in layer]


@pytest.mark.parametrize(
    ("text", "layers", "words"),
    [
        ("FLUXALL", [LAYERS["IN01"], "diffusion_model_out_2"], "61 numbers; this model needs 12, 17, 20 or 26"),
        ("OUTALL", [LAYERS["D00"], LAYERS["S37"]], "17 numbers; this model needs 61, such as FLUXALL"),
        ("OUTALL", OF_NONE, "known for SD 1.x, SD 2.x, SDXL and FLUX.1 only"),
    ],
)
def test_numbers_of_other_models_are_named(text, layers, words):
    weights = read_weights(text, "some lora")
    with pytest.raises(SettingsError, match=words) as error:
        weights.require_suited(layers, "some lora")
    assert f"'some lora' has lbw={text}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "blocks"), [("OUTALL", ["IN01", "OUT11"]), ("FLUXALL", ["D00", "IN", "OUT"]), ("ALL", [])]
)
def test_numbers_of_this_model(text, blocks):
    read_weights(text, "a").require_suited([LAYERS[block] for block in blocks], "a")


def test_equal_weights_are_one_key():
    assert len({read_weights("ALL", "a"), BlockWeights("ALL", (1.0,) * 17)}) == 1
