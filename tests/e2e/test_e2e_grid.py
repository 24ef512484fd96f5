"""The X/Y/Z plot over the extension's settings."""

import pytest
from webui_server import CLOSE, REQUEST, SCRIPT, VISIBLE, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"


def plot(webui, label, values, enabled, prompt=PAIR):
    """The plot's pictures over one axis: the grid, then each cell's."""
    infos = webui.client.session.get(f"{webui.client.baseurl}/script-info").json()
    (info,) = [info for info in infos if info["name"] == "x/y/z plot" and not info["is_img2img"]]
    args = [arg["value"] for arg in info["args"]]
    labels = [arg["label"] for arg in info["args"]]
    axis = info["args"][labels.index("X type")]["choices"].index(label)
    nothing = info["args"][labels.index("Y type")]["choices"].index("Nothing")
    for name, value in (
        ("X type", axis),
        ("X values", values),
        ("Y type", nothing),
        ("Z type", nothing),
        ("Draw legend", False),
        ("Include Sub Images", True),
    ):
        args[labels.index(name)] = value
    args[labels.index("X values") + 1] = values.split(",")
    scripts = {SCRIPT: {"args": [{"enabled": enabled}]}}
    return webui.post(
        **{**REQUEST, "prompt": prompt}, script_name="X/Y/Z plot", script_args=args, alwayson_scripts=scripts
    ).images


def spread(one, other):
    return int(abs(one - other).max())


@pytest.mark.parametrize(
    "label, values, settings",
    [
        ("Temperature", "0.01,1", [{"temperature": 0.01}, {"temperature": 1.0}]),
        ("Method", "composite,switch", [{"method": "composite"}, {"method": "switch"}]),
    ],
)
def test_cells_are_the_pictures_of_their_values(webui, label, values, settings):
    _, *cells = plot(webui, f"[LoRAtorio] {label}", values, True)
    assert len(cells) == len(settings)
    assert spread(*cells) > VISIBLE
    for cell, one in zip(cells, settings):
        assert spread(cell, webui.generate(PAIR, one).image) <= CLOSE


def test_off_and_on_is_a_comparison_with_the_ordinary_picture(webui):
    _, off, on = plot(webui, "[LoRAtorio] off/on", "False,True", False)
    assert spread(off, webui.generate(PAIR).image) <= CLOSE
    assert spread(on, webui.generate(PAIR, {}).image) <= CLOSE


@pytest.mark.parametrize(
    "values",
    [
        ["ltat=left", "ltat=right"],
        ["ltbox=0,0,0.5,1", "ltbox=0.5,0,1,1"],
        ["ltw=1@0", "ltw=-1@0,-0.5@1"],
        ["red", "blue"],
    ],
    ids=str,
)
def test_places_ramps_and_words_vary_by_the_hosts_own_axis(webui, values):
    """Commas within a value need quotes."""
    argument, words = (values[0], "red") if "=" in values[0] else ("ltat=top", values[0])
    prompt = f"a cat {lora('lora', f'0.8:{argument}')} {lora('te', 0.6)} <ltp:e2e_te:{words}>"
    _, *cells = plot(webui, "Prompt S/R", ",".join(f'"{value}"' for value in values), True, prompt)
    assert len(cells) == 2
    for cell, value in zip(cells, values):
        assert spread(cell, webui.generate(prompt.replace(values[0], value), {}).image) <= CLOSE
    assert spread(*cells) > CLOSE
