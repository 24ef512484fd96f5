"""The pool's text, and which of the host's LoRAs it means."""

import pytest

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.pool import Entry, entries, resolved
from lib_loratorio.settings import Settings

PATHS = {
    "cat": "animals/cat",
    "dog": "animals/dog v2",
    "ink": "styles/ink",
    "oil": "styles/old/oil",
    "cat*": "odd/cat*",
}


def test_entries():
    assert entries(Settings(pool=" cat\n<lora:dog:0.5>,styles/*:-0.25 ,\n").pool) == [
        Entry("cat"),
        Entry("dog", 0.5),
        Entry("styles/*", -0.25),
    ]
    assert entries(Settings(pool=["ink:2", "a b"]).pool) == [Entry("ink", 2.0), Entry("a b")]
    assert entries("") == []


@pytest.mark.parametrize("text", ["cat:much", "cat:", "cat:nan", "cat:0.5:1"])
def test_strengths_that_are_no_numbers_are_named(text):
    with pytest.raises(SettingsError, match=text):
        entries(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ink:0.5,cat", [("ink", 0.5), ("cat", 1.0)]),
        ("styles/*", [("ink", 1.0), ("oil", 1.0)]),
        ("ink:0.25,styles/*:0.5,*:1", [("ink", 0.25), ("oil", 0.5), ("cat", 1.0), ("dog", 1.0), ("cat*", 1.0)]),
        ("animals/d*:2,oi?", [("dog", 2.0), ("oil", 1.0)]),
        ("cat*", [("cat*", 1.0)]),
        ("cat:0,dog", [("dog", 1.0)]),
    ],
)
def test_names_and_patterns(text, expected):
    assert resolved(entries(text), PATHS) == expected


@pytest.mark.parametrize(
    "text, expected",
    [("styles [xl]/*", ["wax", "lino"]), ("styles [x]/*", ["ink"]), ("styles */*", ["wax", "lino", "ink"])],
)
def test_a_folder_s_name_is_no_pattern(text, expected):
    paths = {"wax": "styles [xl]/wax", "lino": "styles [xl]/old/lino", "ink": "styles x/ink"}
    assert resolved(entries(text), paths) == [(name, 1.0) for name in expected]


def test_other_names():
    aliases = {"kitty": "cat", "ink": "oil", "cat": "dog"}
    assert resolved(entries("kitty:0.5,ink,*g"), PATHS, aliases=aliases) == [("cat", 0.5), ("ink", 1.0), ("dog", 1.0)]
    assert resolved(entries("kitty"), PATHS, ["cat"], aliases) == []


def test_what_the_prompt_has_is_not_in_the_pool():
    assert resolved(entries("*"), PATHS, ["cat", "ink", "cat*"]) == [("dog", 1.0), ("oil", 1.0)]


@pytest.mark.parametrize("text", ["horse", "people/*", "/etc/passwd", "../cat"])
def test_only_the_hosts_own_loras(text):
    with pytest.raises(SettingsError, match="none of the WebUI's LoRAs"):
        resolved(entries(text), PATHS)


def test_infotext_keeps_names_with_blanks():
    settings = Settings(enabled=True, pool="my cat:0.5,50%=half,styles/*", pool_mode="scout")
    text = settings.to_infotext()
    assert "pool=my%20cat:0.5,50%25%3Dhalf,styles/*" in text
    assert Settings.from_infotext(text) == settings
