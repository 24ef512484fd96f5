"""The cache of text conditions."""

import pytest

from lib_loratorio.conditioning import ConditionCache


def test_computes_each_key_once():
    cache, computed = ConditionCache(), []
    for key in ("a", "b", "a"):
        assert cache.get(key, lambda key=key: computed.append(key) or key.upper()) == key.upper()
    assert computed == ["a", "b"]


def test_drops_the_least_recently_used():
    cache = ConditionCache(size=2)
    for key in ("a", "b", "a", "c"):
        cache.get(key, key.upper)
    assert len(cache) == 2
    assert cache.get("a", lambda: "anew") == "A"
    assert cache.get("b", lambda: "anew") == "anew"


def test_an_error_caches_nothing():
    cache = ConditionCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert len(cache) == 0
    cache.get("a", lambda: 1)
    cache.clear()
    assert len(cache) == 0
