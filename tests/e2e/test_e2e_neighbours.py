"""Beside other extensions, LoRAtorio is right, or says that it is not.

A WebUI has those that its user has installed: for all others the tests are skipped. docs/neighbours.md tells where they
are from, and what was seen.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from webui_server import CLOSE, NOTE, REQUEST, SCRIPT, VISIBLE, assert_identical, difference, lora, without_loras

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras")]

GO_ON = {"override_settings": {"loratorio_stop_on_error": False}}


@dataclass(frozen=True)
class Neighbour:
    """An extension, and how a request makes it act.

    script: the beginning of its script's name, as the API has it.
    args: its arguments that are not the page's, by label or place; by (label, number) where several have one label.
    prompt: all but the LoRAs' tags. tag: added to each of these. plain: the prompt without what makes it act.
    kind: of the one LoRA. fields: of the request.
    acts: whether its effect shows. equal: whether one LoRA without recentring makes the ordinary picture.
    says: words of the note, refused: of the error, that are right beside it.
    """

    script: str
    args: Mapping[Any, Any] = field(default_factory=dict)
    prompt: str = "a cat"
    tag: str = ""
    plain: str = ""
    kind: str = "lora"
    fields: Mapping[str, Any] = field(default_factory=dict)
    acts: bool = True
    equal: bool = True
    says: str = ""
    refused: str = ""

    @property
    def one(self) -> str:
        return f"{self.prompt} {lora(self.kind, f'0.9{self.tag}')}"

    @property
    def pair(self) -> str:
        return f"{self.prompt} {lora('lora', f'0.8{self.tag}')} {lora('locon', f'0.6{self.tag}')}"

    @property
    def one_without(self) -> str:
        return f"{self.plain or self.prompt} {lora(self.kind, 0.9)}"


WIDE = {"width": 256, "height": 128}
ON = {0: True}

BY_NAME = {
    # guidance
    "dynamic thresholding": Neighbour("dynamic thresholding (cfg", {0: True, 1: 2.0}),
    "neutral prompt": Neighbour("neutral prompt", prompt="a cat AND_PERP a dog :0.8", plain="a cat"),
    "neutral prompt, rescaled": Neighbour("neutral prompt", {0: 0.7}, plain="a cat"),
    "freeu": Neighbour("freeu", {"Enable": True, "Backbone 1 Scale": 1.4, "Skip 1 Scale": 0.4}),
    "detail daemon": Neighbour("detail daemon", {0: True, "Active": True, "Amount": 0.9, "Start": 0.0, "End": 1.0}),
    "diffusion cg": Neighbour("diffusion cg", {0: True, 1: 1.0, 2: 1.0}),
    "resharpen": Neighbour("resharpen", {0: True, 1: 1.0}, fields={"steps": 12}),
    "vectorscope cc": Neighbour("vectorscope cc", {0: True, "Brightness": 3.0, "Contrast": 2.0}),
    "cd tuner": Neighbour("cd tuner", {0: True, 1: 5.0, 2: 5.0}),
    "latent couple": Neighbour("latent couple", ON, prompt="a cat AND a dog AND a bird"),
    # other model calls
    "incantations: pag": Neighbour("incantations", {("Active", 2): True, "PAG Scale": 4.0}),
    "incantations: seg": Neighbour("incantations", {("Active", 0): True}, fields=WIDE),
    "incantations: s-cfg": Neighbour("incantations", {("Active", 1): True}),
    "perturbed attention": Neighbour("perturbed-attention guidance", {0: True, 1: 4.0}),
    "smoothed energy": Neighbour("smoothed energy guidance", {0: True, 1: 4.0}),
    "sliding window": Neighbour("sliding window guidance", {0: True, 1: 4.0, 2: 192, 3: 192, 4: 64}, fields=WIDE),
    # rows
    "tiled diffusion": Neighbour("tiled diffusion", {0: True, 6: 16, 7: 16, 8: 4, 9: 4}, fields=WIDE),
    "tiled diffusion, one by one": Neighbour("tiled diffusion", {0: True, 6: 16, 7: 16, 8: 4, 9: 1}, fields=WIDE),
    "regional prompter: attention": Neighbour(
        "regional prompter", {0: True, "Generation Mode": "Attention"}, prompt="a cat BREAK a red dog"
    ),
    "regional prompter: latent": Neighbour(
        "regional prompter",
        {0: True, "Generation Mode": "Latent"},
        prompt="a cat BREAK a red dog",
        says="Regional Prompter's Latent mode is active",
    ),
    "forge couple": Neighbour("forge couple", ON, prompt="a cat\na red dog"),
    "llul": Neighbour(
        "llul", {0: True, "Weight": 0.8, "Add the effective area to output images.": False, "Start steps": 1}
    ),
    "kohya hires.fix": Neighbour("kohya hires.fix", {0: True, "Depth": 2, ("Depth", 1): 2, "Stop at": 0.5}),
    # text
    "negpip": Neighbour("negpip", ON, prompt="a cat, (dark night:-1.3)"),
    "cutoff": Neighbour("cutoff", {0: True, 1: "red,blue", 2: 1.0}, prompt="a red cat, a blue hat"),
    "cutoff, a lora that reads": Neighbour(
        "cutoff",
        {0: True, 1: "red,blue", 2: 1.0},
        prompt="a red cat, a blue hat",
        kind="te",
    ),
    "dynamic prompts": Neighbour("dynamic prompts", ON, prompt="a {red|blue|green} cat", acts=False),
    "prompt fusion": Neighbour("prompt fusion", prompt="[a cat:a red dog:0,1]", plain="a cat"),
    # LoRAs
    "block weights": Neighbour("lora block weight", tag=":lbw=1,0,0,1,0,0,1,0,0,1,0,0,1,0,0,1,0"),
    "block weights, a preset": Neighbour("lora block weight", tag=":lbw=OUTALL"),
    "block weights, stop": Neighbour("lora block weight", tag=":stop=2", fields={"steps": 8}),
    "block weights, plain tags": Neighbour("lora block weight", acts=False),
    "loractl, plain tags": Neighbour("dynamic lora weights", acts=False),
    "loractl, window": Neighbour("dynamic lora weights", tag=":ltend=0.5", acts=False, equal=False),
    "loractl, hires strength": Neighbour(
        "dynamic lora weights",
        tag=":hr=0.2",
        fields={"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6},
    ),
    "loractl, schedule": Neighbour("dynamic lora weights", tag=":unet=1@0,0@0.5", refused="a schedule of loractl"),
    "composable lora": Neighbour("composable lora", ON, equal=False, says="Composable LoRA's rule has no effect"),
    # what one model has computed
    "teacache": Neighbour("teacache", ON, acts=False, says="TeaCache goes on with what one model has computed"),
    "first block cache": Neighbour(
        "first block cache", ON, acts=False, says="goes on with what one model has computed"
    ),
    "block cache": Neighbour(
        "block cache", ON, acts=False, says="Block Cache goes on with what one model has computed"
    ),
}

QUIET = (
    "a1111-sd-webui-tagcomplete",
    "sd-civitai-browser-plus",
    "sd-webui-infinite-image-browsing",
    "sd-webui-prompt-all-in-one",
    "sd-webui-supermerger",
    "sd-webui-weight-helper",
    "Stable-Diffusion-Webui-Civitai-Helper",
    "stable-diffusion-webui-images-browser",
)
"""The folders of extensions that have no part in a request."""


def script_of(webui, beginning):
    """What the API tells of the always shown script whose name begins so; skips the test where there is none."""
    infos = webui.client.session.get(f"{webui.client.baseurl}/script-info").json()
    found = [info for info in infos if info["is_alwayson"] and not info["is_img2img"]]
    found = [info for info in found if info["name"].startswith(beginning) and "integrated" not in info["name"]]
    if not found:
        pytest.skip(f"this WebUI has no extension with the script '{beginning}'")
    return found[0]


def args_of(info, changes):
    """The script's arguments, those of the page but for the changes."""
    labels = [arg["label"] for arg in info["args"]]
    args = [arg["value"] for arg in info["args"]]
    for key, value in changes.items():
        args[place_of(labels, key)] = value
    return args


def place_of(labels, key):
    if isinstance(key, int):
        return key
    label, number = key if isinstance(key, tuple) else (key, 0)
    return [place for place, one in enumerate(labels) if one == label][number]


class Beside:
    """Requests with a neighbour switched on."""

    def __init__(self, webui, neighbour):
        self.webui, self.neighbour = webui, neighbour
        info = script_of(webui, neighbour.script)
        self.scripts = {info["name"]: {"args": args_of(info, neighbour.args)}} if neighbour.args else {}

    def generate(self, prompt, settings=None, **fields):
        scripts = dict(self.scripts)
        if settings is not None:
            scripts[SCRIPT] = {"args": [{"enabled": True, **settings}]}
        request = {**REQUEST, **self.webui._hires_fields(self.neighbour.fields), **self.neighbour.fields, **fields}
        return self.webui.post(**{**request, "prompt": prompt}, alwayson_scripts=scripts)


@pytest.fixture
def beside(request, webui):
    """The WebUI keeps the last prompt's conditions, also where another extension changes them: so not this prompt's."""
    found = Beside(webui, BY_NAME[request.param])
    webui.generate("something else")
    return found


def named(wanted):
    """A test of each neighbour of which this is true."""
    names = [name for name, neighbour in BY_NAME.items() if wanted(neighbour)]
    return pytest.mark.parametrize("beside", names, indirect=True)


@named(lambda neighbour: neighbour.acts)
def test_it_acts(beside):
    """Else the other tests would show nothing."""
    without = beside.webui.generate(beside.neighbour.one_without, **beside.neighbour.fields)
    beside.webui.generate("something else")
    acting = beside.generate(beside.neighbour.one)
    assert difference(replace(acting, images=acting.images[:1]), without) > CLOSE  # some add pictures of their own


@named(lambda neighbour: neighbour.equal and not neighbour.refused)
def test_one_lora_without_recentring_is_the_ordinary_picture(beside):
    ordinary = beside.generate(beside.neighbour.one)
    composed = beside.generate(beside.neighbour.one, {"lam": 0.0})
    assert difference(composed, ordinary) <= CLOSE
    assert beside.neighbour.says in composed.params.get(NOTE, "")


@named(lambda neighbour: not neighbour.says and not neighbour.refused)
@pytest.mark.parametrize("settings", [{}, {"lam": 1.0}, {"adapters_per_pass": 1}], ids=str)
def test_two_loras_are_verified(beside, settings):
    composed = beside.generate(beside.neighbour.pair, {"verify": True, **settings})
    assert 0 < composed.verification[0] < 1e-4
    assert difference(composed, beside.generate(beside.neighbour.pair)) > CLOSE


@named(lambda neighbour: not neighbour.says and not neighbour.refused)
def test_a_batch_is_verified(beside):
    composed = beside.generate(beside.neighbour.pair, {"verify": True}, batch_size=2)
    assert 0 < composed.verification[0] < 1e-4


@named(lambda neighbour: not neighbour.refused)
def test_pictures_with_loratorio_off_are_what_they_were(beside):
    prompts = [beside.neighbour.one, beside.neighbour.pair, without_loras(beside.neighbour.pair)]
    before = [beside.generate(prompt) for prompt in prompts]
    beside.generate(beside.neighbour.pair, {})
    for prompt, picture in zip(prompts, before):
        assert_identical(beside.generate(prompt), picture)
    off = beside.webui.generate(beside.neighbour.one_without)
    beside.generate(beside.neighbour.pair, {})
    assert_identical(beside.webui.generate(beside.neighbour.one_without), off)


@named(lambda neighbour: neighbour.says)
def test_a_note_says_what_does_not_go_together(beside):
    assert beside.neighbour.says in beside.generate(beside.neighbour.one, {}).params[NOTE]


@named(lambda neighbour: neighbour.refused)
def test_what_cannot_be_done_is_refused_by_name(beside):
    with pytest.raises(RuntimeError, match=beside.neighbour.refused):
        beside.generate(beside.neighbour.pair, {})
    ordinary = beside.generate(beside.neighbour.pair)
    made = beside.generate(beside.neighbour.pair, {}, **GO_ON)
    assert difference(made, ordinary) == 0
    assert beside.neighbour.refused in made.params[NOTE]


def require_installed(request, webui, name):
    """By the API, which names only those with a repository of their own, or by the folder."""
    answer = webui.client.session.get(f"{webui.client.baseurl}/extensions")
    listed = [extension["name"] for extension in answer.json()] if answer.ok else []
    folder = request.config.getoption("--webui-dir")
    if name not in listed and not (folder and (Path(folder) / "extensions" / name).exists()):
        pytest.skip(f"this WebUI has no extension {name}")


@pytest.mark.parametrize("name", QUIET)
def test_beside_extensions_that_have_no_part_in_a_request(request, webui, name):
    require_installed(request, webui, name)
    one, pair = f"a cat {lora('te', 0.9)}", f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
    ordinary = webui.generate(one)
    assert difference(webui.generate(one, {"lam": 0.0}), ordinary) <= CLOSE
    assert 0 < webui.generate(pair, {"verify": True}).verification[0] < 1e-4
    assert_identical(webui.generate(one), ordinary)


# ADetailer: passes of its own, after the picture


@pytest.fixture(params=["", "loratorio"], ids=["as it comes", "with loratorio among its scripts"])
def adetailer(request, webui):
    """Its script with a model, and the options."""
    info = script_of(webui, "adetailer")
    url = webui.client.baseurl.replace("/sdapi/v1", "/adetailer/v1/ad_model")
    models = [name for name in webui.client.session.get(url).json()["ad_model"] if not name.startswith("mediapipe")]
    if not models:
        pytest.skip("ADetailer has no model; any detector in models/adetailer will do, trained or not")
    found = {"ad_model": models[0], "ad_confidence": 0.0, "ad_mask_k": 1, "ad_denoising_strength": 0.8}
    names = ",".join(filter(None, ["dynamic_prompting,wildcards", request.param]))
    webui.client.set_options({"ad_script_names": names})  # stored, so that it is put back after a request
    yield {info["name"]: {"args": [True, False, found]}}, request.param
    webui.client.set_options({"ad_script_names": "dynamic_prompting,wildcards"})


def test_adetailers_passes(webui, adetailer):
    scripts, among = adetailer
    one, pair = f"a cat {lora('te', 0.9)}", f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"

    def generate(prompt, settings=None, ad_prompt="", **fields):
        ours = {} if settings is None else {SCRIPT: {"args": [{"enabled": True, **settings}]}}
        (name, (*switches, found)), *_ = ((name, script["args"]) for name, script in scripts.items())
        theirs = {name: {"args": [*switches, {**found, "ad_prompt": ad_prompt}]}}
        return webui.post(**{**REQUEST, "prompt": prompt, **fields}, alwayson_scripts={**theirs, **ours})

    ordinary = generate(one)
    assert difference(ordinary, webui.generate(one)) > VISIBLE
    assert difference(generate(one, {"lam": 0.0}), ordinary) <= CLOSE
    composed = generate(pair, {"verify": True, "maps": True}, batch_size=2)
    assert 0 < composed.verification[0] < 1e-4  # what is told stays, though scripts prepare themselves anew
    assert len(composed.images) == 4
    assert ("ADetailer's own passes merge the LoRAs" in composed.params.get(NOTE, "")) == (not among)
    merged = generate("a cat", ad_prompt=pair)
    assert (difference(generate("a cat", {}, ad_prompt=pair), merged) > CLOSE) == bool(among)
    assert_identical(generate(one), ordinary)


# Agent Scheduler: a queue, whose results are the files that were saved


def test_agent_schedulers_results_have_the_maps(webui):
    if "/agent-scheduler/v1/queue/txt2img" not in webui.routes:
        pytest.skip("this WebUI has no Agent Scheduler")
    url = webui.client.baseurl.replace("/sdapi/v1", "/agent-scheduler/v1")
    pair = f"a cat {lora('lora', 0.8)} {lora('locon', 0.6)}"
    request = {**REQUEST, "prompt": pair, "alwayson_scripts": {SCRIPT: {"args": [{"enabled": True, "maps": True}]}}}
    task = webui.client.session.post(f"{url}/queue/txt2img", json=request).json()["task_id"]
    results = wait_for(lambda: webui.client.session.get(f"{url}/task/{task}/results").json())
    assert len(results["data"]) == 2
    assert all(SCRIPT in picture["infotext"] for picture in results["data"])


def wait_for(ask, limit_s=120):
    """What is asked for, as soon as it is there."""
    deadline = time.monotonic() + limit_s
    while not (answer := ask()).get("success"):
        assert "pending" in answer["message"] or "running" in answer["message"], answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    return answer
