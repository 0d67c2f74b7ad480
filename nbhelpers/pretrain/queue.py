"""Train the models of a list, each resumable, finished ones skipped."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nbhelpers.files import cache_dir
from nbhelpers.models import available
from nbhelpers.pretrain import recipe, trained_name

COLUMNS = ["study", "objective", "width", "images", "seed"]
COMMAND = (sys.executable, "-m", "nbhelpers.pretrain")


def waiting(path: str | Path) -> dict[str, dict[str, object]]:
    """Rows of a queue file (CSV), in its order, by the name of an encoder that `data/encoders` lacks.

    Raises:
        ValueError: if a column is missing, or a width cannot be.
        KeyError: for a recipe that is not there.
    """
    models = {}
    for row in pd.read_csv(path, usecols=COLUMNS)[COLUMNS].to_dict("records"):
        chosen = recipe(row["study"], row["objective"]).of_width(row["width"])
        chosen = replace(chosen, images=row["images"], seed=row["seed"])
        models[trained_name(chosen, row["study"])] = row
    return {name: row for name, row in models.items() if name not in available()}


def train(
    models: Mapping[str, Mapping[str, object]], workers: int, stop_after: float | None, *options: str
) -> int:
    """Train models by the command line, `workers` at a time; gives the number of those that failed.

    Each is trained in a process of its own, which gives all memory back and does not take the others down.
    On a CPU it has one core. What it prints goes to `pretrain/NAME/output.txt` in the cache folder. The
    `options` are added to every command line.
    """
    end = math.inf if stop_after is None else time.monotonic() + stop_after
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}  # two small models on two cores are faster side by side
    running = []

    def fails(name: str) -> bool:
        if (seconds := end - time.monotonic()) <= 0:
            return False
        output = cache_dir() / "pretrain" / name / "output.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        row = [f"--{column}={value}" for column, value in models[name].items()]
        command = [*COMMAND, *row, *options, f"--stop-after={seconds}s"]
        with output.open("a") as file:  # in a session of its own Ctrl-C reaches it once, by way of the queue
            run = subprocess.Popen(command, stdout=file, stderr=file, env=one_core, start_new_session=True)
        running.append(run)
        how = f"failed, see {output}" if run.wait() else "ended well"
        print(f"{name}: {how}", flush=True)
        return run.returncode != 0

    with ThreadPoolExecutor(workers) as pool:
        try:
            return sum(pool.map(fails, models))
        finally:
            for run in running:
                run.terminate()  # saves, and ends
