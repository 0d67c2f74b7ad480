"""Which of the processes that share the work this one is; without a process group there is one."""

import torch.distributed as dist


def rank() -> int:
    """Number of this process among those that share the work, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
