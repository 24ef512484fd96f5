"""The soak test's eyes and hands in a running WebUI: a script that changes nothing until it is asked to.

Routes, besides the WebUI's own:

    GET  /loratorio-soak/state       what is left of the last request; with `?thorough=1` also of what is held
    GET  /loratorio-soak/weights     the hash of each weight
    POST /loratorio-soak/arm         a fault for the next request, see `loratorio_soak.faults.Fault`
    POST /loratorio-soak/disarm      takes it away, and tells whether it has happened
    POST /loratorio-soak/style       a style for prompts, until the WebUI reads its own anew
    POST /loratorio-soak/reload      the page's button Reload UI
"""

import os
import sys
import time
from pathlib import Path

from fastapi import Body
from loratorio_soak import faults, model, traces
from modules import script_callbacks, scripts, shared, styles
from modules.call_queue import queue_lock

STARTED = "LORATORIO_SOAK_STARTED"


class SoakScript(scripts.Script):
    def title(self):
        return "LoRAtorio soak"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return []

    def before_process(self, p, *args):
        traces.watch(p)
        traces.forget_sampling()
        faults.at("before_process")

    def process(self, p, *args):
        faults.at("process")

    def before_process_batch(self, p, *args, **kwargs):
        faults.at("before_process_batch")

    def process_batch(self, p, *args, **kwargs):
        faults.at("process_batch")

    def process_before_every_sampling(self, p, *args, **kwargs):
        traces.remember_sampling(p)
        faults.at("process_before_every_sampling")

    def postprocess_batch(self, p, *args, **kwargs):
        faults.at("postprocess_batch")

    def postprocess_image(self, p, *args):
        faults.at("postprocess_image")

    def postprocess(self, p, processed, *args):
        faults.at("postprocess")


def state(thorough: bool = False, conditions: bool = True) -> dict:
    """What is left of the last request.

    thorough: after all that nobody holds was freed, which takes a second, and without which memory tells little.
    conditions: whether the host's cached ones are encoded anew; not after a request with options of its own.
    """
    with queue_lock:
        left = traces.left() if model.is_loaded() else []
        if thorough or left:
            traces.collect()
        told = {"pid": os.getpid(), "rss": traces.resident(), "left": left, "checkpoint": None}
        told["cpu"] = time.process_time()
        if not model.is_loaded():
            return told
        told |= {
            "checkpoint": model.checkpoint(),
            "weights": model.weights(),
            "hooks": dict(traces.hooks()),
            "left": traces.left() if left else [],
            "networks": traces.changed_networks(),
            "instances": dict(traces.instances()) if thorough else {},
        }
        tags = traces.tags_at_sampling() if conditions else None
        told["conditions"], told["wrong_conditions"] = model.wrong_conditions(tags)
        return told


def weights() -> dict[str, str]:
    with queue_lock:
        return model.weights_by_layer()


def arm(fault: dict = Body()) -> None:  # noqa: B008
    with queue_lock:
        faults.arm(**fault)


def disarm() -> dict[str, int]:
    with queue_lock:
        return faults.disarm()


def style(values: dict = Body()) -> None:  # noqa: B008
    shared.prompt_styles.styles[values["name"]] = styles.PromptStyle(
        values["name"], values["prompt"], values["negative_prompt"]
    )


def reload(told_by: str = Body(embed=True)) -> None:
    """The file `told_by` is there as soon as the WebUI has started anew.

    A1111 dies of a request that comes before it has added its own routes, so nobody may ask it in the meantime.
    """
    os.environ[STARTED] = told_by
    shared.state.request_restart()


def add_routes(_, app) -> None:
    if os.environ.get(STARTED):
        Path(os.environ.pop(STARTED)).touch()
    for function, method in ((state, "GET"), (weights, "GET"), *((f, "POST") for f in (arm, disarm, style, reload))):
        app.add_api_route(f"/loratorio-soak/{function.__name__}", function, methods=[method])


def forget_package() -> None:
    """Reload UI reads scripts anew, and with this the package beside this one."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "loratorio_soak"]:
        del sys.modules[name]


script_callbacks.on_app_started(add_routes)
script_callbacks.on_script_unloaded(forget_package)
script_callbacks.on_cfg_denoiser(lambda params: faults.at("cfg_denoiser"))
script_callbacks.on_cfg_denoised(lambda params: faults.at("cfg_denoised"))
script_callbacks.on_cfg_after_cfg(lambda params: faults.at("cfg_after_cfg"))
