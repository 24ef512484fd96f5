"""Tables from records whose figures are known."""
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from lab import evaluate, report


def _records(split, ways):
    return [{"split": split, "way": way, "count": n, "number": number, "skills": ["alien", "cat"], "present": [share, share],
             "complete": [int(share == 1)] * 2, "others": [0, 1], "distance": [distance] * 2, "seconds": 0.5}
            for way, (share, distance) in ways.items() for n in evaluate.COUNTS for number in range(2)]


def test_wins_compare_the_same_captions():
    measured = report.Measured(_records("test", {"LoRAtorio": (1.0, 2.0), "Merge": (0.5, 1.0)}), "test")
    assert measured.wins("LoRAtorio", "Merge")[:3] == (1.0, 0.0, 0.0)
    assert measured.wins("LoRAtorio", "Merge")[3] == (0.0, 0.0, 0.0)


def test_best_is_the_closest_of_those_within_a_point():
    measured = report.Measured(_records("dev", {"a": (0.80, 2.0), "b": (0.795, 1.0), "c": (0.7, 0.1)}), "dev")
    assert report.best(measured, ["a", "b", "c"]) == "b"


def test_evaluations_a_step():
    assert [report.evaluations(evaluate.METHODS[way], 3) for way in ("no LoRA", "Merge", "Switch", "Composite", "LoRAtorio")] == [2, 2, 2, 6, 8]
    assert report.evaluations(evaluate.METHODS["LoRAtorio, all loaded, top-k"], 3) == 20


def test_report_is_written(tmp_path):
    ways = {way: (0.5, 1.0) for way in evaluate.METHODS}
    records = _records("test", ways) + _records("dev", {way: (0.5, 1.0) for way in evaluate.ablation()})
    report.write(records, tmp_path)
    text = (tmp_path / "evaluation.md").read_text()
    assert "| Merge | 50 (50 to 50) | 50 (50 to 50) |" in text and "| LoRAtorio | 6 | 8 | 10 | 12 | 0.50 |" in text
    assert (tmp_path / "evaluation-methods.png").exists() and (tmp_path / "evaluation-ablation.png").exists()
