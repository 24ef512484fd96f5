"""Weight maps: the panels beside the pictures, what is saved of them, and the shares that the API tells."""

import importlib
import json

import pytest
from samples import GLOBAL_TAGS, NOTE, ON, SHARES, TAGS


def shares_of(p):
    return json.loads(p.extra_generation_params[SHARES])


def saved():
    return importlib.import_module("modules.images").saved


def test_weight_maps_are_the_calls_mean_weights(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True, "patch_size": 2}, batch_size=2, n_iter=2, steps=2)
    shares = shares_of(p)
    assert len(shares) == 4 and [set(share["mean"]) for share in shares] == [{"a", "b"}] * 4
    for batch in (shares[:2], shares[2:]):
        by_picture = [sum(picture["mean"][name] for picture in batch) / 2 for name in ("a", "b")]
        by_call = [sum(call[name] for call in batch[0]["by_call"]) / 2 for name in ("a", "b")]
        assert by_picture == pytest.approx(by_call, abs=1e-6)
        assert len(batch[0]["by_call"]) == 2
        assert all(sum(call.values()) == pytest.approx(1) for call in batch[0]["by_call"])
    assert shares[0]["mean"] != shares[1]["mean"]
    assert len(p.processed.images) == 8 and p.processed.infotexts[4:] == p.processed.infotexts[:4]
    told = [tuple(picture[key] for key in ("basename", "path", "grid", "info", "seed")) for picture in saved()]
    assert told == [("loratorio", "grids", True, f"picture {n}", 1 + n) for n in range(4)]
    assert saved()[0]["image"] is p.processed.images[4] and saved()[0]["image"].width > 4 * p.width


def test_maps_show_local_adapters(host):
    p, _ = host.generate(f"a cat {GLOBAL_TAGS}", {**ON, "maps": True})
    (share,) = shares_of(p)
    assert set(share["mean"]) == {"a", "b"} and sum(share["mean"].values()) == pytest.approx(1)


def test_weight_maps_of_a_hires_pass_take_the_first_passs_place(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True}, enable_hr=True, steps=2, hr_second_pass_steps=1)
    (share,) = shares_of(p)
    assert len(share["by_call"]) == 1


def test_weight_maps_show_windows_and_sub_prompts(host):
    p, _ = host.generate("a cat AND a dog :0.5 <lora:a:1:ltend=0.5> <lora:b:0.5>", {**ON, "maps": True}, steps=2)
    (share,) = shares_of(p)
    assert 0 < share["by_call"][0]["a"] < 1 and share["by_call"][1] == {"a": 0.0, "b": 1.0}


def test_maps_of_a_method_without_weights_are_a_note(host):
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True, "method": "switch"})
    assert "no weight maps with the method switch" in p.extra_generation_params[NOTE]
    assert len(p.processed.images) == 1 and SHARES not in p.extra_generation_params


def test_saved_grids_are_the_hosts_choice(host):
    host.shared.opts.grid_save = False
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    assert len(p.processed.images) == 2 and saved() == []


@pytest.mark.parametrize(("chosen", "ending"), [("as grids", "jpg"), ("webp", "webp")])
def test_format_of_saved_maps(host, chosen, ending):
    host.shared.opts.grid_format, host.shared.opts.loratorio_map_format = "jpg", chosen
    host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    assert [picture["extension"] for picture in saved()] == [ending]


def test_maps_that_cannot_be_drawn_are_a_note(host, monkeypatch):
    def no_font(size):
        raise OSError("no such font")

    monkeypatch.setattr(importlib.import_module("modules.images"), "get_font", no_font)
    p, _ = host.generate(f"a cat {TAGS}", {**ON, "maps": True})
    assert "could not be drawn: OSError: no such font" in p.extra_generation_params[NOTE]
    assert len(p.processed.images) == 1
