"""Addresses beside the host's own API: the settings' JSON schema, the host's LoRAs, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL.Image import Image

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.kinds import describe
from lib_loratorio.page import places
from lib_loratorio.page.live import Named, ProblemOf, price_of
from lib_loratorio.settings import schema

PREFIX = "/loratorio/v1"


def add_routes(
    app: Any,
    available_networks: Mapping[str, Any],
    last_map: Callable[[], Image | None] = lambda: None,
    named: Named = lambda prompt, settings: (),
    problem_of: ProblemOf = lambda name: "",
) -> None:
    """Adds the routes to the host's FastAPI application.

    `available_networks` is the host's own list, by name. `last_map` gives the latest picture of who won where, `named`
    the LoRAs of a pool that a prompt names, and `problem_of` what the host finds wrong with a LoRA.
    """

    def networks() -> dict[str, dict]:
        # The folders stay unnamed: whoever asks the API need not know the machine.
        return {name: describe(network.filename) for name, network in sorted(dict(available_networks).items())}

    def price(prompt: str = "", settings: str = "{}", painted: str = "") -> dict[str, Any]:
        try:
            return price_of(prompt, settings, named, painted, problem_of)
        except SettingsError as error:
            from fastapi import HTTPException  # the host has it, with gradio

            raise HTTPException(422, str(error)) from None

    app.add_api_route(f"{PREFIX}/schema", schema, methods=["GET"], summary="JSON schema of LoRAtorio's settings")
    app.add_api_route(
        f"{PREFIX}/networks", networks, methods=["GET"], summary="LoRAs with the kinds and ranks of their layers"
    )

    def last() -> dict[str, str]:
        return places.as_mask(last_map())

    def painted(asked: dict[str, Any]) -> dict[str, Any]:
        return places.painted(asked.get("mask", ""))

    app.add_api_route(f"{PREFIX}/places", places.told, methods=["GET"], summary="Where a prompt's LoRAs may be")
    app.add_api_route(f"{PREFIX}/places/painted", painted, methods=["POST"], summary="Which LoRAs a mask has")
    app.add_api_route(f"{PREFIX}/places/last", last, methods=["GET"], summary="The last weight map, as a mask")
    app.add_api_route(f"{PREFIX}/price", price, methods=["GET"], summary="A prompt's LoRAs, and what a step costs")
