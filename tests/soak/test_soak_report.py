"""What a campaign's log adds up to."""

import report
from checks import growth, memory

MB = 2**20


def records(sizes, **changes):
    plain = {"fault": None, "outcome": "composed", "verify": 2e-6, "seconds": 3.0, "problems": []}
    return [{**plain, "number": number, "rss": size * MB, **changes} for number, size in enumerate(sizes)]


def test_memory_is_that_of_the_second_half():
    assert growth(records([500] * 20 + [1000] * 80)) == 0
    assert growth(records([1000] * 70 + [1100] * 30)) > 0.09
    assert memory(records([100, 200, 300])) == (100 * MB, 200 * MB, 300 * MB, 0)
    assert growth([]) == 0


def test_what_reload_ui_adds_is_the_webuis_own():
    some = records([1000] * 60 + [1100] * 40)
    some[60]["page"] = 100 * MB
    assert growth(some) == 0


def test_runs_of_several_logs_add_up(tmp_path):
    path = tmp_path / "log.jsonl"
    for seed in (1, 2):
        report.append(path, {"run": {"host": "A1111", "seed": seed}})
        for record in records([1000] * 3, fault="skip", fired=1):
            report.append(path, record)
    found = report.runs([path])
    assert [run["seed"] for run, _ in found] == [1, 2]
    assert (
        report.total(found) == "6 requests in 2 runs, 6 composed, worst verify 2.0e-06, 6 faults (6 skip), 0 failures"
    )
    assert "3 composed, worst" in report.table(*found[0]).replace("composed  3", "3 composed")
