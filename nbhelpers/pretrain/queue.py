"""Train the models of a list, each resumable, finished ones skipped."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import pandas as pd
import torch

from nbhelpers.files import cache_dir
from nbhelpers.models import available
from nbhelpers.pretrain import Recipe, pretrain, recipe, trained_name

COLUMNS = ("study", "objective", "width", "images", "seed")
SPAWN = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads
Models = Mapping[str, tuple[str, Recipe]]  # study and recipe by the encoder's name


def waiting(path: str | Path, batch_size: int) -> Models:
    """What a queue file, a CSV, lists and `data/encoders` lacks, in its order, for batches of a size.

    Raises:
        ValueError: if a column is missing, or a width cannot be.
        KeyError: for a recipe that is not there.
    """
    models = {}
    for row in pd.read_csv(path, usecols=COLUMNS).itertuples():
        chosen = recipe(row.study, row.objective).of_width(row.width)
        chosen = replace(chosen, images=row.images, seed=row.seed, batch_size=batch_size)
        models[trained_name(chosen, row.study)] = row.study, chosen
    return {name: model for name, model in models.items() if name not in available()}


def one_by_one(models: Models, device: str, stop_after: float | None, precision: torch.dtype | None) -> int:
    """Train them in this process, each with the whole device; how many failed."""
    end = math.inf if stop_after is None else time.monotonic() + stop_after
    failed = 0
    for name, (study, chosen) in models.items():
        try:
            if not pretrain(chosen, study, device, end - time.monotonic(), precision=precision):
                break
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
            failed += 1
            print(f"{name} failed: {error}", flush=True)
    return failed


def side_by_side(
    models: Models, workers: int, stop_after: float | None, precision: torch.dtype | None
) -> int:
    """Train them on a CPU, `workers` at a time with a core each; how many failed.

    What each prints is in the cache folder's `pretrain/NAME/output.txt`.
    """
    end = math.inf if stop_after is None else time.monotonic() + stop_after
    failed, left, running = 0, list(models), {}
    try:
        while True:
            while left and len(running) < workers and (seconds := end - time.monotonic()) > 0:
                name = left.pop(0)
                output = cache_dir() / "pretrain" / name / "output.txt"
                arguments = ({name: models[name]}, output, seconds, precision)
                process = SPAWN.Process(target=_on_a_core, args=arguments, name=name)
                process.start()
                running[process.sentinel] = process, output
            if not running:
                return failed
            for sentinel in wait(running):
                process, output = running.pop(sentinel)
                process.join()
                failed += process.exitcode != 0
                how = f"failed, see {output}" if process.exitcode else "ended well"
                print(f"{process.name}: {how}", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()  # saves, and ends
        for process, _ in running.values():
            process.join()


def _on_a_core(models: Models, output: Path, stop_after: float | None, precision: torch.dtype | None) -> None:
    """What a process of `side_by_side` does."""
    os.setsid()  # Ctrl-C reaches it once, by way of the queue
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after the steps, which handle it
    torch.set_num_threads(1)  # two small models on two cores are faster side by side than one on both
    output.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    sys.exit(one_by_one(models, "cpu", stop_after, precision))
