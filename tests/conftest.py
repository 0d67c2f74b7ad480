"""What holds for every test: no window is opened and no model hub is asked."""

import os

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process begins one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def start_method() -> str:
    """How to start processes: forked ones import nothing anew, but lack their parent's threads and GPU."""
    import torch

    return "fork" if torch.get_num_threads() == 1 and not torch.cuda.is_available() else "spawn"


@pytest.fixture
def add_in_place():
    """Makes the blocks of an encoder add to their input."""
    from timm.models.vision_transformer import Block  # which reads the variable above when it is imported

    class InPlace(Block):
        def forward(self, x):
            x += self.attn(self.norm1(x))
            x += self.mlp(self.norm2(x))
            return x

    def change(encoder):
        for block in encoder.blocks:
            block.__class__ = InPlace

    return change
