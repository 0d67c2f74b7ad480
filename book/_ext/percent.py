"""Execute py:percent chapters side by side, and again when code or data have changed.

The execution cache looks a notebook up by its code cells alone. Outputs depend on the helper package and on
data files as well, so the cache lies in a folder named by their digest. A new folder's name is a changed
setting of myst-nb, which makes Sphinx read every page again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors.basic import ExecutionWorkerLocalSerial, ProcessData
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
MAX_WORKERS = 4  # each notebook takes up to 2 GB
READER = {"type": "plugin", "name": "jupytext"}


def digest(folder: Path, patterns: list[str]) -> str:
    """Hash the files that match `patterns` under `folder`, and what the `NBHELPERS_*` variables point at."""
    state = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not path.name.startswith(
                "."
            ):  # a dot: still being written
                state.update(
                    f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode()
                )
                state.update(path.read_bytes())
    for name, value in sorted(os.environ.items()):
        if name.startswith("NBHELPERS_"):
            state.update(f"{name}={value}\0".encode())
            if Path(
                value
            ).is_file():  # an image archive is too large to read at every build
                status = Path(value).stat()
                state.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    return state.hexdigest()


def choose_cache(app: Sphinx, config: Config) -> None:
    """Set the reader of chapters and the cache folder of this code and data; outputs of others go."""
    cache = (
        Path(app.outdir).parent
        / ".jupyter_cache"
        / digest(Path(app.srcdir), config.percent_watch)[:16]
    )
    for old in cache.parent.glob("*"):
        if old.is_dir() and old != cache:
            shutil.rmtree(old)
    config.nb_execution_cache_path = str(cache)
    config.nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}


def execute(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Execute what the cache lacks, several at once; myst-nb would take one page after the other.

    A notebook that fails is left to myst-nb, which executes it again and reports the error.
    """
    settings, cores = env.mystnb_config, os.cpu_count() or 1
    chapters = [
        path for path in map(str, map(env.doc2path, pages)) if path.endswith(".py")
    ]
    if settings.execution_mode != "cache" or not chapters:
        return
    cache = get_cache(settings.execution_cache_path)
    for path in chapters:
        cache.add_nb_to_project(path, read_data=READER)
    waiting = cache.list_unexecuted(filter_uris=chapters)
    if workers := min(len(waiting), cores, MAX_WORKERS):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
        jobs = [
            ProcessData(row.pk, row.uri, cache, settings.execution_timeout, False)
            for row in waiting
        ]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(ExecutionWorkerLocalSerial(LOGGER), jobs))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("percent_watch", [], "", list)
    app.connect(
        "config-inited", choose_cache, priority=400
    )  # before myst-nb reads the settings
    app.connect("env-before-read-docs", execute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
