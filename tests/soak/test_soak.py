"""A thousand mixed requests, and faults among them, leave a WebUI as it was.

    pytest tests/soak --webui-url URL --webui-dir DIR --seed 1 --requests 1000 --log soak.jsonl
    pytest tests/soak --webui-url URL --webui-dir DIR --seed 1 --only 37      # one of them again, or --only 30-37

Weights, hooks and caches are looked at after each request by a small script in the WebUI, see `extension/`.
"""

import json
import time

import checks
import faults
import pytest
import requests

pytestmark = pytest.mark.e2e


def test_request(campaign, number):
    request = campaign.request(number)
    try:
        record = _carried_out(campaign, number, request)
    except requests.ConnectionError as error:
        problems = [f"the WebUI does not answer any more: {error}"]
        campaign.record({"number": number, "fault": _kind(request), "outcome": "gone", "problems": problems})
        pytest.exit(_told(campaign, number, request, problems), returncode=1)
    campaign.record(record)
    if record["problems"]:
        pytest.fail(_told(campaign, number, request, record["problems"]), pytrace=False)


def _carried_out(campaign, number, request):
    """One request, and all that has to hold after it; told as a line of the log."""
    start = time.monotonic()
    reloads = _kind(request) == "Reload UI"
    before = campaign.host.state(thorough=True)["rss"] if reloads else 0
    result = faults.carry_out(campaign.stage, request)
    compared = number % checks.EVERY == checks.EVERY - 1
    if compared:
        result.problems += campaign.baseline.changed_pictures()
    thorough = compared or reloads or number % 5 == 0
    state = campaign.host.state(thorough, conditions=_kind(request) != "options" or compared)
    result.problems += campaign.baseline.after(state)
    record = {
        "number": number,
        "fault": _kind(request),
        "fired": result.fired,
        "outcome": result.outcome,
        "verify": result.worst,
        "calls": sum(calls for _, calls in result.answer.verified),
        "message": result.answer.message,
        "conditions": state.get("conditions"),
        "rss": state["rss"] if thorough else None,
        "cpu": state["cpu"],
        "seconds": round(time.monotonic() - start, 1),
        "problems": result.problems,
    }
    if reloads:
        record["page"] = state["rss"] - before
    if result.problems:
        record["request"] = request
    return record


def _kind(request):
    return request["fault"] and request["fault"]["kind"]


def _told(campaign, number, request, problems):
    without = f" --without '{','.join(campaign.without)}'" if campaign.without else ""
    return "\n".join(
        [
            *problems,
            f"again: pytest tests/soak --seed {campaign.seed} --only {number}{without}",
            json.dumps(request),
        ]
    )


def test_memory(campaign):
    """What is held does not grow over the second half."""
    if len(campaign.records) < 50:
        pytest.skip("needs at least 50 requests")
    assert checks.growth(campaign.records) <= checks.GROWTH
