"""Regions and shares of adapters: the masks, the weights, and what is planned and combined with them."""

import math

import pytest
import torch
from made_adapters import adapter

from lib_loratorio.engine.methods import BASE, Plan, Predictions, _softmin
from lib_loratorio.engine.noise_space import NoiseSpace
from lib_loratorio.engine.places import Places, region_mask
from lib_loratorio.engine.planner import Planner
from lib_loratorio.engine.price import evaluations_per_step
from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.region import WHOLE, WORDS, Box, Region
from lib_loratorio.loras.tag import LOCAL, LoraTag
from lib_loratorio.page.live import price
from lib_loratorio.settings import Settings


def tag(**named):
    return LoraTag.read(named, "a")


def mask(text, size, window=WHOLE, feather=0.0):
    return region_mask(tag(ltbox=text).region, size, window, feather)


# Tags


@pytest.mark.parametrize(
    "named, boxes",
    [
        ({"ltbox": "0,0,.5,1"}, [(0, 0, 0.5, 1)]),
        ({"LTBOX ": " 0, 0.25 ,0.5,1 + 0.5,0,1,0.5"}, [(0, 0.25, 0.5, 1), (0.5, 0, 1, 0.5)]),
        ({"ltat": "Left"}, [(0, 0, 0.5, 1)]),
        ({"ltat": "top-right"}, [(0.5, 0, 1, 0.5)]),
        ({"ltat": "left-third+right-third"}, [(0, 0, 1 / 3, 1), (2 / 3, 0, 1, 1)]),
        ({"ltat": "center", "ltbox": "0,0,1,0.1"}, [(0, 0, 1, 0.1), (0.25, 0.25, 0.75, 0.75)]),
    ],
)
def test_regions_of_tags(named, boxes):
    read = tag(**named)
    assert list(read.region.boxes) == boxes
    assert tag(**dict(part.split("=") for part in read.text[1:].split(":"))) == read


def test_a_tag_without_a_place_has_none():
    assert not LOCAL.has_place and tag(ltshare="0.5").has_place and tag(ltshare="1").text == ":ltshare=1"


@pytest.mark.parametrize(
    "named, match",
    [
        ({"ltbox": "0,0,2,1"}, "ltbox=0,0,2,1; it must be four fractions of the picture from 0 to 1"),
        ({"ltbox": "0,0,1"}, "ltbox=0,0,1; it must be four"),
        ({"ltbox": "0,0,nan,1"}, "it must be four"),
        ({"ltbox": "a,0,1,1"}, "such as 0,0,0.5,1"),
        ({"ltbox": ""}, "it must be four"),
        ({"ltbox": "0,0,1,1+"}, "it must be four"),
        ({"ltbox": "0,0,0.5,1+0.5,0,0.5,1"}, "of which the box 0.5,0,0.5,1 is empty"),
        ({"ltbox": "0,0.9,1,0.1"}, "is empty"),
        ({"ltat": "leftish"}, "ltat=leftish; it must be one of left, right, top, bottom, center, top-left"),
        ({"ltat": "left+"}, "ltat=left"),
        ({"ltshare": "0"}, "ltshare=0; it must be a number above 0 and up to 1"),
        ({"ltshare": "1.2"}, "ltshare=1.2"),
        ({"ltshare": "half"}, "ltshare=half"),
        ({"ltboxes": "0,0,1,1"}, "'ltboxes', which is not known"),
        ({"at": "left"}, "'at', which is not known; the names are"),
        ({"Box": "0,0,1,1"}, "'box', which is not known"),
    ],
)
def test_what_is_no_place_is_named(named, match):
    with pytest.raises(SettingsError, match=match) as error:
        LoraTag.read(named, "some lora")
    assert "some lora" in str(error.value)


# Masks


def test_edges_between_latent_pixels_are_sharp_without_a_feather():
    assert mask("0.25,0,0.75,0.5", (4, 8)).tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]] * 2 + [[0] * 8] * 2
    assert mask("0,0,0.4375,1", (1, 8)).tolist() == [[1, 1, 1, 0.5, 0, 0, 0, 0]]


def test_a_feather_is_a_share_of_the_shorter_edge_and_never_at_the_border():
    row = mask("0,0,0.5,1", (10, 20), feather=0.4)[0]  # four latent pixels
    assert row.tolist() == pytest.approx([1.0] * 8 + [0.875, 0.625, 0.375, 0.125] + [0.0] * 8)
    column = mask("0,0.5,1,1", (10, 20), feather=0.4)[:, 0]
    assert column.tolist() == pytest.approx([0.0] * 3 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 3)


@pytest.mark.parametrize("feather", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(
    "words", [("left", "right"), ("left-third", "middle-third", "right-third"), ("top", "bottom-left", "bottom-right")]
)
def test_places_that_tile_the_picture_have_shares_that_sum_to_one(words, feather):
    masks = [region_mask(Region(words=(word,)), (13, 22), feather=feather) for word in words]
    assert torch.allclose(sum(masks), torch.ones(13, 22, dtype=torch.float64))
    assert all(0 <= mask.min() and mask.max() <= 1 for mask in masks)
    union = region_mask(Region(words=words), (13, 22), feather=feather)
    assert torch.allclose(union, torch.ones(13, 22, dtype=torch.float64))


def test_outside_there_is_not_even_a_rounding_error():
    for word in WORDS:
        outside = region_mask(Region(words=(word,)), (9, 12), feather=0.1)
        assert not ((outside > 0) & (outside < 1e-6)).any()


def test_every_word_is_a_part_of_the_picture():
    for box in WORDS.values():
        assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1


def test_a_part_of_the_picture_has_its_part_of_the_region():
    whole = mask("0.25,0.25,0.625,1", (16, 32), feather=0.2)
    part = mask("0.25,0.25,0.625,1", (8, 8), Box(0.25, 0.5, 0.5, 1), feather=0.2)
    assert torch.allclose(part, whole[8:, 8:16])
    assert 0 < part.min() < part.max() == 1


# Weights


def placed(masks, shares=None, patch_size=1):
    tensors = [torch.tensor(row, dtype=torch.float64)[None] for row in masks]
    return Places.of(tensors, shares or [None] * len(masks), patch_size)


def weights_of(places, similarity, temperature=0.1, top_k=None):
    similarity = torch.tensor(similarity, dtype=torch.float64)[:, None, None]
    return _softmin(similarity, temperature, top_k, places)[:, 0, 0]


def test_a_region_is_a_factor_on_the_weights():
    masks = [[1, 1, 0, 0, 0.25], [0, 1, 0, 0.5, 0.5], [0, 0.5, 0, 0, 0]]
    similarity = [[0.9] * 5, [0.7] * 5, [0.5] * 5]
    found = weights_of(placed(masks), similarity)
    w = [math.exp(-one[0] / 0.1) for one in similarity]
    overlap = [1 * w[0], 1 * w[1], 0.5 * w[2]]
    edge = [0.25 * w[0], 0.5 * w[1]]
    expected = [
        [1, overlap[0] / sum(overlap), 0, 0, 0.75 * edge[0] / sum(edge)],
        [0, overlap[1] / sum(overlap), 0, 0.5, 0.75 * edge[1] / sum(edge)],
        [0, overlap[2] / sum(overlap), 0, 0, 0],
    ]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))


def test_who_must_not_be_in_a_place_takes_no_weight_however_much_it_diverges():
    found = weights_of(placed([[1], [0]]), [[1.0], [-1.0]], temperature=1e-6)
    assert found.tolist() == [[1], [0]]


def test_the_k_that_are_kept_are_of_those_that_may_be_there():
    found = weights_of(placed([[0, 1], [1, 1], [1, 1]]), [[0.0, 0.0], [0.5, 0.5], [0.9, 0.9]], top_k=1)
    assert found.tolist() == [[0, 1], [1, 0], [0, 0]]


def test_shares_are_fixed_and_the_others_compete_for_the_rest():
    found = weights_of(placed([[1, 1, 0.5], [1, 1, 1], [0, 1, 0]], [0.75, None, 0.75]), [[0.9] * 3] * 3)
    assert torch.allclose(found.sum(0), torch.ones(3, dtype=torch.float64))
    assert found.tolist() == [pytest.approx([0.75, 0.5, 0.375]), pytest.approx([0.25, 0, 0.625]), [0, 0.5, 0]]
    assert weights_of(placed([[1]], [0.75]), [[0.9]]).tolist() == [[0.75]]


def test_a_patch_has_the_mean_of_its_pixels():
    places = placed([[1, 1, 1, 0, 0]], patch_size=2)
    assert places.masks.flatten().tolist() == [1, 0.5, 0]


# Methods


def composed(settings, tags, conditional, unconditional, step=0):
    planned = Planner(settings, [adapter(one) for one in tags]).step(0.0, step)
    plan = planned.plan
    predictions = Predictions(
        {model: conditional[model] for model in plan.conditional},
        {model: unconditional[model] for model in plan.unconditional},
        NoiseSpace.noise(),
        torch.arange(1),
    )
    return plan, planned.method.combine(predictions)


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(3)

    def made():
        return {model: torch.randn(1, 4, 6, 8, generator=generator, dtype=torch.float64) for model in (BASE, 0, 1, 2)}

    return made(), made()


LEFT, RIGHT = tag(ltat="left"), tag(ltat="right")
SHARP = {"feather": 0.0}


@pytest.mark.parametrize("method", ["loratorio", "composite"])
def test_two_halves_are_each_ones_own(method, predictions):
    cond, uncond = predictions
    settings = Settings(method=method, lam=0.0, **SHARP)
    plan, found = composed(settings, [LEFT, RIGHT], cond, uncond)
    assert plan == Plan((BASE, 0, 1), (BASE, 0, 1))
    for part, of in ((found.conditional, cond), (found.unconditional, uncond)):
        assert torch.allclose(part[..., :4], of[0][..., :4]) and torch.allclose(part[..., 4:], of[1][..., 4:])


@pytest.mark.parametrize("method", ["loratorio", "composite", "switch"])
def test_where_nobody_may_be_the_base_speaks(method, predictions):
    cond, uncond = predictions
    settings = Settings(method=method, lam=0.0, **SHARP)
    plan, found = composed(settings, [LEFT, tag(ltbox="0,0,0.25,1")], cond, uncond)
    assert BASE in plan.conditional and BASE in plan.unconditional
    assert torch.allclose(found.conditional[..., 4:], cond[BASE][..., 4:])
    assert torch.allclose(found.unconditional[..., 4:], uncond[BASE][..., 4:])
    assert torch.allclose(found.conditional[..., 2:4], cond[0][..., 2:4])
    if method == "composite":
        assert torch.allclose(found.conditional[..., :2], ((cond[0] + cond[1]) / 2)[..., :2])


def test_one_without_a_region_leaves_nothing_to_the_base(predictions):
    cond, uncond = predictions
    plan, found = composed(Settings(method="composite", **SHARP), [LEFT, LOCAL], cond, uncond)
    assert plan == Plan((0, 1), (0, 1))
    assert torch.allclose(found.conditional[..., 4:], cond[1][..., 4:])
    assert torch.allclose(found.conditional[..., :4], ((cond[0] + cond[1]) / 2)[..., :4])


def test_recentring_is_as_ever(predictions):
    cond, uncond = predictions
    _, found = composed(Settings(lam=0.25, **SHARP), [LEFT, RIGHT], cond, uncond)
    expected = 0.25 * uncond[BASE] + 0.75 * torch.cat([uncond[0][..., :4], uncond[1][..., 4:]], -1)
    assert torch.allclose(found.unconditional, expected)
    assert torch.allclose(found.weights.sum(0), torch.ones(1, 6, 8, dtype=torch.float64))


@pytest.mark.parametrize("method", ["loratorio", "composite", "switch"])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_global_one_with_a_region_is_added_by_its_own_difference(method, lam, predictions):
    cond, uncond = predictions
    settings = Settings(method=method, lam=lam, **SHARP)
    plan, found = composed(settings, [LOCAL, tag(lt="global", ltat="top", ltshare="0.5")], cond, uncond)
    assert plan == Plan((BASE, 0, 1), (BASE, 1) if method == "loratorio" and lam == 1 else (BASE, 0, 1))
    gate = torch.zeros(6, 8, dtype=torch.float64)
    gate[:3] = 0.5
    assert torch.allclose(found.conditional, cond[0] + gate * (cond[1] - cond[BASE]))
    start = uncond[BASE] if method == "loratorio" and lam == 1 else uncond[0]
    assert torch.allclose(found.unconditional, start + gate * (uncond[1] - uncond[BASE]))
    assert found.weights is None or len(found.weights) == 1


def test_a_global_one_with_a_region_alone_is_added_to_the_base(predictions):
    cond, uncond = predictions
    plan, found = composed(Settings(**SHARP), [tag(lt="global", ltat="left")], cond, uncond)
    assert plan == Plan((BASE, 0), (BASE, 0))
    assert torch.allclose(found.conditional, torch.cat([cond[0][..., :4], cond[BASE][..., 4:]], -1))


def test_without_places_nothing_is_different(predictions):
    cond, uncond = predictions
    _, found = composed(Settings(), [LOCAL, LOCAL], cond, uncond)
    _, whole = composed(Settings(), [tag(ltbox="0,0,1,1"), LOCAL], cond, uncond)
    assert torch.allclose(found.conditional, whole.conditional)
    assert torch.allclose(found.weights, whole.weights)


# Price


@pytest.mark.parametrize(
    "settings, tags, evaluations",
    [
        ({}, [LEFT, RIGHT], 6),
        ({"lam": 1.0}, [LEFT, RIGHT], 4),
        ({"lam": 0.0}, [LEFT, RIGHT], 6),
        ({"lam": 0.0}, [LEFT], 4),
        ({"method": "composite"}, [LEFT, RIGHT], 6),
        ({"method": "switch"}, [LEFT, RIGHT], 4),
        ({"lam": 1.0}, [tag(lt="global", ltat="left")], 4),
    ],
)
def test_the_price_has_the_base_and_what_is_gated(settings, tags, evaluations):
    assert evaluations_per_step(Settings(**settings), tags) == evaluations


def test_the_page_tells_the_price_with_regions():
    told = price("<lora:a:1:ltat=left> <lora:b:1:ltat=right>", Settings(method="composite"))
    assert told["evaluations"] == 6 and [lora["role"] for lora in told["loras"]] == ["local"] * 2
    assert price("<lora:a:1:lt=global:ltat=left> <lora:b:1>", Settings())["evaluations"] == 6
    assert price("<lora:a:1:lt=global:ltat=lef> <lora:b:1>", Settings())["evaluations"] == 3
