"""Tables from records whose figures are known."""

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from lab import world
from lab.evaluation import choices, pools_report, price_report, report
from lab.evaluation.captions import COUNTS
from lab.evaluation.divergence import KINDS, OWN, PLAIN, WEIGHINGS
from lab.evaluation.measurements import Measured
from lab.evaluation.ways import (
    ABLATION,
    EVERY_STEP,
    IN_POOLS,
    LARGE,
    MERGES,
    METHODS,
    PRICED,
    SAMPLED,
    SCOUTING,
    STYLED,
    TEXTURED,
    evaluations_a_step,
)


def _records(split, ways):
    return [
        {
            "split": split,
            "way": way,
            "count": n,
            "number": number,
            "skills": ["alien", "cat"],
            "present": [share, share],
            "complete": [int(share == 1)] * 2,
            "others": [0, 1],
            "distance": [distance] * 2,
            "seconds": 0.5,
            **({"style": [share, share], "places": [share, share], "evaluations": 120.0} if split == "style" else {}),
        }
        for way, (share, distance) in ways.items()
        for n in COUNTS
        for number in range(2)
    ]


def test_wins_compare_the_same_captions():
    measured = Measured(_records("test", {"LoRAtorio": (1.0, 2.0), "Merge": (0.5, 1.0)}), "test")
    assert measured.wins("LoRAtorio", "Merge")[:3] == (1.0, 0.0, 0.0)
    assert measured.wins("LoRAtorio", "Merge")[3] == (0.0, 0.0, 0.0)


def test_best_is_the_closest_of_those_within_a_point():
    most, close, few = ways = ("lambda 0", "lambda 0.5", "lambda 1")
    measured = Measured(_records("dev", {most: (0.80, 2.0), close: (0.795, 1.0), few: (0.7, 0.1)}), "dev")
    assert choices.best(measured, ways) == close


def test_evaluations_a_step():
    assert [
        evaluations_a_step(METHODS[way], 3) for way in ("no LoRA", "Merge", "Switch", "Composite", "LoRAtorio")
    ] == [2, 2, 2, 6, 8]
    assert evaluations_a_step(METHODS["Pool, exact"], 3) == 20


def test_evaluations_are_counted_where_the_records_tell():
    records = _records("test", {"LoRAtorio": (1.0, 2.0), "Pool, scout, share 0.7": (1.0, 2.0)})
    for record in records:
        if record["way"] == "Pool, scout, share 0.7":
            record["evaluations"] = 100.0 + record["count"]
    measured = Measured(records, "test")
    assert measured.evaluations("LoRAtorio", 3) == 20 * 8 and measured.evaluations("LoRAtorio") == 20 * 9
    assert (
        measured.evaluations("Pool, scout, share 0.7", 5) == 105.0
        and measured.evaluations("Pool, scout, share 0.7") == 103.5
    )


def test_the_cheapest_that_is_as_good_is_chosen():
    exact, *pools = list(SCOUTING)[:4]
    assert exact == EVERY_STEP
    cost = dict(zip(pools, (100.0, 200.0, 300.0)))

    def chosen(*shares):
        records = _records("pool", {exact: (0.5, 2.0)} | {way: (share, 1.0) for way, share in zip(pools, shares)})
        for record in records:
            record["evaluations"] = cost.get(record["way"], 400.0)
        return choices.choices(records)["scout"]

    assert chosen(0.4, 0.495, 0.7) == pools[1]
    assert chosen(0.3, 0.4, 0.2) == pools[1]


def test_differences_are_taken_caption_by_caption():
    records = _records("test", {"LoRAtorio": (0.5, 2.0), "Merge": (0.25, 3.0)})
    for record in records:
        record["present"] = [value + record["count"] / 100 for value in record["present"]]
    assert Measured(records, "test").difference("LoRAtorio", "Merge", "present") == pytest.approx((0.25, 0.25, 0.25))


def test_report_is_written(tmp_path):
    ways = {way: (0.5, 1.0) for way in METHODS}
    records = _records("test", ways) + _records("dev", {way: (0.5, 1.0) for way in ABLATION})
    records += _records("pool", {way: (0.5, 1.0) for way in SCOUTING})
    records += _records("style", {way: (0.5, 1.0) for way in STYLED}) + _records("speed", ways)
    report.write(records, tmp_path)
    text = (tmp_path / "evaluation.md").read_text()
    assert "| Merge | 50 (50 to 50) | 50 (50 to 50) |" in text and "| LoRAtorio | 120 | 160 | 200 | 240 |" in text
    assert (
        "| LoRAtorio | 180 | 0.50 | 50 (50 to 50) |" in text
        and "| styles global | 120 | 50 (50 to 50) | 50 (50 to 50) |" in text
    )
    assert "| LoRAtorio, lambda 1 | 61% | +0.0 (+0.0 to +0.0) |" in text
    for name in ("methods", "cost", "ablation"):
        assert (tmp_path / f"evaluation-{name}.png").exists()


def test_report_of_the_price_is_written(tmp_path):
    every = {way: (0.25 if "every" in way else 0.5, 1.0) for way in SAMPLED}
    records = _records("price", {way: (0.5, 1.0) for way in PRICED}) + _records("samplings", every)
    records += _records("large", {way: (0.5, 1.0) for way in LARGE})
    records += _records("strengths", {way: (0.5, 1.0) for way in MERGES})
    for record in records:
        if record["split"] == "strengths" and record["way"] == "Merge at 0.7" and record["count"] == 4:
            record["present"] = [1.0, 1.0]
    price_report.write(records, tmp_path)
    text = (tmp_path / "evaluation-price.md").read_text()
    assert "| LoRAtorio, lambda 1, each alone every 3rd step | 70 | 50 (50 to 50) |" in text
    assert "| LoRAtorio, lambda 1, each alone every 3rd step | 39% | +0.0 (+0.0 to +0.0) |" in text
    assert "captions is Merge for N = 2, Merge for N = 3, Merge at 0.7 for N = 4, Merge for N = 5." in text
    assert "| Euler a | -25.0 (-25.0 to -25.0) | +0.0 (+0.0 to +0.0) |" in text
    assert "| against Merge at 1.2 | +0.0 (+0.0 to +0.0) |" in text
    assert "| Pool, exact, lambda 1, each alone every 3rd step |" in text.partition("## All LoRAs loaded")[2]
    assert (tmp_path / "evaluation-price.png").exists()


def _divergences(of, plain):
    """On its own word each LoRA diverges by 0.1, on plain scenes by `plain`, else by 0.02; asked ones win a quarter."""
    values = {OWN: 0.1, PLAIN: plain}
    lines = [
        {"loras": of, "lora": name, "captions": kind, "divergence": [[values.get(kind, 0.02)] * 4] * 3}
        for name in world.NAMES
        for kind in KINDS
    ]
    won = {
        "loras": of,
        "won": {str(number): [0.25, 0.5, 1.0] for number in range(8)},
        "counts": [2] * 4 + [4] * 4,
        "timesteps": [901, 401, 1],
    }
    placed = {str(number): 0.125 for number in range(8)}
    return [*lines, won, *({**won, "weighing": name, "placed": placed} for name in WEIGHINGS)]


def _records_of_pools():
    """Of the splits that the page needs; and those of the split pools."""
    price = _records("price", {"LoRAtorio": (0.75, 1.0), "Merge": (0.5, 1.0)}) + _records(
        "large", {"Pool, exact": (0.5, 2.0)}
    )
    textures = _records("textures", {way: (0.75 if way.endswith("lambda 1") else 0.5, 1.0) for way in TEXTURED})
    for record in textures:
        record |= {"style": record["present"], "places": record["present"]}
    return price, textures, _records("pools", {way: (0.75 if "regularised" in way else 0.5, 1.0) for way in IN_POOLS})


def test_report_of_pools_is_written(tmp_path):
    price, textures, _ = _records_of_pools()
    further = [{**record, "number": 2, "present": [0.0, 0.0]} for record in price if record["split"] == "price"]
    pools_report.write(textures, price + further, _divergences("shipped", 0.05), tmp_path)
    text = (tmp_path / "evaluation-pools.md").read_text()
    assert (
        "With all nine LoRAs loaded 50 (50 to 50)% of the asked skills are shown, with the asked ones alone 75 (75"
        in text
    )
    assert "the asked ones win 25 (25 to 25)% of the places" in text
    assert (
        "styles are shown +25.0 (+25.0 to +25.0) points" in text
        and "the points are +0.0 (+0.0 to +0.0) (16 captions)" in text
    )
    assert "diverges by 50% of what it does where it is asked" in text and "where 33% would be chance" in text
    assert "they win 50 (50 to 50)%," in text
    assert "| plain scene | 50.0 | 50.0 | 50.0 |" in text and "| alien | 100 | 20 | 50 | 20 |" in text
    assert "| less the empty caption's | 58 (58 to 58) | 25 (25 to 25) | 12 (12 to 12) |" in text
    assert "| Pool, exact, against LoRAtorio | -25.0 (-25.0 to -25.0) |" in text
    assert "Of one style alone." in text and "regularised against shipped" not in text
    assert (tmp_path / "evaluation-pools.png").exists()


def test_report_of_pools_compares_regularised_loras_where_they_were_measured(tmp_path):
    price, textures, pools = _records_of_pools()
    divergences = _divergences("shipped", 0.05) + _divergences("regularised", 0.01)
    pools_report.write(textures + pools, price, divergences, tmp_path)
    text = (tmp_path / "evaluation-pools.md").read_text()
    assert (
        "| Pool, exact, regularised against shipped | +25.0 (+25.0 to +25.0) |" in text and "Of one style" not in text
    )
    assert "| plain scene | 10.0 | 10.0 | 10.0 |" in text
