"""A batch divided among two WebUIs by the extension Distributed is the batch of one, with all that is told of it.

The first, at --webui-url, has Distributed and the second, at --worker-url, as its worker; both have the same
checkpoint. docs/distributed.md tells how they are set up.
"""

import json
import shutil
from collections.abc import Iterator

import lora_files
import numpy as np
import pytest
from webui_server import CLOSE, NOTE, VERIFY, WebUI, assert_identical, difference, lora, lora_folder

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("loras", "worker_loras")]

PAIR = f"a cat {lora('lora', 0.8)} {lora('te', 0.6)}"
MAPS, SHARES = {"maps": True}, "LoRAtorio shares"
BATCH = {"batch_size": 4}


@pytest.fixture(scope="module")
def worker(request, webui) -> Iterator[WebUI]:
    url = request.config.getoption("--worker-url")
    if not url:
        pytest.skip("needs --worker-url, the address of a second WebUI")
    if "distribute" not in webui.client.get_scripts()["txt2img"]:
        pytest.skip("the WebUI at --webui-url has no extension Distributed")
    # With grids in the results, Distributed takes the API's pictures to begin one place later than they do.
    before = webui.client.get_options()["return_grid"]
    webui.client.set_options({"return_grid": False})
    yield WebUI(url)
    webui.client.set_options({"return_grid": before})


@pytest.fixture(scope="module")
def worker_loras(request, webui, worker):
    """The files of the first WebUI, in the second one too."""
    worker_dir = request.config.getoption("--worker-dir")
    if not worker_dir:
        pytest.skip("needs --worker-dir, the folder of the second WebUI")
    folder = lora_folder(worker_dir)
    lora_files.write_all(webui.current_checkpoint()["filename"], folder)
    worker.refresh_loras()
    yield
    shutil.rmtree(folder)
    worker.refresh_loras()


@pytest.fixture
def only_here(webui, lora_dir):
    """A LoRA that the worker does not have."""
    path = lora_dir / "e2e_only_here.safetensors"
    shutil.copy(lora_dir / "e2e_lora.safetensors", path)
    webui.refresh_loras()
    yield "<lora:e2e_only_here:0.8>"
    path.unlink()
    webui.refresh_loras()


def assert_divided(pictures, number=2):
    assert sum("Worker Label" in text for text in pictures.infotexts) == number


@pytest.mark.parametrize("settings", [None, {}, {"method": "composite"}, {"lam": 0.0}], ids=str)
def test_a_divided_batch_is_the_batch_of_one(webui, worker, settings):
    divided = webui.generate(PAIR, settings, **BATCH)
    assert_divided(divided)
    assert difference(divided, worker.generate(PAIR, settings, **BATCH)) <= CLOSE
    assert NOTE not in divided.params


@pytest.mark.parametrize("batch", [{"batch_size": 4}, {"batch_size": 2}, {"batch_size": 2, "n_iter": 2}], ids=str)
def test_maps_travel_with_their_pictures(webui, worker, batch):
    divided = webui.generate(PAIR, MAPS, **batch)
    alone = worker.generate(PAIR, MAPS, **batch)
    assert len(divided.images) == len(alone.images) == 2 * batch["batch_size"] * batch.get("n_iter", 1)
    shares, of_one = (json.loads(pictures.params[SHARES]) for pictures in (divided, alone))
    assert sorted(share["panel"] for share in shares) == [share["panel"] for share in of_one]
    # Distributed puts the workers' pictures behind all of its own, so that several batches are in another order.
    for share in shares:
        panel = divided.images[share["panel"]]
        same = min(of_one, key=lambda one: np.abs(alone.images[one["panel"]] - panel).mean())
        assert share["mean"] == pytest.approx(same["mean"], abs=1e-3)


def test_verification_is_told_of_both(webui):
    told = webui.generate(PAIR, {"verify": True}, **BATCH).params[VERIFY].split("; ")
    assert len(told) == 2 and told[1].startswith("worker '")
    for one in told:
        assert 0 < float(one.rpartition("max relative error ")[2].split()[0]) < 1e-4


def test_a_lora_that_the_worker_lacks_is_told_here(webui, only_here):
    made = webui.generate(f"{PAIR} {only_here}", {}, **BATCH)
    assert len(made.images) == 2
    assert "made none of its 2 pictures: LoRA not found or not readable: e2e_only_here" in made.params[NOTE]


def test_a_note_of_the_worker_is_told_here(webui, only_here):
    made = webui.generate(f"{PAIR} {only_here}", {}, **BATCH, override_settings={"loratorio_stop_on_error": False})
    assert len(made.images) == 4
    assert "says: LoRA not found or not readable: e2e_only_here" in made.params[NOTE]


def test_switched_off_it_is_not_there(webui, worker, only_here):
    off = webui.generate(PAIR, **BATCH)
    webui.generate(PAIR, MAPS, **BATCH)
    webui.generate(f"{PAIR} {only_here}", {}, **BATCH)
    again = webui.generate(PAIR, **BATCH)
    assert_identical(again, off)
    assert difference(again, worker.generate(PAIR, **BATCH)) <= CLOSE
    assert not any("LoRAtorio" in name for name in again.params)
