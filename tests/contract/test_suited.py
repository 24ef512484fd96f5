"""What the page is told of a LoRA before anybody makes a picture."""

from importlib import import_module

import pytest


@pytest.fixture
def problem_of(host):
    return import_module("lib_loratorio.hosts.webui.suited").problem_of


def test_unknown_names_are_told_and_known_ones_are_not(host, problem_of):
    known = next(iter(host.networks.available_networks))
    assert problem_of("nobody") == "unknown" and problem_of(known) == ""


def test_a_lora_for_another_kind_of_model_is_told(a1111):
    problem_of = import_module("lib_loratorio.hosts.webui.suited").problem_of
    name, on_disk = next(iter(a1111.networks.available_networks.items()))
    models = import_module("modules.sd_models").model_data
    on_disk.sd_version = type(on_disk.sd_version).SDXL
    assert problem_of(name) == "", "no model is loaded, and none is for the question"
    models.sd_model = a1111.shared.sd_model
    assert problem_of(name) == "unsuited"
    on_disk.sd_version = type(on_disk.sd_version).SD1
    assert problem_of(name) == ""
