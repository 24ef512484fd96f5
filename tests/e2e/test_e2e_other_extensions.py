"""Other extensions that take part in the sampling go on working, with composition as without."""

import pytest
import webuiapi
from PIL import Image
from webui_server import CLOSE, NOTE, REQUEST, SCRIPT, VISIBLE, assert_identical, difference, lora

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
ONE = f"a cat {lora('te', 0.9)}"

EXTENSIONS = {
    "dynamicthresholding": {0: True, 1: 2.0},
    "latentmodifier": {0: True, 3: 1.0, 9: 0.5},
    "selfattentionguidance": {0: True, 1: 3.0},
    "perturbedattentionguidance": {0: True, 1: 3.0},
    "freeu": {0: True, 1: 1.4, 2: 1.6},
    "kohya hrfix": {0: True, 1: 1, 4: 1.0},
    "multidiffusion": {0: True, 2: 64, 3: 64, 4: 32},
    "stylealign": {0: True},
}
"""By the beginning of a script's name: its arguments, by place, that switch it on."""


def args_of(webui, name, changes):
    infos = webui.client.session.get(f"{webui.client.baseurl}/script-info").json()
    found = [info for info in infos if info["name"].startswith(name) and info["is_alwayson"] and not info["is_img2img"]]
    if not found:
        pytest.skip(f"this WebUI has no {name}")
    args = [arg["value"] for arg in found[0]["args"]]
    for place, value in changes.items():
        args[place] = value
    return {found[0]["name"]: {"args": args}}


def controlnet(webui):
    """One unit with the first model that the WebUI has for its own ControlNet."""
    answer = webui.client.session.get(webui.client.baseurl.replace("/sdapi/v1", "/controlnet/model_list"))
    models = [model for model in answer.json().get("model_list", []) if model != "None"] if answer.ok else []
    if not models:
        pytest.skip("this WebUI has no ControlNet model")
    picture = webuiapi.b64_img(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
    return {
        "ControlNet": {
            "args": [
                {
                    "enabled": True,
                    "module": "None",
                    "model": models[0],
                    "weight": 1.0,
                    "image": picture,
                    "save_detected_map": False,
                }
            ]
        }
    }


def generate(webui, prompt, others, settings=None, **fields):
    scripts = dict(others)
    if settings is not None:
        scripts[SCRIPT] = {"args": [{"enabled": True, **settings}]}
    return webui.post(**{**REQUEST, "prompt": prompt, **fields}, alwayson_scripts=scripts)


APART = {"multidiffusion", "stylealign"}
"""Those that act on rows by their number: each model has calls of its own then, and a note tells of it."""


def check(webui, others, apart=False, **fields):
    """One adapter without recentring is the ordinary picture; with two every prediction is verified; the extension
    shows in both. The only note is that models are evaluated `apart`.
    """
    ordinary = generate(webui, ONE, others, **fields)
    if difference(ordinary, webui.generate(ONE, **fields)) <= CLOSE:
        pytest.skip("the extension does nothing to this checkpoint's pictures")
    assert difference(generate(webui, ONE, others, {"lam": 0.0}, **fields), ordinary) <= CLOSE
    composed = generate(webui, PAIR, others, {"verify": True}, **fields)
    assert 0 < composed.verification[0] < 1e-4
    assert ("in model calls of their own" in composed.params[NOTE]) if apart else (NOTE not in composed.params)
    assert difference(composed, webui.generate(PAIR, {}, **fields)) > CLOSE
    assert difference(composed, generate(webui, PAIR, others, **fields)) > VISIBLE
    assert_identical(generate(webui, ONE, others, **fields), ordinary)


FIELDS = {"stylealign": {"batch_size": 2}, "multidiffusion": {"width": 128}}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extensions_of_the_forge_family(webui, name):
    check(webui, args_of(webui, name, EXTENSIONS[name]), name in APART, **FIELDS.get(name, {}))


@pytest.mark.parametrize(
    "fields", [{}, {"batch_size": 2}, {"cfg_scale": 1.0}], ids=["one", "batch", "guidance scale 1"]
)
def test_controlnet(webui, fields):
    check(webui, controlnet(webui), **fields)


def test_controlnet_with_perturbed_attention(webui):
    check(
        webui,
        {**controlnet(webui), **args_of(webui, "perturbedattentionguidance", EXTENSIONS["perturbedattentionguidance"])},
    )
