"""What a batch of a LoRA's training has, without and with regularisation pictures."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lab import model, train, world

OWN, PLAIN = 1.0, 2.0
"""The value of every latent of a scene with the skill, and of a plain one."""


def _data(value, caption):
    return {
        "latents": torch.full((3, 4, 2, 2), value),
        "tokens": model.tokenize(model.tokenizer(), [caption] * 3),
    }


def _batch(plain, batch=400):
    """Tokens that the text encoder is given and the loss of a model that predicts no noise, of one batch."""
    given = []

    def text(tokens):
        given.append(tokens.clone())
        return SimpleNamespace(last_hidden_state=tokens)

    def net(noised, t, states):
        return SimpleNamespace(sample=torch.zeros_like(noised))

    loss_at = train.denoising_loss(_data(OWN, "zorbo"), text, net, batch, plain)
    loss = loss_at(torch.Generator().manual_seed(0))
    return given[0], loss


def test_half_of_a_regularised_batch_is_plain_and_only_that_half_loses_captions():
    own, other, empty = model.tokenize(model.tokenizer(), ["zorbo", "a red circle", ""])
    tokens, _ = _batch(_data(PLAIN, "a red circle"))
    assert (tokens[:200] == own).all()
    dropped = (tokens[200:] == empty).all(1)
    assert ((tokens[200:] == other).all(1) | dropped).all() and 5 <= dropped.sum() <= 40


def test_without_regularisation_captions_of_the_skill_are_dropped():
    tokens, _ = _batch(None)
    own, empty = model.tokenize(model.tokenizer(), ["zorbo", ""])
    dropped = (tokens == empty).all(1)
    assert ((tokens == own).all(1) | dropped).all() and 20 <= dropped.sum() <= 65


def test_a_lora_is_trained_on_with_a_stage_and_a_seed_of_its_own():
    stages = [train.stage_of(name, regularised=True) for name in world.NAMES]
    assert len({stage.seed for stage in stages} | {train.stage_of(name).seed for name in world.NAMES}) == 18
    assert {stage.steps for stage in stages} == {train.STAGES["regularised"].steps}
    assert train.stage_of("alien").steps == 3000 and train.stage_of("base").seed == 2
