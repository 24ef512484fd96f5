"""The hosts that the contract is tested on: every stand-in there is."""

from contextlib import contextmanager

import pytest
import standin
from standin import forge_host

pytest.register_assert_rewrite("a1111_webui", "equations", "forge_webui", "webui")

import a1111_webui  # noqa: E402
import forge_webui  # noqa: E402

HOSTS = {"a1111": a1111_webui.A1111, **dict.fromkeys(forge_host.FOLDERS, forge_webui.Forge)}


@contextmanager
def running(name):
    with standin.installed() if name == "a1111" else forge_host.installed(name) as stand_in:
        host = HOSTS[name](name, stand_in)
        host.add_networks()
        yield host


SAMPLERS = {"sampler": "sampler_kinds", "every_sampler": "samplers"}
"""What gives a test one of a host's samplers, and where the host lists them."""


def pytest_generate_tests(metafunc):
    """A test of `host` runs on each of the hosts; with `sampler` or `every_sampler` for each of its samplers."""
    if "host" not in metafunc.fixturenames:
        return
    for argument in SAMPLERS.keys() & set(metafunc.fixturenames):
        pairs = [(name, sampler) for name, host in HOSTS.items() for sampler in getattr(host, SAMPLERS[argument])]
        metafunc.parametrize(("host", argument), pairs, indirect=["host"])
        return
    metafunc.parametrize("host", HOSTS, indirect=True)


@pytest.fixture
def host(request):
    with running(request.param) as host:
        yield host


@pytest.fixture(params=forge_host.FOLDERS)
def forge(request):
    """Each of the Forge family's."""
    with running(request.param) as host:
        yield host


@pytest.fixture(params=[name for name in forge_host.FOLDERS if name != "reforge"])
def quantising(request):
    """Each of the Forge family's that stores models as integers, and merges networks into them in each forward."""
    with running(request.param) as host:
        host.args.dynamic_args["online_lora"] = True
        yield host


def _alone(fixture, name):
    @pytest.fixture(name=fixture)
    def host():
        with running(name) as host:
            yield host

    return host


a1111, forge_main, neo, reforge = (
    _alone(fixture, name)
    for fixture, name in (("a1111", "a1111"), ("forge_main", "forge"), ("neo", "neo"), ("reforge", "reforge"))
)
