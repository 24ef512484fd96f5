"""The programs that the extension works in, each behind `base.Host`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from lib_loratorio.hosts.base import Host


def of_this_webui() -> Host:
    """The module for the WebUI that this runs in, told by what it offers."""
    return import_module("lib_loratorio.hosts.forge" if find_spec("modules_forge") else "lib_loratorio.hosts.a1111")
