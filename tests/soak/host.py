"""A running WebUI with the soak test's own script in it."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import requests
from PIL import Image, ImageDraw

SCRIPT, NOTE, VERIFY = "LoRAtorio", "LoRAtorio note", "LoRAtorio verify"
EXTENSION = Path(__file__).parent / "extension"
PATIENCE = 3600
"""Seconds that a request may take."""


@dataclass
class Answer:
    """What came back for one request."""

    status: int
    images: list[np.ndarray] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """What the user is told: an error, or a note."""
        return self.error or str(self.params.get(NOTE, ""))

    @property
    def verified(self) -> list[tuple[float, int]]:
        """The largest error and the number of calls, of every picture that tells them."""
        texts = [str(self.params.get(VERIFY, "")), *filter(None, self.infotexts)]  # a plot left early has none
        found = [re.search(r"max relative error (\S+) over (\d+) calls?", text) for text in texts]
        return [(float(match[1]), int(match[2])) for match in found if match]

    def same_pictures(self, other: Answer) -> bool:
        return len(self.images) == len(other.images) and all(
            np.array_equal(one, another) for one, another in zip(self.images, other.images)
        )


class Host:
    """The API of one running WebUI, its own and our script's."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        schemas = self.get("/openapi.json")["components"]["schemas"]
        self.request_fields = set(schemas["StableDiffusionProcessingTxt2Img"]["properties"])
        self.latent_upscalers = self.get("/sdapi/v1/latent-upscale-modes")
        self.plots = {
            info["is_img2img"]: info["args"]
            for info in self.get("/sdapi/v1/script-info")
            if info["name"] == "x/y/z plot"
        }

    def get(self, path: str, **params) -> Any:
        answer = requests.get(self.url + path, params=params, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, values: Any = None) -> Any:
        answer = requests.post(self.url + path, json=values, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    # The WebUI's own

    def name(self) -> str:
        """Which WebUI it is, by the folders of the script that samples."""
        return "Forge family" if "hr_additional_modules" in self.request_fields else "A1111"

    def names(self, path: str) -> list[str]:
        return [one["name"] for one in self.get(f"/sdapi/v1/{path}")]

    def options(self) -> dict[str, Any]:
        return self.get("/sdapi/v1/options")

    def set_options(self, options: dict[str, Any]) -> None:
        self.post("/sdapi/v1/options", options)

    def refresh_loras(self) -> None:
        self.post("/sdapi/v1/refresh-loras")

    def checkpoints(self) -> list[dict[str, Any]]:
        return self.get("/sdapi/v1/sd-models")

    def current_checkpoint(self) -> dict[str, Any]:
        """The WebUI names it by a title with or without its hash."""
        title = self.options()["sd_model_checkpoint"].split(" [")[0]
        return next(model for model in self.checkpoints() if model["title"].split(" [")[0] == title)

    def generate(self, request: dict[str, Any], ordinary: bool = False) -> Answer:
        """The answer to a request of the grammar; `ordinary`: with LoRAtorio off."""
        endpoint, fields = self._fields(request, ordinary)
        start = time.monotonic()
        answer = requests.post(f"{self.url}/sdapi/v1/{endpoint}", json=fields, timeout=PATIENCE)
        seconds = time.monotonic() - start
        if not answer.ok:
            return Answer(answer.status_code, error=_error(answer), seconds=seconds)
        told = answer.json()
        info = json.loads(told["info"])
        images = [_array(image) for image in told["images"] or ()]
        return Answer(200, images, info["infotexts"], info["extra_generation_params"], "", seconds)

    def ordinary(self, prompt: str, **fields) -> Answer:
        """An ordinary picture, always the same one for the same prompt."""
        of = {"seed": 1, "steps": 4, "width": 64, "height": 64, "sampler_name": "Euler a", "cfg_scale": 6.0}
        return self.generate(
            {"fields": {**of, "prompt": prompt, "negative_prompt": "dark", **fields}, "settings": None}
        )

    def _fields(self, request: dict[str, Any], ordinary: bool) -> tuple[str, dict[str, Any]]:
        fields = dict(request["fields"])
        if fields.get("enable_hr"):
            same = {
                "hr_upscaler": "Latent" if self.latent_upscalers else "None",
                "hr_cfg": fields["cfg_scale"],
                "hr_additional_modules": ["Use same choices"],
            }
            fields |= {name: value for name, value in same.items() if name in self.request_fields}
        if request["settings"] is not None and not ordinary:
            fields["alwayson_scripts"] = {SCRIPT: {"args": [{"enabled": True, **request["settings"]}]}}
        if "picture" in request:
            fields["init_images"] = [_encoded(_gradient(*request["picture"]))]
        if "mask" in request:
            fields["mask"] = _encoded(_rectangle(request["picture"], request["mask"]))
        if "plot" in request:
            fields |= {"script_name": "X/Y/Z plot", "script_args": self._plot("picture" in request, request["plot"])}
        return "img2img" if "picture" in request else "txt2img", fields

    def axes(self) -> list[str]:
        return self._choices(False) if self.plots else []

    def _choices(self, is_img2img: bool) -> list[str]:
        return next(arg["choices"] for arg in self.plots[is_img2img] if arg["label"] == "X type")

    def _plot(self, is_img2img: bool, axes: list[tuple[str, str]]) -> list[Any]:
        args = [arg["value"] for arg in self.plots[is_img2img]]
        labels = [arg["label"] for arg in self.plots[is_img2img]]
        choices = self._choices(is_img2img)
        for place, name in enumerate("XYZ"):
            label, values = axes[place] if place < len(axes) else ("Nothing", "")
            args[labels.index(f"{name} type")] = choices.index(label)
            at = labels.index(f"{name} values")
            args[at], args[at + 1] = values, values.split(",") if values else []
        args[labels.index("Draw legend")] = False
        args[labels.index("Include Sub Images")] = True
        return args

    # Our script's

    def has_script(self) -> bool:
        return requests.get(f"{self.url}/openapi.json", timeout=PATIENCE).text.count("/loratorio-soak/state") > 0

    def state(self, thorough: bool = False, conditions: bool = True) -> dict[str, Any]:
        return self.get("/loratorio-soak/state", thorough=int(thorough), conditions=int(conditions))

    @contextmanager
    def armed(self, kind: str, **fault) -> Iterator[dict[str, int]]:
        """A fault for the requests within; what is yielded tells afterwards whether it happened."""
        self.post("/loratorio-soak/arm", {"kind": kind, **fault})
        told = {"calls": 0, "fired": 0}
        try:
            yield told
        finally:
            told |= self.post("/loratorio-soak/disarm")

    def add_style(self, style: dict[str, str]) -> None:
        self.post("/loratorio-soak/style", style)

    def reload(self) -> None:
        """The page's button Reload UI; returns when the WebUI answers anew."""
        with TemporaryDirectory() as folder:
            started = Path(folder) / "started"
            self.post("/loratorio-soak/reload", {"told_by": str(started)})
            _wait_until(started.exists)
        _wait_until(self.has_script)

    def reload_without_script(self) -> None:
        """The same, after our script was taken away, which then cannot tell any more when it has started."""
        self.post("/loratorio-soak/reload", {"told_by": ""})

    def restart(self) -> None:
        """Has the WebUI read its scripts anew, if it offers that; raises RuntimeError if it does not."""
        answer = requests.post(f"{self.url}/sdapi/v1/server-restart", timeout=PATIENCE)
        if not answer.ok:
            raise RuntimeError(f"this WebUI cannot be restarted over its API (HTTP {answer.status_code})")
        _wait_until(self.has_script)


def _wait_until(holds: Callable[[], bool], patience: float = 300) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except requests.RequestException:
            pass  # it is not listening yet
        time.sleep(0.2)
    raise TimeoutError(f"the WebUI has not come back after {patience:.0f} s")


def _error(answer: requests.Response) -> str:
    try:
        told = answer.json()
    except ValueError:
        return answer.text or f"HTTP {answer.status_code}"
    text = str(told.get("errors") or told.get("message") or told.get("detail") or told)
    kind = told.get("error")
    return text if not kind or kind in text else f"{kind}: {text}"


def _array(image: str) -> np.ndarray:
    data = base64.b64decode(image.split(",", 1)[-1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _gradient(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def _rectangle(size: list[int], part: list[float]) -> Image.Image:
    width, height = size
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((part[0] * width, part[1] * height, part[2] * width, part[3] * height), fill=255)
    return mask
