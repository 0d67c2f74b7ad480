"""Makes the shared battery importable by its name, also in spawned processes; one spawn serves all tests."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Folder with the frames that two gloo processes computed."""
    from metric_battery import run_rank

    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, args=(str(folder),), nprocs=2)
    return folder
