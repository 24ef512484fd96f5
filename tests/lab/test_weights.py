"""What lies in lab/weights."""

import json

import pytest

pytest.importorskip("diffusers")

from lab import model, world


def test_configs_name_no_folder_of_the_machine_they_were_saved_on():
    configs = [file for file in (model.WEIGHTS / "model").rglob("*.json") if file.parent.name != "tokenizer"]
    assert len(configs) == 5
    assert not any("_name_or_path" in json.loads(file.read_text()) for file in configs)


def test_every_skill_has_its_lora_and_all_stays_within_25_mb():
    assert {file.stem for file in (model.WEIGHTS / "loras").glob("*.safetensors")} == set(world.NAMES)
    assert sum(file.stat().st_size for file in model.WEIGHTS.rglob("*") if file.is_file()) <= 25e6
