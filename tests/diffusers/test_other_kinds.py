"""Kinds of LoRAs that lycoris-lora knows, against weights that are changed by each kind's equation in float64."""

import math

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("lycoris")

import kinds
import tiny_pipelines as tiny
import torch
from kinds import CONVOLUTION, EQUATIONS, LINEAR, NORM, latents, written
from safetensors.torch import save_file

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers import Lora, composed
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.settings import Settings


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@pytest.mark.parametrize("kind", EQUATIONS)
def test_kinds_are_their_equations(pipe, tmp_path, kind):
    strength, _, ends = EQUATIONS[kind]
    path, of_layers = written(pipe, tmp_path, kind, ends)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    expected, ordinary = kinds.expected(pipe, of_layers, kind), latents(pipe)
    assert math.isfinite(expected.abs().max()) and (expected - ordinary).abs().max() > 1e-3 * ordinary.abs().max()
    with composed(pipe, (path, strength), lam=0, verify=True) as composition:
        found = latents(pipe)
    assert 0 < composition.tally.worst < 1e-4
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    with composed(pipe, (path, strength), method="merge"):
        assert (latents(pipe) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(latents(pipe), ordinary)
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", EQUATIONS)
def test_kinds_at_strengths_that_change_from_step_to_step(pipe, tmp_path, kind):
    path, _ = written(pipe, tmp_path, kind, EQUATIONS[kind][2])
    half = LoraTag.read({"ltw": "0.5@0"}, kind)
    with composed(pipe, (path, 0.4), lam=0):
        expected = latents(pipe)
    with composed(pipe, Lora(path, 0.8, half), lam=0, verify=True) as composition:
        found = latents(pipe)
    assert 0 < composition.tally.worst < 1e-4
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    with composed(pipe, Lora(path, 0.8), lam=0):
        assert (latents(pipe) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_several_kinds_at_once_beside_a_plain_lora(pipe, tmp_path):
    """Each is evaluated as if alone; a global one is below the rules that read the weight."""
    paths = [written(pipe, tmp_path, kind, (LINEAR, CONVOLUTION))[0] for kind in ("loha", "dora", "boft")]
    paths.append(written(pipe, tmp_path, "norm", (NORM,))[0])
    plain = tiny.write_lora(pipe, tmp_path / "plain.safetensors", 1, text=tiny.TEXT)
    ordinary = latents(pipe)
    with composed(pipe, [*paths, plain], Settings(verify=True)) as composition:
        together = latents(pipe)
    assert 0 < composition.tally.worst < 1e-4 and composition.evaluations == 2 * 2 * 6
    assert (together - ordinary).abs().max() > 0.01
    everywhere = Lora(plain, 0.5, LoraTag(role="global"))
    with composed(pipe, [everywhere, *paths[:2]], Settings(verify=True, start=0.5)) as composition:
        latents(pipe)
    assert 0 < composition.tally.worst < 1e-4
    assert torch.equal(latents(pipe), ordinary)


def test_block_weights_and_layers_without_effect(pipe, tmp_path, caplog):
    path, _ = written(pipe, tmp_path, "loha", (LINEAR,))
    tag = LoraTag.read({"lbw": ",".join(["1"] * 13 + ["0"] * 13)}, "loha")
    with composed(pipe, Lora(path, 1.0, tag)) as composition:
        layers = composition.adapters[0].source.layers_of("unet")
    assert layers and not any("up_blocks" in name for name in layers)
    state = {"lora_unet_conv_in.diff": torch.zeros_like(pipe.unet.conv_in.weight)}
    save_file(state, tmp_path / "nothing.safetensors")
    with composed(pipe, [path, tmp_path / "nothing.safetensors"]) as composition:
        assert composition.labels == ["loha"]
    assert "1 LoRAs have no effect" in caplog.text


def test_what_does_not_fit_is_refused_and_leaves_no_trace(pipe, tmp_path):
    state = {"lora_unet_conv_in.diff": torch.ones(3, 3, 3, 3)}
    save_file(state, tmp_path / "odd.safetensors")
    ordinary = latents(pipe)
    with pytest.raises(
        LoratorioError, match=r"odd.safetensors does not fit the layer unet.conv_in .*another kind of mod"
    ):
        with composed(pipe, tmp_path / "odd.safetensors"):
            pass
    with composed(pipe, written(pipe, tmp_path, "full", (CONVOLUTION,))[0], start=0.5):
        with pytest.raises(ZeroDivisionError):
            latents(pipe, callback_on_step_end=lambda *_: 1 / 0)
    assert torch.equal(latents(pipe), ordinary)
