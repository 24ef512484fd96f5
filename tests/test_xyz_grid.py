"""Axes of the X/Y/Z plot."""

from copy import copy
from types import SimpleNamespace

import pytest

from lib_loratorio.errors import SettingsError
from lib_loratorio.page.xyz_grid import add_axes, with_axes
from lib_loratorio.settings import Settings


class AxisOption:
    def __init__(self, label, type, apply, choices=None):
        self.label, self.type, self.apply, self.choices = label, type, apply, choices


class Request:
    """A host's, of which copies are made, and which need not be hashable."""

    __hash__ = None


@pytest.fixture
def plot():
    plot = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Seed", int, None)])
    scripts = [SimpleNamespace(module=SimpleNamespace()), SimpleNamespace(module=plot)]
    add_axes(scripts)
    add_axes(scripts)
    return plot


def option(plot, label):
    (found,) = [option for option in plot.axis_options if option.label == f"[LoRAtorio] {label}"]
    return found


def settings(p, args):
    return Settings.from_args(with_axes(p, args))


def test_axes_are_added_once(plot):
    labels = [option.label for option in plot.axis_options]
    assert labels[0] == "Seed" and len(labels) == len(set(labels)) == 15


@pytest.mark.parametrize(
    "args", [[{"enabled": True, "patch_size": 2, "temperature": 0.05, "lam": 0.25}], [True, "loratorio", 2, 0.05, 0.25]]
)
@pytest.mark.parametrize(
    "label, text, expected",
    [
        ("Temperature", "0.3", {"temperature": 0.3}),
        ("Patch size", "5", {"patch_size": 5}),
        ("Base weight (lambda)", "1", {"lam": 1.0}),
        ("LoRAs per place (top k)", "2", {"top_k": 2}),
        ("Method", "switch", {"method": "switch"}),
        ("Text encoder", "merged", {"text_encoder": "merged"}),
        ("Step range (0.2-0.8)", "0.2-0.8", {"start": 0.2, "end": 0.8}),
        ("Step range (0.2-0.8)", "0.5", {"start": 0.5, "end": 1.0}),
        ("off/on", "False", {"enabled": False}),
        ("Pool mode", "scout", {"pool_mode": "scout"}),
        ("Scout until", "0.3", {"scout": 0.3}),
        ("Scout's least share", "0.25", {"scout_share": 0.25}),
        ("Negative prompt every", "3", {"guidance_every": 3}),
        ("Each LoRA alone every", "3", {"refresh_every": 3}),
    ],
)
def test_an_axis_changes_its_setting_and_no_other(plot, args, label, text, expected):
    axis, p = option(plot, label), Request()
    axis.apply(p, axis.type(text), [])
    assert settings(p, args) == Settings(
        **{"enabled": True, "patch_size": 2, "temperature": 0.05, "lam": 0.25, **expected}
    )


def test_cells_do_not_share_their_values(plot):
    """Each is a shallow copy of the plot's request, on which nothing of ours is left."""
    of_plot = Request()
    first, second = copy(of_plot), copy(of_plot)
    option(plot, "Temperature").apply(first, 0.3, [])
    option(plot, "Method").apply(second, "composite", [])
    assert settings(first, [{}]) == Settings(temperature=0.3)
    assert settings(second, [{}]) == Settings(method="composite")
    assert settings(of_plot, [{}]) == Settings() and vars(first) == vars(second) == {}


def test_off_and_on_override_the_accordion(plot):
    p = Request()
    option(plot, "off/on").apply(p, "True", [])
    assert not Settings.is_off(with_axes(p, [{"enabled": False}])) and settings(p, [{}]).enabled
    option(plot, "off/on").apply(p, "False", [])
    assert Settings.is_off(with_axes(p, [{"enabled": True}]))


def test_what_is_no_range_is_named(plot):
    p = Request()
    option(plot, "Step range (0.2-0.8)").apply(p, "late", [])
    with pytest.raises(SettingsError, match="start is 'late'"):
        settings(p, [{}])
