"""A small ViT for the tests of what wraps one."""

import pytest
import torch

from nbhelpers.models import mini_vit, wrap


@pytest.fixture
def mini():
    """Makes an encoder of two blocks, the same at every call but for the given fields."""

    def make(**fields):
        torch.manual_seed(0)
        half = (0.5, 0.5, 0.5)
        return wrap(mini_vit(32, 2, 2), **({"mean": half, "std": half} | fields))

    return make
