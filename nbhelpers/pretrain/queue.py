"""Train the models of a list, each resumable, finished ones skipped."""

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


def train(
    models: Models, device: str, workers: int, stop_after: float | None, precision: torch.dtype | None
) -> int:
    """Train them, `workers` at a time and each in a process of its own; how many failed.

    A process of its own gives all memory back, and what fails in it stays in it. On a CPU it has one core.
    What it prints is in the cache folder's `pretrain/NAME/output.txt`.
    """
    end = math.inf if stop_after is None else time.monotonic() + stop_after
    failed, left, running = 0, list(models), {}
    try:
        while True:
            while left and len(running) < workers and (seconds := end - time.monotonic()) > 0:
                name = left.pop(0)
                output = cache_dir() / "pretrain" / name / "output.txt"
                arguments = (*models[name], device, seconds, precision, output)
                process = SPAWN.Process(target=_train_one, args=arguments, name=name)
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


def _train_one(
    study: str, chosen: Recipe, device: str, seconds: float, precision: torch.dtype | None, output: Path
) -> None:
    """What a process of `train` does."""
    os.setsid()  # Ctrl-C reaches it once, by way of the queue
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after the steps, which handle it
    torch.set_num_threads(1)  # two small models on two cores are faster side by side than one on both
    output.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    pretrain(chosen, study, device, seconds, precision=precision)
