"""The settings are written into the picture's parameters and read back from them."""

import lora_files
import pytest
from webui_server import SCRIPT, VERIFY, VISIBLE, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('te', 0.6)}"


def read_again(webui, infotext):
    """The picture that the API makes of an infotext."""
    try:
        probe = webui.post(infotext="a cat\nSeed: 5", steps=1, width=64, height=64)
    except RuntimeError:
        pytest.skip("the WebUI's own API fails to read any infotext")
    if "Seed: 5," not in probe.infotext:
        pytest.skip("the WebUI's own API reads no infotext")
    return webui.post(infotext=infotext)


def test_settings_are_in_the_infotext(webui):
    made = webui.generate(PAIR, {"temperature": 0.125, "lam": 0.25, "patch_size": 4})
    field = made.params[SCRIPT]
    assert "0.125" in field and "0.25" in field and "4" in field
    assert f"{SCRIPT}: " in made.infotext
    assert field in made.infotext
    assert VERIFY not in made.infotext


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.125, "lam": 0.25, "patch_size": 4},
        {"method": "switch"},
        {"method": "composite", "text_encoder": "merged", "end": 0.75},
        {"top_k": 1, "adapters_per_pass": 1},
    ],
    ids=str,
)
def test_the_infotext_gives_the_same_picture(webui, settings):
    made = webui.generate(PAIR, settings)
    again = read_again(webui, made.infotext)
    assert difference(again, made) == 0
    assert again.params[SCRIPT] == made.params[SCRIPT]
    assert difference(made, webui.generate(PAIR)) > VISIBLE


def test_the_infotext_of_an_ordinary_picture_does_not_enable(webui):
    ordinary = webui.generate(PAIR)
    again = read_again(webui, ordinary.infotext)
    assert difference(again, ordinary) == 0
    assert SCRIPT not in again.infotext


def test_schema_and_networks(webui):
    root = webui.client.baseurl.removesuffix("/sdapi/v1")
    properties = webui.client.session.get(f"{root}/loratorio/v1/schema").json()["properties"]
    assert properties["temperature"]["minimum"] > 0
    assert {"type": "boolean", "default": False}.items() <= properties["maps"].items()
    networks = webui.client.session.get(f"{root}/loratorio/v1/networks").json()
    assert (
        networks["e2e_lora"]["dense"] == 0
        and networks["e2e_lora"]["factored"] > 0
        and networks["e2e_lora"]["ranks"] == [lora_files.RANK]
    )
    assert networks["e2e_te"]["text_encoder"] and not networks["e2e_lora"]["text_encoder"]
    assert networks["e2e_lokr"]["factored"] == 0 and set(networks["e2e_lokr"]["layers"]) == {"lokr"}


def test_price(webui):
    address = webui.client.baseurl.removesuffix("/sdapi/v1") + "/loratorio/v1/price"
    ask = webui.client.session.get
    assert ask(address, params={"prompt": PAIR, "settings": '{"lam": 1}'}).json() == {
        "loras": [
            {"name": "e2e_lora", "strength": "0.8", "role": "local"},
            {"name": "e2e_te", "strength": "0.6", "role": "local"},
        ],
        "evaluations": 4,
        "presets": {"quality": 4, "balanced": 3.5, "fast": 3, "paper": 6},
        "pool": "none",
        "problems": {},
        "unreadable": "",
    }
    refused = ask(address, params={"prompt": PAIR, "settings": '{"lam": 2}'})
    assert refused.status_code == 422 and "lam is 2" in refused.json()["detail"]
