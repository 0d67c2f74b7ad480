"""What the trainer asks of an objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nbhelpers.capture import full_precision
from nbhelpers.pretrain.augment import View


def without_autocast(x: Tensor) -> torch.autocast:
    """Context without autocast on the tensor's device.

    A step of bfloat16 is 1/256: too coarse for where a view's pixels come from, and for cosines that a
    temperature divides.

    >>> with torch.autocast("cpu"), without_autocast(torch.ones(1)):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    return torch.autocast(x.device.type, enabled=False)


def masked_error(error: Callable[..., Tensor], prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean (a scalar) over the patches in `mask` (bool `B N`) of an error of `B N D`; NaN if there are none.

    The error is one of `torch.nn.functional`, such as `l1_loss`.

    Raises:
        ValueError: if shapes differ.

    >>> target, mask = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.tensor([[True, False]])
    >>> float(masked_error(torch.nn.functional.l1_loss, torch.zeros(1, 2, 2), target, mask))
    2.0
    """
    if prediction.shape != target.shape or mask.shape != target.shape[:2]:
        shapes = [tuple(t.shape) for t in (prediction, target, mask)]
        raise ValueError(f"need prediction and target B N D and mask B N; got {shapes}")
    errors = error(full_precision(prediction), full_precision(target), reduction="none")
    weight = mask.to(errors.dtype)
    return (errors.mean(-1) * weight).sum() / weight.sum()


def cosine_momentum(base: float, progress: Tensor) -> Tensor:
    """Momentum that rises from `base` to 1 on half a cosine: 1 - (1 - base) (cos(pi progress) + 1) / 2.

    >>> cosine_momentum(0.9, torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.9000, 0.9500, 1.0000])
    """
    return 1 - (1 - base) * (torch.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def ema_update(slow: nn.Module, fast: nn.Module, momentum: Tensor) -> None:
    """Exponential moving average: every weight of `slow` becomes momentum x slow + (1 - momentum) x fast.

    The momentum is a scalar tensor; `_foreach_lerp_` would fix it as a number in a captured step.
    """
    ours = list(slow.parameters())
    torch._foreach_mul_(ours, momentum.float())
    torch._foreach_add_(ours, torch._foreach_mul(list(fast.parameters()), (1 - momentum).float()))


# Objectives keep the equality and the repr of torch modules; their options are given by name.
options = dataclass(eq=False, repr=False, kw_only=True)


@dataclass(eq=False, repr=False)
class Objective(nn.Module):
    """An encoder with what its training needs beside it; `forward` gives the loss of a batch.

    An objective is a dataclass whose further fields are its options; `__post_init__` makes its other modules.
    It says in `views` what is drawn at random and in `loss` what is computed from it. On a GPU all of it is
    captured once and replayed: nothing may ask for a tensor's value, move a constant to the device, or depend
    on Python numbers that change from step to step.

    Args:
        encoder: the Vision Transformer that is trained.
        view: what it sees of an image.

    Attributes:
        group: what figures call encoders trained this way, such as "CL".
        crops: how many views there are of an image.
        label: name of the labels that the loss reads, as in `ImageSource.labels`; None where it reads none.
        averaged: names of modules and of their moving averages, updated after each step; the option
            `momentum` is theirs at the beginning, see `cosine_momentum`.
    """

    encoder: VisionTransformer
    view: View
    group: ClassVar[str]
    crops: ClassVar[int] = 1
    label: ClassVar[str | None] = None
    averaged: ClassVar[Sequence[tuple[str, str]]] = ()

    def __new__(cls, *_: Any, **__: Any) -> Objective:
        """An empty module, since the fields that `__init__` sets are modules themselves."""
        module = super().__new__(cls)
        nn.Module.__init__(module)
        return module

    def begin_averages(self) -> None:
        """Make the modules that `averaged` names: copies, which the optimiser leaves alone."""
        for fast, slow in self.averaged:
            setattr(self, slow, copy.deepcopy(getattr(self, fast)).requires_grad_(False))

    @property
    def saved(self) -> nn.Module:
        """What goes to disk when training ends: the encoder, with its decoder where a chapter looks at it."""
        return self.encoder

    def views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the loss sees of uint8 images `B C H W`, batch first; `generator` is all that is random.

        Here `crops` normalised views `B C H W`; an objective that masks adds what it hides. Where images
        `B 3k H W` hold k renderings of the same things, views take turns in these.
        """
        renderings = islice(cycle(images.split(3, 1)), self.crops)
        return tuple(self.view(each, generator) for each in renderings)

    def loss(self, *views: Tensor) -> Tensor:
        """The loss (a scalar) of what `views` drew, with labels `B` behind if `label` asks for some."""
        raise NotImplementedError

    def forward(self, images: Tensor, generator: torch.Generator, *labels: Tensor) -> Tensor:
        """Loss (a scalar) of uint8 images `B C H W`, with labels `B` if `label` asks for some."""
        with without_autocast(images):
            views = self.views(images, generator)
        return self.loss(*views, *labels)

    def after_step(self, progress: Tensor) -> None:
        """Update the moving averages; `progress`, a scalar, is the share of training done, 0..1."""
        for fast, slow in self.averaged:
            momentum = cosine_momentum(self.momentum, progress)
            ema_update(getattr(self, slow), getattr(self, fast), momentum)
