"""Keeps the demo's pictures, so that a demo that was stopped goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lab.demo_pictures import Maker, Picture
from lab.demo_plan import Shot
from lab.evaluation.ways import CFG, STEPS

SOURCES = ("demo_pictures.py", "detector.py", "model.py", "world.py", "evaluation/boxes.py", "evaluation/ways.py")
"""What of the lab decides, beside a shot itself, how its picture comes out."""


class Kept:
    """The pictures in a folder, each under what it was made of: a shot, and everything that makes pictures."""

    def __init__(self, folder: Path, weights: Path):
        self.folder, self.weights = folder, weights

    @cached_property
    def _made_with(self) -> str:
        """A digest of the code, the weights and the libraries that make pictures."""
        found, lab, extension = sha256(), Path(__file__).parent, Path(__file__).parents[1] / "lib_loratorio"
        files = [lab / name for name in SOURCES] + sorted(extension.rglob("*.py"))
        files += sorted(file for file in self.weights.rglob("*") if file.is_file())
        for file in files:
            found.update(file.name.encode() + sha256(file.read_bytes()).digest())
        for library in ("torch", "diffusers", "transformers", "peft"):
            found.update(version(library).encode())
        return found.hexdigest()

    def file(self, shot: Shot) -> Path:
        """Where a shot's picture is, made or not; its title does not matter."""
        told = f"{replace(shot, title='')!r} {STEPS} {CFG} {self._made_with}"
        return self.folder / f"{sha256(told.encode()).hexdigest()[:24]}.npz"

    def read(self, shot: Shot) -> Picture | None:
        """None for a picture that was not made, or whose file is damaged."""
        try:
            with np.load(self.file(shot), allow_pickle=False) as arrays:
                return Picture(
                    **json.loads(str(arrays["told"])), **{name: arrays[name] for name in arrays if name != "told"}
                )
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            return None

    def keep(self, shot: Shot, picture: Picture) -> None:
        """Whole or not at all: it may be stopped at any time."""
        values = asdict(picture)
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        told = {name: value for name, value in values.items() if name not in arrays}
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{os.getpid()}.tmp"
        with unfinished.open("wb") as file:
            np.savez_compressed(file, told=json.dumps(told), **arrays)
        os.replace(unfinished, self.file(shot))

    def drop_others(self, shots: list[Shot]) -> None:
        """Takes away what no shot asks for any more."""
        wanted = {self.file(shot) for shot in shots}
        for file in [*self.folder.glob("*.npz"), *self.folder.glob("*.tmp")]:
            if file not in wanted:
                file.unlink()


_workers: tuple[Kept, Maker]  # of a process that makes pictures


def _begin(kept: Kept) -> None:
    global _workers
    _workers = kept, Maker(kept.weights)


def _begin_beside(kept: Kept) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    _begin(kept)


def _make(shot: Shot) -> Shot:
    kept, maker = _workers
    kept.keep(shot, maker.picture(shot))
    return shot


def make(shots: Sequence[Shot], kept: Kept, workers: int) -> Iterator[Shot]:
    """Makes and keeps the pictures, in so many processes; gives each shot as its picture is there.

    Whatever ends it, only whole pictures are kept, and no process is left.
    """
    workers = min(workers, len(shots))
    if workers > 1:
        kept.file(shots[0])  # what pictures are made with is read once, for all processes
        with multiprocessing.Pool(workers, _begin_beside, (kept,)) as pool:
            yield from pool.imap_unordered(_make, shots)
    elif shots:
        _begin(kept)
        yield from map(_make, shots)
