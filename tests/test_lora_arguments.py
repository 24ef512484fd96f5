"""What the command line reads of `--lora` and `--pool`, however it is written."""

import argparse
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_loratorio import cli
from lib_loratorio.loras.argument import name_of
from lib_loratorio.loras.tag import LOCAL, LoraTag

GLOBAL = LoraTag(role="global")
HALF = ",".join(["X"] * 17)


@pytest.mark.parametrize(
    "text, path, strength",
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors: .8 ", "a.safetensors", 0.8),
        ("dir.v1/a.b.safetensors:-1", "dir.v1/a.b.safetensors", -1.0),
        ("dir:1/a=b.safetensors:2", "dir:1/a=b.safetensors", 2.0),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:.5", r"C:\loras\a.safetensors", 0.5),
        ("C:/loras/a.safetensors:5e-1", "C:/loras/a.safetensors", 0.5),
    ],
)
def test_file_and_strength(text, path, strength):
    found = cli.parse_lora(text)
    assert (str(found[0]), *found[1:]) == (path, strength, LOCAL)


@pytest.mark.parametrize(
    "text, path, strength, tag",
    [
        ("a.safetensors:0.8:ltstart=0.2:ltend=0.7", "a.safetensors", 0.8, LoraTag(0.2, 0.7)),
        ("a.safetensors:ltend=0.5", "a.safetensors", 1.0, LoraTag(0.0, 0.5)),
        (r"C:\loras\x=y\a.safetensors:1:ltstart=0.5", r"C:\loras\x=y\a.safetensors", 1.0, LoraTag(0.5)),
        ("a=b.safetensors:lt=global", "a=b.safetensors", 1.0, GLOBAL),
        ("a.safetensors:LT=global", "a.safetensors", 1.0, GLOBAL),
        ("a.safetensors: lt = Global ", "a.safetensors", 1.0, GLOBAL),
        ("a.safetensors:LTSTART=0.5", "a.safetensors", 1.0, LoraTag(0.5)),
        ("a.safetensors:Ltstart= .5 :0.8", "a.safetensors", 0.8, LoraTag(0.5)),
        ("a.safetensors:0.8:lbw=OUTS:start=3", "a.safetensors", 0.8, LoraTag.read({"lbw": "OUTS", "start": "3"}, "a")),
        (f"a.safetensors:lbw={HALF}:x=0.5", "a.safetensors", 1.0, LoraTag.read({"lbw": HALF, "x": "0.5"}, "a")),
        ("a.safetensors:lt=global:0.8:ltend=0.5", "a.safetensors", 0.8, LoraTag(0.0, 0.5, "global")),
    ],
)
def test_tags(text, path, strength, tag):
    found = cli.parse_lora(text)
    assert (str(found[0]), *found[1:]) == (path, strength, tag)


def test_a_file_whose_name_holds_colons(tmp_path):
    for name in ("a:0.5", "a:lt=global", "a:b.safetensors"):
        (tmp_path / name).touch()
        assert cli.parse_lora(str(tmp_path / name)) == (tmp_path / name, 1.0, LOCAL)
        assert cli.parse_lora(f"{tmp_path / name}:0.5:lt=global") == (tmp_path / name, 0.5, GLOBAL)


NUMBER = "has the strength '{}'; it must be a number, such as 0.8, with a point"


@pytest.mark.parametrize(
    "text, match",
    [
        *((strength, NUMBER.format(strength)) for strength in ("0,8", "0. 6", "1.1.", "OUTALL", "0@0,1@0.5", "", " ")),
        *((strength, NUMBER.format(strength)) for strength in ("nan", "inf", "-inf", "1e999", "lt", "ltstart 0.5")),
        ("0.8:0.5", "has the strengths '0.8:0.5'; it must be one number"),
        ("0.8:", "has the strengths '0.8:'; it must be one number"),
        (
            "itstart=0.5",
            "has 'itstart', which is not known; the names are ltstart, ltend, lt, ltbox, ltat, ltshare, ltw",
        ),
        ("ltbegin=0.2", "has 'ltbegin', which is not known"),
        ("ltstrat=0.2", "has 'ltstrat', which is not known"),
        ("Lt-Start=0.2", "has 'lt-start', which is not known"),
        ("lts=global", "has 'lts', which is not known"),
        (
            "te=1",
            "has 'te', which the command line does not know; the names are ltstart, ltend, lt, ltbox, ltat, ltshare",
        ),
        ("lbwe=ATTNON", "has 'lbwe', which the command line does not know"),
        ("lbw=ALLL", "has lbw=ALLL, which is no preset (did you mean ALL?)"),
        ("0.8:dyn=64", "has 'dyn', which the command line does not know"),
        ("lt=globl", "has lt=globl; it must be local or global"),
        ("lt=", "has lt=; it must be local or global"),
        ("ltstart=0,5", "has ltstart=0,5; it must be a number from 0 to 1"),
        ("ltend=2", "has ltend=2; it must be a number from 0 to 1"),
        ("ltstart=nan", "has ltstart=nan; it must be a number from 0 to 1"),
        ("ltstart=0.5:ltend=0.5", "has ltstart 0.5 and ltend 0.5; the start must be below the end"),
        ("lt=local:LT=global", "has a name twice in 'a.b.safetensors:lt=local:LT=global'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_file(text, match):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        cli.parse_lora(f"a.b.safetensors:{text}")
    assert f"the LoRA 'a.b.safetensors' {match}" in str(error.value)


@pytest.mark.parametrize("text", ["", ":0.8", " :0.8", ":lt=global"])
def test_no_file(text):
    with pytest.raises(argparse.ArgumentTypeError, match="names no LoRA file"):
        cli.parse_lora(text)


@pytest.mark.parametrize(
    "text, match",
    [
        ("0,8", "has the strength '0,8'"),
        ("0.5:lt=global", "is of the pool, which has no lt=global; give it with --lora"),
        ("0.5:stop=9", "is of the pool, which has no stop=9; give it with --lora"),
    ],
)
def test_pool(text, match):
    assert cli.parse_pool("a.safetensors:0.5") == [(cli.Path("a.safetensors"), 0.5, LOCAL, True)]
    with pytest.raises(argparse.ArgumentTypeError, match=match):
        cli.parse_pool(f"a.safetensors:{text}")


@pytest.mark.parametrize("option", ["--lora", "--pool"])
def test_the_message_is_one_sentence(capsys, option):
    assert cli.main(["generate", "--model", "m", "--prompt", "a", option, "a.safetensors:0,8"]) == 2
    assert capsys.readouterr().err == (
        f"LoRAtorio: argument {option}: the LoRA 'a.safetensors' has the strength '0,8'; it must be a number, such as "
        "0.8, with a point; python -m lib_loratorio generate --help lists the options.\n"
    )


PIECES = st.sampled_from(
    [":", "=", "lt", "LTSTART", "ltend", "global", "0.5", "nan", " ", "/", "\\", "a.safetensors", "\0"]
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=9).map("".join))
def test_any_text_is_read_or_refused(text):
    try:
        path, strength, tag = cli.parse_lora(text)
    except argparse.ArgumentTypeError as error:
        assert "LoRA" in str(error)
        return
    assert str(path) and math.isfinite(strength) and 0 <= tag.start < tag.end <= 1


def test_names(tmp_path):
    assert name_of(cli.Path("folder/a.b.safetensors")) == "a.b"
    for name in ("adapter_model.safetensors", "pytorch_lora_weights.bin"):
        assert name_of(tmp_path / "my.style" / name) == "my.style"
    (tmp_path / "my.style").mkdir()
    assert name_of(tmp_path / "my.style") == "my.style"


def test_words_are_the_rest_of_the_argument():
    path, strength, tag = cli.parse_lora("a.safetensors:0.8:ltat=left:prompt=(a red hat:1.2), at 12:30")
    assert (str(path), strength, tag.region.words) == ("a.safetensors", 0.8, ("left",))
    assert tag.words == "(a red hat:1.2), at 12:30"
    with pytest.raises(argparse.ArgumentTypeError, match="which has no prompt; give it with --lora"):
        cli.parse_pool("a.safetensors:prompt=red")
