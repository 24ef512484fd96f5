"""A campaign of mixed requests against a running WebUI, and its fixtures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import checks
import faults
import files
import grammar
import lora_files
import pytest
import report
from host import EXTENSION, Answer, Host


def numbers(config) -> list[int]:
    """The numbers of the requests that are asked for: `--requests`, or those of `--only`, such as 37 or 30-37."""
    only = config.getoption("--only")
    if only is None:
        return list(range(config.getoption("--requests")))
    first, _, last = only.partition("-")
    return list(range(int(first), int(last or first) + 1))


def pytest_generate_tests(metafunc) -> None:
    if "number" in metafunc.fixturenames and metafunc.module.__name__ == "test_soak":
        wanted = numbers(metafunc.config) if metafunc.config.getoption("--webui-url") else [0]
        metafunc.parametrize("number", wanted)


@dataclass
class Campaign:
    """Everything that the requests of one run have in common."""

    seed: int
    stage: faults.Stage
    offer: grammar.Offer
    baseline: checks.Baseline
    log: str | None = None
    without: tuple[str, ...] = ()
    records: list[dict] = field(default_factory=list)

    @property
    def host(self) -> Host:
        return self.stage.host

    def request(self, number: int) -> dict:
        return grammar.request(self.seed, number, self.offer, self.without)

    def record(self, record: dict) -> None:
        self.records.append(record)
        report.append(self.log, record)


@pytest.fixture(scope="session")
def webui_dir(request) -> Path:
    url, folder = (request.config.getoption(name) for name in ("--webui-url", "--webui-dir"))
    if not url or not folder:
        pytest.skip("needs --webui-url and --webui-dir, address and folder of a running WebUI")
    return Path(folder)


@pytest.fixture(scope="session")
def host(request, webui_dir) -> Iterator[Host]:
    """The WebUI, with our script in it for the time of the session."""
    host = Host(request.config.getoption("--webui-url"))
    place = webui_dir / "extensions" / "loratorio-soak"
    missing = not host.has_script()
    if missing:
        _install(host, place)
    yield host
    if missing:
        place.unlink()
        host.reload_without_script()


def _install(host: Host, place: Path) -> None:
    """Puts the script into the WebUI's folder, and has it read its scripts anew."""
    if not place.is_symlink():
        place.symlink_to(EXTENSION)
    try:
        host.restart()
    except RuntimeError as error:
        pytest.fail(f"{error}. Start the WebUI anew: it now has {place}, or put a link to {EXTENSION} there yourself.")


@pytest.fixture(scope="session")
def stage(host, webui_dir) -> Iterator[faults.Stage]:
    """The WebUI with files of all kinds of LoRAs for its checkpoint."""
    checkpoint, folder = host.current_checkpoint(), files.lora_folder(webui_dir)
    files.write_all(checkpoint["filename"], folder)
    host.refresh_loras()
    host.add_style(grammar.STYLE)
    yield faults.Stage(host, folder, checkpoint)
    shutil.rmtree(folder)
    host.refresh_loras()


@pytest.fixture(scope="session")
def offer(request, host, stage) -> grammar.Offer:
    """What this WebUI offers, and which kinds of LoRAs it applies."""
    config = request.config
    without = host.ordinary("a cat")
    applied = [kind for kind in lora_files.KINDS if _applies(host, kind, without)]
    others = [
        model
        for name in config.getoption("--checkpoints").split(",")
        for model in host.checkpoints()
        if model["model_name"] == name and model["title"] != stage.checkpoint["title"]
    ]
    xl = [model for model in others if "xl" in model["model_name"]]
    for model in xl:
        lora_files.write_all(model["filename"], stage.folder / "xl", "soak_xl_")
    host.refresh_loras()
    return grammar.Offer(
        samplers=tuple(host.names("samplers")),
        schedulers=tuple(one["label"] for one in host.get("/sdapi/v1/schedulers")),
        kinds=tuple(applied),
        unread=tuple(kind for kind in lora_files.KINDS if kind not in applied),
        pool=files.pool_names(),
        checkpoints=tuple((model["title"], "soak_xl_" if model in xl else grammar.PREFIX) for model in others),
        refiners=tuple(model["title"] for model in others if model not in xl and "inpaint" not in model["model_name"]),
        options=tuple(sorted(host.options())),
        axes=tuple(host.axes()),
        work=config.getoption("--work"),
    )


def _applies(host: Host, kind: str, without: Answer) -> bool:
    """Whether the WebUI itself changes its picture by this kind."""
    with_it = host.ordinary(f"a cat <lora:soak_{kind}:1>")
    if with_it.error:
        host.ordinary("a cat <lora:soak_lora:1>")  # a host that fails amid a merge keeps a part of it until then
    return not with_it.error and not with_it.same_pictures(without)


@pytest.fixture(scope="session")
def campaign(request, host, stage, offer) -> Iterator[Campaign]:
    config = request.config
    baseline = checks.Baseline(host)
    baseline.begin()
    log, seed = config.getoption("--log"), config.getoption("--seed")
    without = tuple(filter(None, config.getoption("--without").split(",")))
    run = {
        "host": host.name(),
        "seed": seed,
        "commit": _commit(),
        "checkpoint": stage.checkpoint["title"],
        "offer": asdict(offer),
        "without": without,
    }
    report.append(log, {"run": run})
    campaign = Campaign(seed, stage, offer, baseline, log, without)
    config.stash[RUN] = run, campaign.records
    yield campaign


RUN = pytest.StashKey[tuple[dict, list[dict]]]()


def pytest_terminal_summary(terminalreporter, config) -> None:
    if RUN in config.stash:
        terminalreporter.section("soak")
        terminalreporter.write_line(report.table(*config.stash[RUN]))


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=EXTENSION)
    return done.stdout.strip()
