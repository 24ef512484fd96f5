"""The tiny model's layout."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lab import model, world


def test_grown_autoencoder_is_the_small_one_on_enlarged_blocks():
    torch.manual_seed(0)
    small = model.autoencoder(2).eval()
    model.keep_centre(small.decoder.conv_out)
    big = model.grow(small).eval()
    blocks = torch.rand(2, 3, world.CANVAS, world.CANVAS) * 2 - 1
    enlarge = torch.nn.Upsample(scale_factor=world.PIXEL, mode="nearest")
    with torch.no_grad():
        latent = small.encode(blocks).latent_dist.mode()
        assert latent.shape == (2, 4, model.LATENT, model.LATENT)
        assert torch.allclose(big.encode(enlarge(blocks)).latent_dist.mode(), latent, atol=1e-5)
        assert torch.allclose(big.decode(latent).sample, enlarge(small.decode(latent).sample), atol=1e-4)


def test_captions_with_triggers_fit_the_context():
    ids = model.tokenize(model.tokenizer(), [world.scene(("alien", "cat", "robot", "bricks", "palette"), 0)[1]])
    assert ids.shape == (1, model.TOKENS) and (ids[0] == 49407).sum() > 30


def test_whitened_latents_have_unit_covariance_and_the_same_pictures():
    torch.manual_seed(1)
    vae = model.autoencoder(2).eval()
    blocks = torch.rand(8, 3, world.CANVAS, world.CANVAS) * 2 - 1
    with torch.no_grad():
        before = vae.encode(blocks).latent_dist.mode()
        pictures = vae.decode(before).sample
        model.whiten(vae, before)
        after = vae.encode(blocks).latent_dist.mode()
        rows = after.transpose(0, 1).flatten(1)
        assert torch.allclose(torch.cov(rows), torch.eye(4), atol=1e-3) and rows.mean(1).abs().max() < 1e-4
        assert torch.allclose(vae.decode(after).sample, pictures, atol=1e-4)
