"""Work off a list of models to train: several at once, each resumable, finished ones skipped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from nbhelpers.files import cache_dir
from nbhelpers.models import available

COLUMNS = ("name", "study", "objective", "width", "images", "seed")


def read_queue(path: str | Path) -> pd.DataFrame:
    """The queue file: a CSV with one model a row, in the order of their turn.

    Raises:
        ValueError: if a column is missing or a name occurs twice.
    """
    queue = pd.read_csv(path)
    if tuple(queue.columns) != COLUMNS:
        raise ValueError(f"{path} needs the columns {', '.join(COLUMNS)}; it has {', '.join(queue.columns)}")
    twice = sorted(queue["name"][queue["name"].duplicated()])
    if twice:
        raise ValueError(f"{path} lists {', '.join(twice)} more than once")
    return queue


def work_off(path: str | Path, stop_after: float | None = None, workers: int | None = None) -> int:
    """Train what the queue lists and the manifest lacks, `workers` at a time, `stop_after` seconds at most.

    By default one worker per CPU core, each with one thread, or four side by side where there is a GPU.

    Returns:
        How many runs failed; what each printed is in the cache folder's `pretrain/NAME/output.txt`.
    """
    workers = workers or (4 if torch.cuda.is_available() else os.cpu_count() or 1)
    shipped = set(available())
    waiting = [row for row in read_queue(path).itertuples() if row.name not in shipped]
    start, running, failed = time.monotonic(), {}, 0
    print(f"{len(waiting)} models to train, {workers} at a time", flush=True)
    while waiting or running:
        left = None if stop_after is None else stop_after - (time.monotonic() - start)
        while waiting and len(running) < workers and (left is None or left > 0):
            row = waiting.pop(0)
            running[row.name] = _start(row, left)
        if not running:
            break
        time.sleep(1)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            code = running.pop(name).returncode
            failed += code != 0
            print(f"{name}: {'stopped cleanly' if code == 0 else f'failed with code {code}'}", flush=True)
    return failed


def _start(row, stop_after: float | None) -> subprocess.Popen:
    command = [sys.executable, "-m", "nbhelpers.pretrain", "--study", row.study, "--objective", row.objective]
    command += ["--width", str(row.width), "--images", str(row.images), "--seed", str(row.seed)]
    command += [] if stop_after is None else ["--stop-after", f"{stop_after:.0f}s"]
    folder = cache_dir() / "pretrain" / row.name
    folder.mkdir(parents=True, exist_ok=True)
    # One thread each: two small models on two cores are faster side by side than one on both.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
