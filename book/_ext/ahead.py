"""Execute chapters side by side, before Sphinx reads them one after the other.

myst-nb executes a notebook when Sphinx reads it, and Jupyter Book gives Sphinx one process. So what the
execution cache lacks is executed here first, some notebooks at once. One that fails is left for myst-nb, which
executes it again and reports the error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
MOST = 4  # notebooks at once, each of which takes up to 2 GB


def lacking(cache: JupyterCacheAbstract, env: BuildEnvironment, pages: list[str]) -> dict[str, NotebookNode]:
    """The notebooks among pages that have code and are not in the execution cache, by their path."""
    found = {}
    for path in map(str, map(env.doc2path, pages)):
        text = Path(path).read_text(encoding="utf-8")
        reader = create_nb_reader(path, env.myst_config, env.mystnb_config, text)
        notebook = reader and reader.read(text)
        if notebook and any(cell.cell_type == "code" for cell in notebook.cells):
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                found[path] = notebook
    return found


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Processes started meanwhile compute with so many threads, unless the environment says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def execute(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Put into the execution cache what it lacks, if that is more than one notebook."""
    settings, cores = env.mystnb_config, os.cpu_count() or 1
    if settings.execution_mode != "cache":
        return
    cache = get_cache(settings.execution_cache_path)
    notebooks = lacking(cache, env, pages)
    workers = min(len(notebooks), cores, MOST)
    if workers < 2:
        return
    if app.config.ahead_command:
        subprocess.run([sys.executable, *app.config.ahead_command], check=True)

    run = partial(single_nb_execution, timeout=settings.execution_timeout, allow_errors=False)
    with threads(cores // workers), ThreadPoolExecutor(workers) as pool:
        runs = {pool.submit(run, nb, cwd=str(Path(path).parent)): path for path, nb in notebooks.items()}
        for future in as_completed(runs):
            path, result = runs[future], future.result()
            if result.err is None:
                LOGGER.info(f"Executed {path} in {result.time:.0f} seconds")
                bundle = CacheBundleIn(notebooks[path], path, data={"execution_seconds": result.time})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("ahead_command", [], "", list)
    app.connect("env-before-read-docs", execute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
