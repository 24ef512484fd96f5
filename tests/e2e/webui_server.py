"""A running WebUI as the tests see it: requests through the webuiapi client, answers as arrays and infotext."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import webuiapi

SCRIPT = "LoRAtorio"
NOTE = "LoRAtorio note"
VERIFY = "LoRAtorio verify"

CLOSE = 2
"""Largest difference, in levels of 255, of pictures that are the same up to rounding."""
VISIBLE = 16
"""Smallest such difference of pictures made in different ways."""

REQUEST = {
    "prompt": "a cat",
    "negative_prompt": "dark",
    "seed": 1,
    "steps": 4,
    "width": 64,
    "height": 64,
    "cfg_scale": 6.0,
    "sampler_name": "Euler a",
    "scheduler": "Automatic",
}

OVERRIDDEN_OPTIONS = (
    "pad_cond_uncond",
    "batch_cond_uncond",
    "lora_functional",
    "skip_early_cond",
    "s_min_uncond",
    "loratorio_stop_on_error",
)


@dataclass
class Pictures:
    """The answer to one generation."""

    images: list[np.ndarray]
    infotext: str
    params: dict[str, str]
    infotexts: list[str] = field(default_factory=list)

    @property
    def image(self) -> np.ndarray:
        assert len(self.images) == 1
        return self.images[0]

    @property
    def verification(self) -> tuple[float, int]:
        """Largest relative error, and number of sampler calls, that the extension's self-check reports."""
        match = re.fullmatch(r"max relative error (\S+) over (\d+) calls?", self.params[VERIFY])
        assert match, self.params[VERIFY]
        return float(match[1]), int(match[2])


class WebUI:
    """The API of one running WebUI."""

    def __init__(self, url: str):
        self.client = webuiapi.WebUIApi(baseurl=f"{url.rstrip('/')}/sdapi/v1")
        api = self.client.session.get(f"{url.rstrip('/')}/openapi.json").json()
        self.routes = set(api["paths"])
        self.request_fields = set(api["components"]["schemas"]["StableDiffusionProcessingTxt2Img"]["properties"])
        self.latent_upscalers = self.client.get_latent_upscale_modes()
        self._applied: dict[str, bool] = {}

    def offers(self, option: str) -> bool:
        return option in self.client.get_options()

    @property
    def samplers(self) -> list[str]:
        return [sampler["name"] for sampler in self.client.get_samplers()]

    def keep_overridden_options(self) -> None:
        """Stores the options that tests override: the WebUI puts back only those that its config file has."""
        options = self.client.get_options()
        self.client.set_options({name: options[name] for name in OVERRIDDEN_OPTIONS if name in options})

    def refresh_loras(self) -> None:
        self.client.session.post(f"{self.client.baseurl}/refresh-loras").raise_for_status()

    def generate(self, prompt: str, settings: dict | None = None, **fields) -> Pictures:
        """One generation; with `settings`, which may be empty, the extension is enabled with them."""
        request = {**REQUEST, "prompt": prompt, **self._hires_fields(fields), **fields}
        if settings is not None:
            request["alwayson_scripts"] = {SCRIPT: {"args": [{"enabled": True, **settings}]}}
        return self.post(**request)

    def _hires_fields(self, fields: dict) -> dict:
        """An upscaler that needs no file, and what a WebUI whose hires pass has a guidance and modules of its own wants
        to be told of them.
        """
        upscaler = "Latent" if self.latent_upscalers else "None"
        same = {
            "hr_upscaler": upscaler,
            "hr_cfg": fields.get("cfg_scale", REQUEST["cfg_scale"]),
            "hr_additional_modules": ["Use same choices"],
        }
        return {name: value for name, value in same.items() if fields.get("enable_hr") and name in self.request_fields}

    def generates(self, prompt: str) -> bool:
        """Whether the WebUI itself makes a picture of this prompt."""
        try:
            self.generate(prompt)
        except RuntimeError:
            # A host that fails amid a merge keeps a part of it in its model until other networks are asked for than
            # before it.
            for others in ("a cat", f"a cat {lora('lora')}"):
                self.generate(others)
            return False
        return True

    def applies(self, kind: str) -> bool:
        """Whether the WebUI itself applies adapters of this kind; one that it cannot read changes no picture."""
        if kind not in self._applied:
            prompt = f"a cat {lora(kind)}"
            self._applied[kind] = (
                self.generates(prompt) and difference(self.generate(prompt), self.generate("a cat")) > 0
            )
        return self._applied[kind]

    def post(self, **request) -> Pictures:
        """One generation from the API's own fields; pictures among them are PIL images."""
        for name in ("init_images", "mask"):
            if name in request:
                value = request[name]
                encode = webuiapi.b64_img
                request[name] = [encode(image) for image in value] if isinstance(value, list) else encode(value)
        endpoint = "img2img" if "init_images" in request else "txt2img"
        if endpoint == "img2img":
            # The host encodes the picture with the random numbers' state that the request before has left.
            self.generate("a cat", steps=1)
        try:
            return pictures(self.client.custom_post(endpoint, request, baseurl=True))
        except RuntimeError:
            # some servers close a connection after an error, and the next request would find out
            self.client.session.close()
            raise

    def refusal(self, prompt: str, settings: dict, **fields) -> str:
        """The message of a generation that the extension is expected to stop."""
        try:
            self.generate(prompt, settings, **fields)
        except RuntimeError as error:
            return message_of(error)
        raise AssertionError(f"{settings} with {prompt!r} made a picture")

    def complaint(self, prompt: str, settings: dict) -> str:
        """What the extension says where it leaves out a LoRA or a part of it: the message that stops the generation, or
        the picture's note.
        """
        try:
            return self.generate(prompt, settings).params.get(NOTE, "")
        except RuntimeError as error:
            return message_of(error)

    def checkpoint_named(self, name: str) -> dict | None:
        return next(
            (model for model in self.client.get_sd_models() if name in (model["model_name"], model["title"])), None
        )

    def current_checkpoint(self) -> dict:
        """The checkpoint in use; the WebUI also names it by a title without its hash."""
        title = self.client.get_options()["sd_model_checkpoint"]
        return next(
            model for model in self.client.get_sd_models() if model["title"].split(" [")[0] == title.split(" [")[0]
        )

    @contextmanager
    def using_checkpoint(self, title: str) -> Iterator[None]:
        before = self.client.get_options()["sd_model_checkpoint"]
        self.client.set_options({"sd_model_checkpoint": title})
        try:
            yield
        finally:
            self.client.set_options({"sd_model_checkpoint": before})


def message_of(error: RuntimeError) -> str:
    """The WebUI's answer to a generation that the extension has stopped."""
    status, text = error.args
    answer = json.loads(text)
    assert status == 500, text
    return str(answer.get("errors") or answer.get("message") or answer["detail"])


def pictures(answer: webuiapi.WebUIApiResult) -> Pictures:
    """The client's answer as arrays, none of them flat."""
    images = [np.asarray(image.convert("RGB")).astype(np.int16) for image in answer.images]
    assert images and all(image.std() > 2 for image in images), "a picture is flat"
    infotexts = answer.info["infotexts"]
    return Pictures(images, infotexts[0], answer.info["extra_generation_params"], infotexts)


def difference(one: Pictures, other: Pictures) -> int:
    """Largest difference of two answers' pictures in levels of 255."""
    assert len(one.images) == len(other.images)
    return max(int(np.abs(a - b).max()) for a, b in zip(one.images, other.images, strict=True))


def assert_identical(one: Pictures, other: Pictures) -> None:
    assert difference(one, other) == 0
    assert one.infotext == other.infotext


def without_loras(prompt: str) -> str:
    return re.sub(r"\s*<lora:[^>]*>", "", prompt)


def lora(kind: str, strength: float | str = 1.0) -> str:
    """The prompt's tag for the generated adapter of this kind."""
    return f"<lora:e2e_{kind}:{strength}>"


def check_composed(
    webui: WebUI,
    prompt: str,
    settings: dict | None = None,
    *,
    calls: int | None = None,
    left_out: str = "(ERROR lokr",
    **fields,
) -> Pictures:
    """Generates with the extension and checks the result against the host's own pictures.

    The self-check must hold over `calls` sampler calls (by default at least one less than the steps), the picture
    must be neither the merged nor the no-LoRA one, and both of those must come out after it as they did before. A note
    is about layers that are `left_out`: some WebUIs fail to merge LoKr into convolutions, and only log it.
    """
    plain = {**fields, **({"hr_prompt": without_loras(fields["hr_prompt"])} if "hr_prompt" in fields else {})}
    without = webui.generate(without_loras(prompt), **plain)
    merged = webui.generate(prompt, **fields)
    composed = webui.generate(prompt, {"verify": True, **(settings or {})}, **fields)

    error, checked_calls = composed.verification
    assert 0 < error < 1e-4
    if calls is None:
        assert checked_calls >= fields.get("steps", REQUEST["steps"]) - 1
    else:
        assert checked_calls == calls
    assert left_out in composed.params.get(NOTE, left_out)
    assert difference(composed, merged) > VISIBLE
    assert difference(composed, without) > VISIBLE

    assert_identical(webui.generate(prompt, **fields), merged)
    assert_identical(webui.generate(without_loras(prompt), **plain), without)
    return composed


def lora_folder(webui_dir: str | Path) -> Path:
    return Path(webui_dir) / "models" / "Lora" / "loratorio-e2e"
