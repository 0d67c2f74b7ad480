"""Work off a list of models to train, each resumable, finished ones skipped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from nbhelpers.files import cache_dir
from nbhelpers.models import available
from nbhelpers.pretrain import Recipe, pretrain, recipe, trained_name
from nbhelpers.pretrain.trainer import stop_signals

COLUMNS = ("study", "objective", "width", "images", "seed")
Models = Mapping[str, tuple[str, Recipe]]  # study and recipe by the encoder's name


def read_queue(path: str | Path) -> Models:
    """The models of a queue file, a CSV, in the order of their turn.

    Raises:
        ValueError: if a column is missing, or a model occurs twice or cannot be.
        KeyError: for a recipe that is not there.
    """
    queue = pd.read_csv(path)
    if tuple(queue.columns) != COLUMNS:
        raise ValueError(f"{path} needs the columns {', '.join(COLUMNS)}; it has {', '.join(queue.columns)}")
    models = {}
    for row in queue.itertuples():
        chosen = recipe(row.study, row.objective).of_width(row.width)
        chosen = replace(chosen, images=row.images, seed=row.seed)
        name = trained_name(chosen, row.study)
        if name in models:
            raise ValueError(f"{path} lists {name} more than once")
        models[name] = row.study, chosen
    return models


def waiting(path: str | Path, batch_size: int) -> Models:
    """What the queue lists and `data/encoders` lacks, to be trained in batches of a size."""
    shipped, models = set(available()), read_queue(path).items()
    return {n: (study, replace(r, batch_size=batch_size)) for n, (study, r) in models if n not in shipped}


def one_by_one(models: Models, device: str, stop_after: float | None, precision: torch.dtype | None) -> int:
    """Train them in this process, each with the whole device; how many failed."""
    start, failed = time.monotonic(), 0
    for name, (study, chosen) in models.items():
        left = None if stop_after is None else stop_after - (time.monotonic() - start)
        try:
            if not pretrain(chosen, study, device, left, precision=precision):
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
    start, running, failed, left = time.monotonic(), {}, 0, list(models.items())
    with stop_signals() as signalled:
        try:
            while running or left:
                seconds = None if stop_after is None else stop_after - (time.monotonic() - start)
                if signalled() or (seconds is not None and seconds <= 0):
                    left = []
                if signalled():
                    break
                while left and len(running) < workers:
                    name, model = left.pop(0)
                    running[name] = _start(name, *model, seconds, precision)
                time.sleep(1)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    failed += code != 0
                    print(f"{name}: {f'failed, see {_output(name)}' if code else 'ended well'}", flush=True)
        finally:
            for process in running.values():
                process.terminate()  # saves, and ends
            for process in running.values():
                process.wait()
    return failed


def _output(name: str) -> Path:
    return cache_dir() / "pretrain" / name / "output.txt"


def _start(
    name: str, study: str, chosen: Recipe, stop_after: float | None, precision: torch.dtype | None
) -> subprocess.Popen:
    options = {"study": study, "objective": chosen.objective, "device": "cpu", "nice": 0}
    options |= {key: getattr(chosen, key) for key in ("width", "images", "seed")}
    options |= {
        "batch-size": chosen.batch_size,
        "precision": precision and str(precision).removeprefix("torch."),
    }
    options |= {"stop-after": None if stop_after is None else f"{stop_after:.0f}s"}
    command = [sys.executable, "-m", "nbhelpers.pretrain"]
    command += [f"--{key}={value}" for key, value in options.items() if value is not None]
    _output(name).parent.mkdir(parents=True, exist_ok=True)
    # One thread each: two small models on two cores are faster side by side than one on both. A session of
    # its own, so that Ctrl-C reaches it once, by way of the queue.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with _output(name).open("a") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
