"""Means of pictures with their intervals, on cases whose answer is known."""

import pytest

pytest.importorskip("diffusers")

from lab.evaluation.measurements import bootstrap


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap([0.25] * 6, [0, 0, 1, 1, 2, 2]) == (0.25, 0.25, 0.25)


def test_bootstrap_draws_whole_groups():
    values, groups = [0.0] * 50 + [1.0] * 50, [0] * 50 + [1] * 50
    mean, low, high = bootstrap(values, groups)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two groups only: each may be left out
    _, low, high = bootstrap(values, range(100))
    assert 0.38 < low < 0.45 and 0.55 < high < 0.62  # independent pictures: the binomial's 0.5 +- 0.1
