"""A batch that is divided among two machines, as the extension Distributed does it, equals the batch of one."""

import base64
import io
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from samples import NOTE, ON, SHARES, TAGS, VERIFY

MAPS = {**ON, "maps": True}
WORKER = "attic"


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def answer_of(p):
    """What the WebUI's API answers."""
    info = {
        "all_seeds": p.all_seeds,
        "all_prompts": p.all_prompts,
        "infotexts": p.processed.infotexts,
        "extra_generation_params": p.extra_generation_params,
    }
    return {"images": [encoded(image) for image in p.processed.images], "info": json.dumps(info)}


class Distributed:
    """The other extension: half of a batch is `answer(p, seed, batch_size)`, or what that logs."""

    def __init__(self, host, answer):
        self.script, self.answer = host.scripts.Script(), answer
        self.script.title = lambda: "Distribute"
        self.script.before_process = self.before_process
        self.script.postprocess_batch_list = self.postprocess_batch_list
        self.script.world = SimpleNamespace(p=None, jobs=[])
        self.waited = []

    def before_process(self, p):
        half = p.batch_size // 2
        p.batch_size -= half
        here = SimpleNamespace(worker=SimpleNamespace(master=True), batch_size=p.batch_size, thread=None)
        worker = SimpleNamespace(
            label=WORKER, master=False, response=self.answer(p, seed=p.seed + p.batch_size, batch_size=half)
        )
        thread = SimpleNamespace(join=lambda: self.waited.append(worker.label))
        there = SimpleNamespace(worker=worker, batch_size=half, thread=thread)
        self.script.world = SimpleNamespace(p=p, jobs=[here, there])

    def postprocess_batch_list(self, p, pp, batch_number):
        """One picture's images are all taken for pictures, and of more only as many as there are seeds."""
        for job in self.script.world.jobs:
            if job.thread and job.worker.response:
                images = job.worker.response["images"]
                info = json.loads(job.worker.response["info"])
                number = len(info["all_seeds"]) if job.batch_size > 1 else len(images)
                pp.images += [Image.open(io.BytesIO(base64.b64decode(image))) for image in images[:number]]


def distributed(host, settings, answer=None, prompt=f"a cat {TAGS}", there=None, **fields):
    """The request by two machines, of which the other has the settings `there`, and the extension that divides it."""

    def by_api(p, **part):
        return answer_of(host.generate(prompt, settings if there is None else there, **{**fields, **part})[0])

    p = host.request(prompt, settings, **{"batch_size": 4, **fields})
    other = Distributed(host, answer or by_api)
    p.scripts.scripts_and_args.append((other.script, ()))
    host.processing.process_images(p)
    assert host.errors.reported == []
    return p, other


def log(message):
    logging.getLogger("distributed").error(message)


@pytest.mark.parametrize("batch", [4, 2])
def test_panels_and_shares_are_those_of_one_machine(host, batch):
    whole, _ = host.generate(f"a cat {TAGS}", MAPS, batch_size=batch)
    images = host_images()
    seeds = [picture["seed"] for picture in images.saved]
    images.saved.clear()
    p, other = distributed(host, MAPS, batch_size=batch)
    assert other.waited == [WORKER]
    assert len(p.processed.images) == len(p.processed.infotexts) == 2 * batch
    for one, same in zip(p.processed.images, whole.processed.images, strict=True):
        assert one.size == same.size
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(same, dtype=int)).max() <= 1
    shares, of_one = (json.loads(request.extra_generation_params[SHARES]) for request in (p, whole))
    assert [share["panel"] for share in shares] == [share["panel"] for share in of_one] == [*range(batch, 2 * batch)]
    assert [share["mean"] for share in shares] == [pytest.approx(share["mean"], abs=1e-6) for share in of_one]
    assert [picture["seed"] for picture in images.saved][batch // 2 :] == seeds
    assert NOTE not in p.extra_generation_params


def host_images():
    import modules.images

    return modules.images


def test_pictures_without_maps_are_only_pictures(host):
    p, _ = distributed(host, ON)
    assert len(p.processed.images) == 4 and SHARES not in p.extra_generation_params
    assert NOTE not in p.extra_generation_params and list(p.comments) == []


def test_several_batches_are_waited_for_once(host):
    p, other = distributed(host, MAPS, n_iter=2)
    assert other.waited == [WORKER]
    shares = json.loads(p.extra_generation_params[SHARES])
    assert [share["panel"] for share in shares] == [*range(len(p.processed.images) - 8, len(p.processed.images))]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"error": "LoratorioError", "errors": "LoRAtorio: LoRA not found: a"}', "LoRA not found: a"),
        ('{"detail": "Sampler not found"}', "Sampler not found"),
        ("bad gateway", "bad gateway"),
        (None, "it gave no answer. Look at its console."),
    ],
)
def test_a_workers_failure_is_told(host, answer, words):
    def failing(p, **part):
        if answer:
            log(f"'{WORKER}' response: Code <500> {answer}")

    p, _ = distributed(host, MAPS, failing)
    message = f"LoRAtorio: the worker '{WORKER}' made none of its 2 pictures: {words}"
    assert p.extra_generation_params[NOTE] == message
    assert list(p.comments) == [message] == host.gradio.warnings
    assert len(p.processed.images) == 4  # two pictures and their maps


def test_failures_of_earlier_requests_are_not_told(host):
    distributed(host, ON)
    log(f"'{WORKER}' response: Code <500> of an earlier request")
    p, _ = distributed(host, ON, lambda p, **part: None)
    assert "2 pictures: it gave no answer." in p.extra_generation_params[NOTE]


def test_a_worker_that_composes_nothing_is_told(host):
    p, _ = distributed(host, ON, there=[])
    assert f"the worker '{WORKER}' has not composed its pictures" in p.extra_generation_params[NOTE]


def test_a_worker_with_other_settings_is_told(host):
    p, _ = distributed(host, ON, there={**ON, "temperature": 0.7})
    assert "has composed with other settings (" in p.extra_generation_params[NOTE]
    assert "0.7" in p.extra_generation_params[NOTE]


def test_notes_and_verification_travel(host):
    p, _ = distributed(host, {**ON, "verify": True}, there={**MAPS, "verify": True, "method": "switch"})
    assert f"the worker '{WORKER}' says: there are no weight maps" in p.extra_generation_params[NOTE]
    here, there = p.extra_generation_params[VERIFY].split("; ")
    assert here.endswith("over 3 calls") and there.startswith(f"worker '{WORKER}': max relative error ")


def test_what_both_say_is_said_once(host):
    p, _ = distributed(host, {**MAPS, "method": "switch"})
    assert p.extra_generation_params[NOTE].count("no weight maps") == 1


@pytest.mark.parametrize("settings", [None, {"enabled": False}])
def test_switched_off_nothing_is_waited_for_or_taken_out(host, settings):
    p, other = distributed(host, settings, there=MAPS, batch_size=2)
    assert other.waited == [] and len(p.processed.images) == 3  # its panel is taken for a picture
    assert p.extra_generation_params == {}


def test_an_earlier_requests_workers_do_not_matter(host):
    _, other = distributed(host, ON, lambda p, **part: None)
    other.script.before_process = lambda p: None
    p = host.request(f"a cat {TAGS}", ON)
    p.scripts.scripts_and_args.append((other.script, ()))
    host.processing.process_images(p)
    assert NOTE not in p.extra_generation_params and other.waited == [WORKER]
