"""composition.py against hand-computed values, an independent formula, and the method's properties."""

import math

import pytest
import torch

from lib_loratorio.composition import compose, expand_weights, patch_similarity, recenter, softmin_weights


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 4, 7, 9, generator=generator, dtype=torch.float64)
    adapted = base + 0.3 * torch.randn(3, 2, 4, 7, 9, generator=generator, dtype=torch.float64)
    return base, adapted


def test_similarity_by_hand():
    base = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    adapted = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]], [[[0.0, 3.0], [0.0, 2.0]]]]).unsqueeze(1)
    whole = patch_similarity(base, adapted, 2)
    assert whole.shape == (2, 1, 1, 1)
    assert whole.flatten().tolist() == pytest.approx([1.0, 4 / (math.sqrt(5) * math.sqrt(13))])


def test_similarity_equals_torch_cosine_on_every_patch(predictions):
    base, adapted = predictions
    similarity = patch_similarity(base, adapted, 4)
    assert similarity.shape == (3, 2, 2, 3)
    for row, column in [(0, 0), (0, 2), (1, 1), (1, 2)]:  # the last row and column are cut off by the border
        place = (..., slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        expected = torch.cosine_similarity(adapted[place].flatten(2), base[place].flatten(1).expand(3, -1, -1), dim=-1)
        torch.testing.assert_close(similarity[..., row, column], expected, rtol=1e-12, atol=1e-12)


def test_patch_of_one_pixel_and_patch_larger_than_the_latent(predictions):
    base, adapted = predictions
    assert patch_similarity(base, adapted, 1).shape == (3, 2, 7, 9)
    whole = patch_similarity(base, adapted, 100)
    expected = torch.cosine_similarity(adapted.flatten(2), base.flatten(1).expand(3, -1, -1), dim=-1)
    torch.testing.assert_close(whole[..., 0, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [0.3, -0.3])
def test_similarity_stays_between_minus_one_and_one_where_rounding_would_leave_them(factor):
    base = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    similarity = patch_similarity(base, factor * base.unsqueeze(0), 1)
    assert similarity.abs().max() == 1
    assert (similarity * math.copysign(1, factor)).min() > 1 - 1e-6


def test_zero_patch_is_no_divergence():
    base = torch.ones(1, 1, 2, 4)
    base[..., :2] = 0
    adapted = torch.ones(1, 1, 1, 2, 4)
    adapted[..., 2:] = 0
    assert patch_similarity(base, adapted, 2).flatten().tolist() == [1.0, 1.0]


def test_half_precision_is_computed_in_float32():
    base = torch.full((1, 4, 8, 8), 200.0, dtype=torch.float16)  # 256 squares of 4e4 overflow float16
    adapted = base.unsqueeze(0) * torch.tensor([1.0, 0.5], dtype=torch.float16).view(2, 1, 1, 1, 1)
    similarity = patch_similarity(base, adapted, 8)
    assert similarity.dtype == torch.float32
    assert similarity.flatten().tolist() == pytest.approx([1.0, 1.0])
    assert compose(adapted, torch.full((2, 1, 8, 8), 0.5)).dtype == torch.float16


def test_float64_stays_float64(predictions):
    base, adapted = predictions
    assert softmin_weights(patch_similarity(base, adapted, 2), 0.1).dtype == torch.float64


def test_weights_by_hand():
    similarity = torch.tensor([0.9, 1.0, 0.7]).view(3, 1, 1, 1)
    e = [math.exp(-s / 0.1) for s in (0.9, 1.0, 0.7)]
    assert softmin_weights(similarity, 0.1).flatten().tolist() == pytest.approx([x / sum(e) for x in e], rel=1e-5)
    two = softmin_weights(similarity, 0.1, top_k=2).flatten().tolist()
    assert two == pytest.approx([e[0] / (e[0] + e[2]), 0.0, e[2] / (e[0] + e[2])], rel=1e-5)


def test_weights_sum_to_one_and_follow_permutations(predictions):
    base, adapted = predictions
    for top_k in (None, 1, 2, 3):
        weights = softmin_weights(patch_similarity(base, adapted, 3), 0.02, top_k)
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
        assert (weights > 0).sum(0).max() <= (top_k or 3)
        order = [2, 0, 1]
        permuted = softmin_weights(patch_similarity(base, adapted[order], 3), 0.02, top_k)
        torch.testing.assert_close(permuted, weights[order])


def test_temperature_limits(predictions):
    base, adapted = predictions
    similarity = patch_similarity(base, adapted, 3)
    torch.testing.assert_close(softmin_weights(similarity, 1e9), torch.full_like(similarity, 1 / 3))
    torch.testing.assert_close(softmin_weights(similarity, 1e9, 2).amax(0), torch.full_like(similarity[0], 1 / 2))
    coldest = softmin_weights(similarity, 1e-6)
    assert torch.equal(coldest.argmax(0), similarity.argmin(0))
    assert coldest.amax(0).min() > 0.999


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        softmin_weights(torch.ones(1, 1, 1, 1), temperature)


def test_bad_patch_size_top_k_and_shapes():
    with pytest.raises(ValueError, match="patch_size is 0"):
        patch_similarity(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="top_k is -1"):
        softmin_weights(torch.ones(1, 1, 1, 1), 1.0, -1)
    with pytest.raises(ValueError, match="adapted"):
        patch_similarity(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 1, 2, 2), 1)


def test_expand_cuts_the_border_patches():
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert expand_weights(weights, 2, (3, 3))[0, 0].tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4]]


def test_compose_and_recenter_by_hand():
    adapted = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1).expand(2, 1, 2, 1, 1)
    weights = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    composed = compose(adapted, weights)
    assert composed.flatten().tolist() == [2.5, 2.5]
    assert recenter(torch.full((1, 2, 1, 1), 10.0), composed, 0.2).flatten().tolist() == pytest.approx([4.0, 4.0])


def test_a_lora_twice_equals_it_once(predictions):
    base, adapted = predictions
    once = adapted[:1]
    twice = torch.cat([once, once])
    weights = expand_weights(softmin_weights(patch_similarity(base, twice, 2), 0.05), 2, (7, 9))
    torch.testing.assert_close(compose(twice, weights), once[0])


def test_one_adapter_has_weight_one(predictions):
    base, adapted = predictions
    weights = softmin_weights(patch_similarity(base, adapted[:1], 2), 0.05)
    assert torch.equal(weights, torch.ones_like(weights))
