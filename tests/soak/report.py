"""Logs of campaigns, and the table that adds them up: `python tests/soak/report.py LOG...`"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from checks import growth, memory

Record = dict[str, Any]


def append(path: str | None, record: Record) -> None:
    """One line of a log; nothing without a path."""
    if path:
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")


def runs(paths: Iterable[str | Path]) -> list[tuple[Record, list[Record]]]:
    """Every run in these logs, each its first line and those of its requests."""
    found: list[tuple[Record, list[Record]]] = []
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "run" in record:
                found.append((record["run"], []))
            else:
                found[-1][1].append(record)
    return found


def table(run: Record, records: Sequence[Record]) -> str:
    """What came of a run, for people."""
    composed = [record for record in records if record["outcome"] == "composed"]
    worst = max((record["verify"] for record in composed if record["verify"] is not None), default=0.0)
    faults = Counter(record["fault"] for record in records if record["fault"])
    fired = Counter(record["fault"] for record in records if record.get("fired"))
    outcomes = Counter(record["outcome"] for record in records)
    start, middle, end, pages = (size / 2**20 for size in memory(list(records)))
    seconds = sum(record.get("seconds", 0) for record in records)
    told = {
        "host": run["host"],
        "seed": run["seed"],
        "requests": f"{len(records)} in {seconds / 60:.0f} min, {60 * len(records) / max(seconds, 1):.1f} a minute",
        "outcomes": _counts(outcomes),
        "composed": f"{len(composed)}, worst verify {worst:.1e}",
        "faults": f"{sum(faults.values())}: {_counts(faults)}",
        "of these armed and met": _counts(fired),
        "memory": f"{start:.0f} MB at the start, {middle:.0f} in the middle, {end:.0f} at the end",
        "second half": f"{growth(list(records)):+.1%}, without {pages:.0f} MB that Reload UI added",
        "failures": str([record["number"] for record in records if record["problems"]] or "none"),
    }
    return "\n".join(f"{name:>24}  {text}" for name, text in told.items())


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


def total(found: Sequence[tuple[Record, Sequence[Record]]]) -> str:
    """Several runs of one host added up."""
    records = [record for _, of_run in found for record in of_run]
    composed = [record for record in records if record["outcome"] == "composed"]
    worst = max((record["verify"] for record in composed if record["verify"] is not None), default=0.0)
    faults = Counter(record["fault"] for record in records if record["fault"])
    failed = sum(bool(record["problems"]) for record in records)
    return (
        f"{len(records)} requests in {len(found)} runs, {len(composed)} composed, worst verify {worst:.1e}, "
        f"{sum(faults.values())} faults ({_counts(faults)}), {failed} failures"
    )


def main(paths: Sequence[str]) -> None:
    found = runs(paths)
    for run, records in found:
        print(table(run, records), end="\n\n")
    for host in sorted({run["host"] for run, _ in found}):
        print(f"{host}: {total([one for one in found if one[0]['host'] == host])}")


if __name__ == "__main__":
    main(sys.argv[1:])
