"""Where a LoRA's trigger words come from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lib_loratorio.loras.trigger_words import appended, trigger_words

TAGS = {"1_a": {"zorbo": 20, "outdoors": 9}, "2_b": {"zorbo ": 4, "outdoors": 5}}


@pytest.mark.parametrize(
    "metadata, notes, expected",
    [
        ({"modelspec.trigger_phrase": "mippa cat"}, {"activation text": " my cat "}, "my cat"),
        (
            {"modelspec.trigger_phrase": " mippa cat", "ss_tag_frequency": json.dumps(TAGS)},
            {"activation text": ""},
            "mippa cat",
        ),
        ({"modelspec.trigger_phrase": "mippa"}, {"activation text": None}, "mippa"),
        ({"modelspec.trigger_phrase": "mippa AND  hat, AND red"}, None, "mippa, hat, red"),
        ({"ss_tag_frequency": json.dumps(TAGS)}, None, "zorbo"),
        (None, {"activation text": "zorbo, <lora:zorbo:0.8> red  hat"}, "zorbo, red hat"),
        (None, {"activation text": ["zorbo", " red hat ", ""]}, "zorbo, red hat"),
        ({"modelspec.trigger_phrase": '["zorbo", "red hat"]'}, {"activation text": "<lyco:x:1>"}, "zorbo, red hat"),
        ({"modelspec.trigger_phrase": "[red|blue] hat"}, None, "[red|blue] hat"),
        (None, {"activation text": {"no": "words"}}, ""),
        ({"ss_tag_frequency": json.dumps({"a": {"one": 3, "other": 3}})}, None, ""),
        ({"ss_tag_frequency": "[1, 2"}, ["no", "notes"], ""),
        ({"ss_tag_frequency": '{"a": 3}'}, None, ""),
        (None, None, ""),
    ],
)
def test_the_users_note_then_the_files_own(tmp_path, metadata, notes, expected):
    path = tmp_path / "my lora.v2.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    if notes is not None:
        (tmp_path / "my lora.v2.json").write_text(json.dumps(notes))
    assert trigger_words(str(path)) == expected


def test_files_that_tell_nothing(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file")
    assert trigger_words(str(broken)) == trigger_words(str(tmp_path / "missing.pt")) == ""


@pytest.mark.parametrize(
    "prompt, words, expected",
    [
        ("a cat", "zorbo", "a cat, zorbo"),
        ("a Zorbo cat", "zorbo", "a Zorbo cat"),
        (" ", "zorbo", "zorbo"),
        ("a cathedral", "cat", "a cathedral, cat"),
        ("drinking (ink)", "ink", "drinking (ink)"),
        ("a cat", "", "a cat"),
    ],
)
def test_words_go_to_the_end_unless_they_are_there(prompt, words, expected):
    assert appended(prompt, words) == expected
