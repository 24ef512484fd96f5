"""Readers of what others write: a value of the right kind comes out, or our own error, which names what came in."""

import json
import math
import struct
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_loratorio.errors import LoratorioError, SettingsError
from lib_loratorio.loras import kinds
from lib_loratorio.loras.metadata import metadata_of
from lib_loratorio.loras.pool import entries, resolved
from lib_loratorio.loras.tag import NAMES, ROLES, LoraTag, read_strength
from lib_loratorio.loras.trigger_words import trigger_words
from lib_loratorio.page.live import loras_of, price_of
from lib_loratorio.settings import SETTINGS, Settings

BOUNDED = settings(max_examples=150, deadline=None, derandomize=True)

TEXT = st.text(max_size=20)
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.lists(TEXT, max_size=3), st.dictionaries(TEXT, TEXT)
)
NUMBER = st.one_of(st.floats(allow_nan=False, min_value=-2, max_value=2).map(str), TEXT)
NAME = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES).map(str.upper), TEXT)


@BOUNDED
@given(st.dictionaries(NAME, st.one_of(NUMBER, st.sampled_from(ROLES)), max_size=4))
def test_tags(named):
    try:
        tag = LoraTag.read(named, "some lora")
    except SettingsError as error:
        assert "some lora" in str(error)
        return
    assert 0 <= tag.start < tag.end <= 1 and tag.role in ROLES
    assert LoraTag.read(dict(part.split("=") for part in tag.text.split(":")[1:]), "some lora") == LoraTag(
        *(float(f"{value:g}") for value in (tag.start, tag.end)), tag.role
    )


@BOUNDED
@given(st.one_of(ANYTHING, st.just(10**400)))
def test_strengths(value):
    try:
        assert math.isfinite(read_strength(value, "some lora"))
    except SettingsError as error:
        assert "some lora" in str(error) and str(value) in str(error)


@BOUNDED
@given(st.dictionaries(st.one_of(st.sampled_from(list(SETTINGS)), TEXT), ANYTHING, max_size=6))
def test_settings_of_the_api(values):
    try:
        made = Settings.from_api(values)
    except SettingsError as error:
        assert str(error).startswith("LoRAtorio: ")
        return
    assert all(name in SETTINGS for name in values)
    assert Settings.from_api(json.loads(json.dumps(made.to_api()))) == made
    again = Settings.from_infotext(made.to_infotext())
    assert all(getattr(again, f.name) == getattr(made, f.name) for f in fields(Settings) if f.name != "enabled")


@BOUNDED
@given(st.one_of(TEXT, st.lists(st.tuples(st.sampled_from(list(SETTINGS)), TEXT).map("=".join)).map(" ".join)))
def test_infotexts(text):
    try:
        assert Settings.from_infotext(text).enabled in (True, False)
    except SettingsError as error:
        assert str(error).startswith("LoRAtorio: ")


@BOUNDED
@given(st.one_of(TEXT, st.lists(st.tuples(TEXT, NUMBER).map(":".join), max_size=4).map(",".join)))
def test_pools(text):
    try:
        wanted = entries(Settings(pool=text).pool)
        found = resolved(wanted, {"a": "a", "b": "styles/b"})
    except SettingsError as error:
        assert "pool" in str(error)
        return
    assert all(name in ("a", "b") and strength and math.isfinite(strength) for name, strength in found)


@BOUNDED
@given(st.lists(st.one_of(TEXT, st.tuples(TEXT, TEXT).map(lambda parts: f"<lora:{parts[0]}:{parts[1]}>"))).map("".join))
def test_prompts_that_are_being_written(prompt):
    told = price_of(prompt, json.dumps({"method": "composite"}))
    local = [lora for lora in loras_of(prompt) if lora.role == "local"]
    assert told["evaluations"] == 2 * max(len(local), 1)


def safetensors_file(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


HEADER = st.dictionaries(
    st.one_of(
        st.sampled_from(["lora_unet_a.lora_down.weight", "base_model.model.a.lora_A.weight", "__metadata__"]), TEXT
    ),
    st.one_of(
        ANYTHING,
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F8_E4M3", "no"]),
                "shape": st.lists(st.integers(-1, 4), max_size=3),
                "data_offsets": st.lists(st.integers(-4, 64), min_size=2, max_size=2),
            }
        ),
    ),
    max_size=4,
)


@BOUNDED
@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(safetensors_file),
        HEADER.map(lambda header: safetensors_file(json.dumps(header).encode())),
    )
)
def test_files_that_may_be_anything(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(contents)
    told = kinds.describe(str(path))
    layers, layout = kinds.layers(str(path)), kinds.layout(str(path))
    if "error" in told:
        assert layers is None and layout is None and metadata_of(str(path)) == {}
    else:
        assert sum(told["layers"].values()) == sum(layers) and layout is not None
    assert isinstance(trigger_words(str(path)), str)


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"temperature": -1}', '{"no such": 1}'])
def test_settings_of_the_price_that_cannot_be_read(text):
    with pytest.raises(LoratorioError):
        price_of("a cat", text)
