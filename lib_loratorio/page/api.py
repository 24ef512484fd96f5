"""Two addresses beside the host's own API: the settings' JSON schema, and the LoRAs that the host knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_loratorio.loras.kinds import describe
from lib_loratorio.settings import schema

PREFIX = "/loratorio/v1"


def add_routes(app: Any, available_networks: Mapping[str, Any]) -> None:
    """Adds the routes to the host's FastAPI application. `available_networks` is the host's own list, by name."""

    def networks() -> dict[str, dict]:
        # The folders stay unnamed: whoever asks the API need not know the machine.
        return {name: describe(network.filename) for name, network in sorted(dict(available_networks).items())}

    app.add_api_route(f"{PREFIX}/schema", schema, methods=["GET"], summary="JSON schema of LoRAtorio's settings")
    app.add_api_route(
        f"{PREFIX}/networks", networks, methods=["GET"], summary="LoRAs with the kinds and ranks of their layers"
    )
