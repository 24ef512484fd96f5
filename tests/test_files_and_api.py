"""What the API tells of settings and LoRA files."""

import base64
import io
import json
import sys
from types import SimpleNamespace

import lora_files
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_loratorio.errors import SettingsError
from lib_loratorio.loras.kinds import describe
from lib_loratorio.page.api import add_routes
from lib_loratorio.palette import COLOURS
from lib_loratorio.settings import METHODS, SETTINGS, Settings, schema

EXPECTED = {
    "lora": "lora",
    "locon": "lora",
    "cp": "cp",
    "loha": "loha",
    "lokr": "lokr",
    "full": "full",
    "norm": "norm",
    "ia3": "ia3",
    "glora": "glora",
    "oft": "oft",
    "boft": "oft",
    "dora": "dora",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_kinds_of_layers(tmp_path, kind):
    shape = (8,) if kind == "norm" else (8, 8, 3, 3) if kind in ("cp", "locon") else (8, 8)
    tensors = {}
    for layer in ("lora_unet_down_blocks_0_attn_to_q", "lora_unet_mid_block_attn_to_k"):
        tensors |= {
            f"{layer}.{name}": value
            for name, value in lora_files.build(kind, shape, torch.Generator().manual_seed(1)).items()
        }
    save_file(tensors, tmp_path / "a.safetensors")
    found = describe(str(tmp_path / "a.safetensors"))
    expected = EXPECTED[kind]
    factored = 2 if expected in ("lora", "cp") else 0
    assert found["layers"] == {expected: 2} and (found["factored"], found["dense"]) == (factored, 2 - factored)
    assert found["text_encoder"] is False
    if factored:
        assert found["ranks"] == [lora_files.RANK]


def test_text_encoders_and_diffusers_names(tmp_path):
    tensors = {
        "unet.a.to_q.lora_A.weight": torch.zeros(3, 8),
        "unet.a.to_q.lora_B.weight": torch.zeros(8, 3),
        "text_encoder.b.lora_A.weight": torch.zeros(5, 8),
        "text_encoder.b.lora_B.weight": torch.zeros(8, 5),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert describe(str(tmp_path / "a.safetensors")) == {
        "layers": {"lora": 2},
        "ranks": [3, 5],
        "text_encoder": True,
        "factored": 2,
        "dense": 0,
    }


def test_files_that_cannot_be_read_are_told(tmp_path):
    (tmp_path / "a.safetensors").write_text("no tensors")
    assert describe(str(tmp_path / "a.safetensors"))["error"].startswith("SafetensorError")
    assert describe(str(tmp_path / "none.safetensors"))["error"].startswith("FileNotFoundError")


def test_schema_says_what_the_settings_take():
    properties = schema()["properties"]
    assert {name: value["default"] for name, value in properties.items()} == Settings().to_api()
    assert {name: value["title"] for name, value in properties.items()} == {
        name: declared.label for name, declared in SETTINGS.items()
    }
    assert all(value["description"] for value in properties.values())
    assert properties["method"]["enum"] == list(METHODS) and properties["enabled"]["type"] == "boolean"
    for name, value in properties.items():
        for limit, step in (("minimum", -1), ("maximum", 1)):
            if limit in value:
                if name not in ("start", "end"):
                    Settings(**{name: value[limit]})
                with pytest.raises(SettingsError, match=name):
                    Settings(**{name: value[limit] + step})
    assert json.loads(json.dumps(schema())) == schema()


class RefusedError(Exception):
    """In place of fastapi's HTTPException, which the tests do not have."""

    def __init__(self, status_code, detail):
        self.status_code, self.detail = status_code, detail


def test_routes(tmp_path, monkeypatch):
    save_file(
        {"lora_unet_a.lora_down.weight": torch.zeros(2, 8), "lora_unet_a.lora_up.weight": torch.zeros(8, 2)},
        tmp_path / "a.safetensors",
    )
    routes = {}
    app = SimpleNamespace(add_api_route=lambda path, function, methods, summary: routes.update({path: function}))
    known = {
        "b": SimpleNamespace(filename=str(tmp_path / "b.safetensors")),
        "a": SimpleNamespace(filename=str(tmp_path / "a.safetensors")),
    }
    add_routes(app, known)
    assert routes["/loratorio/v1/schema"]() == schema()
    found = routes["/loratorio/v1/networks"]()
    assert list(found) == ["a", "b"] and found["a"]["ranks"] == [2] and "error" in found["b"]
    assert str(tmp_path) not in json.dumps(found)
    assert routes["/loratorio/v1/places"]("<lora:a:1:ltat=left> <lora:off:0> <lora:g:1:lt=global> <lora:b:1>") == {
        "places": [
            {"name": "a", "colour": "#e69f00", "boxes": [[0, 0, 0.5, 1]]},
            {"name": "b", "colour": "#56b4e9", "boxes": []},
        ],
        "problem": "",
    }
    assert "has ltbox=0,0,9,1" in routes["/loratorio/v1/places"]("<lora:a:1:ltbox=0,0,9,1>")["problem"]
    assert routes["/loratorio/v1/places/last"]() == {"mask": ""}
    painted = routes["/loratorio/v1/places/painted"]
    file = io.BytesIO()
    Image.new("RGB", (4, 4), COLOURS[1]).save(file, "PNG")
    assert painted({"mask": base64.b64encode(file.getvalue()).decode()}) == {"painted": [1], "problem": ""}
    assert painted({}) == {"painted": [], "problem": ""}
    assert "mask is no image that can be read" in painted({"mask": "aGFsbG8="})["problem"]
    assert "mask is 7; it must be an image file" in painted({"mask": 7})["problem"]
    price = routes["/loratorio/v1/price"]
    assert price()["evaluations"] == 2
    assert price("<lora:a:1> <lora:b:1>", '{"lam": 1}')["evaluations"] == 4
    assert price("<lora:a:1>", '{"lam": 0, "method": "composite"}', "0")["evaluations"] == 4
    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(HTTPException=RefusedError))
    with pytest.raises(RefusedError) as refused:
        price("", '{"lam": 2}')
    assert (refused.value.status_code, refused.value.detail) == (
        422,
        "LoRAtorio: lam is 2; it must be a number from 0 to 1.",
    )
