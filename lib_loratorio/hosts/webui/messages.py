"""What the user is told, on the page and in the API's answer."""

from __future__ import annotations

import gradio

from lib_loratorio.errors import LoratorioError, told

NOTE = "LoRAtorio note"
"""The key of messages in `extra_generation_params`, which is all of them that the API returns."""


def note(p, message: str) -> None:
    """Puts a message on the page and into the API's answer, once a request; the generation goes on."""
    message = told(message)
    p.comment(message)
    notes = p.extra_generation_params.get(NOTE)
    if message not in (notes or ""):
        p.extra_generation_params[NOTE] = f"{notes} {message}" if notes else message
        popup(message)


def stop(p, message: str) -> None:
    """Lets the sampling about to start fail with a message: the host ignores what callbacks raise."""

    def fail(launch_sampling, steps, func):
        raise LoratorioError(message)

    popup(told(message))
    instead_of_sampling(p.sampler, fail)


def instead_of_sampling(sampler, replacement) -> None:
    """Has the sampler's next sampling done by `replacement(launch_sampling, steps, func)`, that one only."""
    put_back = getattr(sampler.__dict__.get("launch_sampling"), "put_back", None)
    if put_back:  # of a sampling that was arranged and never started
        put_back()
    launch_sampling = sampler.launch_sampling
    others = sampler.__dict__.get("launch_sampling")

    def launch(steps, func):
        launch.put_back()
        return replacement(launch_sampling, steps, func)

    def back():
        del sampler.launch_sampling
        if others:
            sampler.launch_sampling = others

    launch.put_back = back
    sampler.launch_sampling = launch


def popup(message: str) -> None:
    gradio.Warning(message)
