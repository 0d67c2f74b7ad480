"""What differs from one step to the next: its random stream, its images and its learning rate.

The randomness of step t is a function of (seed, t) alone - which images, which views, which mask - so that a
checkpoint needs no generator states and a resumed run repeats the uninterrupted one bit for bit (on a CPU).
"""

import math

import torch
from torch import Tensor

from nbhelpers.pretrain.recipes import Recipe

# Far from every training step's number, so that validation never shares a random stream with a step.
VALIDATION_STREAM = 2**31

# A CPU generator reads 32 bits of its seed. Multiples of this number (2^32 over the golden ratio) lie as far
# from each other on that circle as can be, so the streams of runs and processes do not overlap.
_STRIDE = 2_654_435_769
_MAX_SEED = 1000


def stream_seed(seed: int, stream: int, process: int = 0) -> int:
    """What a generator is seeded with for random stream number `stream` of a run, one for each process.

    Raises:
        ValueError: a seed whose streams are those of another one.

    >>> stream_seed(0, 5), stream_seed(1, 5)
    (5, 2654435774)
    """
    if not 0 <= seed < _MAX_SEED:
        raise ValueError(f"seed {seed} is not in 0..{_MAX_SEED - 1}")
    return (stream + _STRIDE * (seed + _MAX_SEED * process)) % 2**32


def generator(
    seed: int, stream: int, device: torch.device | str = "cpu", process: int = 0
) -> torch.Generator:
    """A generator at the beginning of a random stream; see `stream_seed`."""
    return torch.Generator(device).manual_seed(stream_seed(seed, stream, process))


def epoch_order(images: int, batch_size: int, epoch: int, seed: int) -> Tensor:
    """Which images the steps of an epoch train on, `steps batch_size`: a fresh permutation of whole batches.

    Raises:
        ValueError: if there are fewer images than a batch takes.

    >>> epoch_order(6, 3, 0, seed=0).flatten().sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    steps = images // batch_size
    if not steps:
        raise ValueError(f"a batch of {batch_size} needs at least as many images; there are {images}")
    order = torch.randperm(images, generator=generator(seed, VALIDATION_STREAM + 1 + epoch))
    return order[: steps * batch_size].view(steps, batch_size)


def learning_rate(recipe: Recipe, progress: Tensor) -> Tensor:
    r"""Linear warm-up during the first `warmup` of a run, then half a cosine down to 0; scalar -> scalar.

    .. math:: \eta(t) = \eta_0 t / w \text{ for } t < w, \text{ else } \eta_0 (1 + \cos \pi t) / 2

    >>> from nbhelpers.pretrain import recipe
    >>> learning_rate(recipe("shapes", "cl"), torch.tensor([0.0, 0.025, 0.5, 1.0]))
    tensor([0.0000, 0.0025, 0.0025, 0.0000])
    """
    cosine = (1 + torch.cos(math.pi * progress)) / 2
    return recipe.learning_rate * torch.where(progress < recipe.warmup, progress / recipe.warmup, cosine)
