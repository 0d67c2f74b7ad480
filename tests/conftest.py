"""What holds for every test: no window is opened and no model hub is asked."""

import os

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process begins one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
