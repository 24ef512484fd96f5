"""The price that the page tells, against the rows that the model is asked for, on every host."""

import pytest
from internals import Settings, price
from samples import ON
from test_masks import mask

PAIR = "<lora:a:0.8> <lora:b:0.6>"
PLACES = {
    "none": (PAIR, ""),
    "one region": ("<lora:a:0.8:ltat=left> <lora:b:0.6>", ""),
    "two regions": ("<lora:a:0.8:ltat=left> <lora:b:0.6:ltbox=0.25,0,1,1>", ""),
    "a share": ("<lora:a:0.8:ltshare=0.5> <lora:b:0.6:ltat=top>", ""),
    "painted": (PAIR, mask()),
    "one painted": (PAIR, mask(colours=((230, 159, 0), (0, 0, 0)))),
    "painted, and a region": ("<lora:a:0.8:ltat=top> <lora:b:0.6>", mask(colours=((0, 0, 0), (86, 180, 233)))),
    "three": ("<lora:a:0.8:ltat=top> <lora:b:0.6> <lora:text:0.5>", mask(colours=((0, 0, 0), (86, 180, 233)))),
    "global": ("<lora:text:0.7:lt=global:ltat=top> <lora:a:0.8:ltat=left>", ""),
    "global alone": ("<lora:text:0.7:lt=global:ltat=top>", ""),
    "global everywhere": ("<lora:text:0.7:lt=global> <lora:a:0.8>", mask(colours=((230, 159, 0), (0, 0, 0)))),
}


@pytest.mark.parametrize("guidance_every", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"lam": 0.0}, {"lam": 1.0}, {"method": "composite"}, {"method": "switch"}, {"method": "merge"}],
    ids=str,
)
def test_the_price_is_what_is_evaluated(host, settings, guidance_every, monkeypatch):
    rows, told, made = host.count_rows(monkeypatch), {}, {}
    for places, (tags, painted) in PLACES.items():
        given = {**settings, "guidance_every": guidance_every, "mask": painted}
        steps = 5 * tags.count("lora:") if settings.get("method") == "switch" else 2
        rows.clear()
        host.generate(f"a cat {tags}", {**ON, **given}, steps=steps)
        made[places] = sum(rows) / steps
        told[places] = price(f"a cat {tags}", Settings(**given))["evaluations"]
    assert told == pytest.approx(made)
