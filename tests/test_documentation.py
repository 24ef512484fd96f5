"""README and docs: where their links lead, and what the README says of prices."""

import re
from pathlib import Path

import pytest
from told_messages import messages

from lib_loratorio.engine.price import PLAIN, evaluations_per_step
from lib_loratorio.loras.tag import LOCAL
from lib_loratorio.presets import PRESETS
from lib_loratorio.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "lab/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def links(page):
    """The files that a page links to."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in found if not link.startswith(("http:", "https:"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert [link for link in links(page) if not link.exists()] == []


def test_every_page_of_the_docs_can_be_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {link for page in new for link in links(page) if link.suffix == ".md"} - reached
    assert set(PAGES) - reached == set()


def test_the_readme_is_short():
    assert 550 < len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 800


def test_prices_in_the_readme_and_of_performance():
    readme, performance = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/performance.md"))
    for preset, values in PRESETS.items():
        costs = [round(evaluations_per_step(Settings(**values), [LOCAL] * count), 1) for count in (2, 3, 5)]
        assert f"| {preset} | {' | '.join(f'{cost:g}' for cost in costs)} |" in readme
        assert re.search(rf"^\| \*{preset}\* .* \| {costs[1]:g} \|$", performance, re.MULTILINE)
    assert f"An ordinary picture takes {PLAIN}" in readme


def entries():
    """The parts of messages that troubleshooting has, left in its tables."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1].strip() for row in page.splitlines() if row.startswith("| ")]
    return [part for row in rows if row != "message" for part in row.split("<br>")]


def test_every_message_has_its_entry_in_troubleshooting():
    parts = entries()
    assert [text for text in messages() if not any(part in text for part in parts)] == []


def test_every_entry_of_troubleshooting_is_of_a_message():
    """Of few enough, since an entry that is part of many would hide that one has none."""
    told = [text for text in messages()]
    found = {part: sum(part in text for text in told) for part in entries()}
    assert len(found) == len(entries())
    assert {part: count for part, count in found.items() if not 0 < count < 8} == {}
    assert len(told) > 200


def test_each_row_of_troubleshooting_says_what_to_do():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in page.splitlines() if row.startswith("| ")]
    assert [row for row in rows if len(row) != 4 or (len(row[2].split()) < 2 and row[1].strip() != "message")] == []
