"""Who reads the prompt with what, and the cache of text conditions."""

import made_adapters
import pytest

from lib_loratorio.loras.adapter import BASE
from lib_loratorio.loras.tag import LoraTag
from lib_loratorio.loras.text import ConditionCache, readings


def adapter(changes_text, role="local"):
    return made_adapters.adapter(LoraTag(role=role), changes_text=changes_text)


def test_each_adapter_that_needs_it_reads_for_itself():
    text, plain, named = adapters = adapter(True), adapter(False), adapter(False)
    assert readings(adapters, ["", "", "sks"]) == {BASE: ((), ""), 0: ((text,), ""), 2: ((), "sks")}
    assert readings([plain, named], ["", ""]) == {}


def test_global_adapters_are_in_every_reading_and_bring_no_words():
    style, silent, text, plain = adapters = (
        adapter(True, "global"),
        adapter(False, "global"),
        adapter(True),
        adapter(False),
    )
    expected = {BASE: ((style,), ""), 2: ((style, text), "cat"), 3: ((style,), "dog")}
    assert readings(adapters, ["paint", "ink", "cat", "dog"]) == expected
    assert readings([style, silent, plain], ["", "", ""]) == {BASE: ((style,), "")}


def test_computes_each_key_once():
    cache, computed = ConditionCache(), []
    for key in ("a", "b", "a"):
        assert cache.get(key, lambda key=key: computed.append(key) or key.upper()) == key.upper()
    assert computed == ["a", "b"]


def test_computes_anew_what_does_not_hold():
    cache = ConditionCache()
    assert cache.get("a", lambda: 1) == cache.get("a", lambda: 2, lambda value: value == 1) == 1
    assert cache.get("a", lambda: 3, lambda value: value == 2) == 3
    assert cache.get("a", lambda: 4) == 3 and len(cache) == 1


def test_drops_the_least_recently_used():
    cache = ConditionCache(size=2)
    for key in ("a", "b", "a", "c"):
        cache.get(key, key.upper)
    assert len(cache) == 2
    assert cache.get("a", lambda: "anew") == "A"
    assert cache.get("b", lambda: "anew") == "anew"


def test_room_for_all_of_one_generation():
    cache, computed = ConditionCache(size=2), []
    cache.make_room(3)
    for key in "abcabc":
        cache.get(key, lambda key=key: computed.append(key))
    assert computed == ["a", "b", "c"]
    cache.make_room(1)
    cache.get("d", lambda: None)
    assert len(cache) == 2


def test_an_error_caches_nothing():
    cache = ConditionCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert len(cache) == 0
    cache.get("a", lambda: 1)
    cache.clear()
    assert len(cache) == 0
