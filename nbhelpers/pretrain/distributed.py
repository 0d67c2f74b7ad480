"""Data-parallel training: what differs when several processes share a batch.

`torchrun` starts the processes and says so in the environment. Without it there is one, and everything here
is the identity.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nbhelpers.capture import full_precision
from nbhelpers.ranks import rank, world_size


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; gives the device of this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def share(rows: Tensor) -> Tensor:
    """This process's part of rows `B ...` that all processes know.

    Raises:
        ValueError: if the rows cannot be shared out evenly.

    >>> share(torch.arange(4))
    tensor([0, 1, 2, 3])
    """
    if len(rows) % world_size():
        raise ValueError(f"{len(rows)} images cannot be shared out evenly among {world_size()} processes")
    return rows.chunk(world_size())[rank()]


def gathered(rows: Tensor) -> Tensor:
    """Rows `B ...` of all processes as `world_size*B ...`, in the order of their ranks; without gradient.

    >>> gathered(torch.ones(2, requires_grad=True))
    tensor([1., 1.])
    """
    rows = rows.detach()
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """Sum over processes. Each has its own loss, so the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over processes; the gradient flows back to all of them.

    >>> mean_over_ranks(torch.tensor(3.0))
    tensor(3.)
    """
    return value if world_size() == 1 else _Sum.apply(value) / world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every parameter the mean of its gradients over processes."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    vector_to_parameters(mean_over_ranks(parameters_to_vector(gradients)), gradients)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of `B D` over the batches of all processes, which must be of one size.

    In one process it is torch's. `nn.SyncBatchNorm` does the same on GPUs alone; this runs anywhere.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `B D`; in evaluation mode with the running statistics, as torch does."""
        if world_size() == 1 or not self.training:
            return super().forward(x)
        x = full_precision(x)
        mean = mean_over_ranks(x.mean(0))
        variance = mean_over_ranks((x - mean).square().mean(0))
        with torch.no_grad():
            rows = len(x) * world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        x = (x - mean) * (variance + self.eps).rsqrt()
        return x * self.weight + self.bias if self.affine else x
