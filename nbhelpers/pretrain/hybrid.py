"""The hybrid: contrastive learning and masked image modelling on one encoder (Park et al., ICLR 2023)."""

import copy
from collections.abc import Mapping
from dataclasses import InitVar
from typing import Any

import torch
from torch import Tensor

from nbhelpers.pretrain.moco import MoCo
from nbhelpers.pretrain.objective import Objective, options
from nbhelpers.pretrain.simmim import SimMIM


def combine(mim: Tensor | None, cl: Tensor | None, weight: float) -> Tensor:
    r"""The hybrid's loss, a scalar: $L = (1 - \lambda) L_{MIM} + \lambda L_{CL}$.

    Args:
        mim: loss of masked image modelling, a scalar; None where its factor is 0.
        cl: contrastive loss, a scalar; None where its factor is 0.
        weight: $\lambda$ in 0..1.

    Source: Park et al. 2023, on whether both are complementary.

    >>> float(combine(torch.tensor(1.0), torch.tensor(3.0), 0.25))
    1.5
    >>> float(combine(None, torch.tensor(3.0), 1.0))
    3.0
    """
    return sum(factor * loss for factor, loss in ((1 - weight, mim), (weight, cl)) if factor)


@options
class Hybrid(Objective):
    """SimMIM with its own decoder and MoCo v3 with its own heads and momentum encoder, on one encoder.

    Each objective draws its own views. One with a factor of 0 is not there at all, so that lambda = 0 and 1
    are the pure objectives, weight by weight. The patch embedding is treated as each objective treats it
    alone: MoCo v3's gradient stops before it, SimMIM's reaches it.

    Args:
        encoder: shared by both.
        view: SimMIM's; MoCo's differs in its augmentation.
        weight: lambda, the factor of the contrastive loss.
        mim: further arguments of `SimMIM`.
        cl: further arguments of `MoCo`, its augmentation among them.
    """

    group = "hybrid"
    weight: float
    mim: InitVar[Mapping[str, Any]]
    cl: InitVar[Mapping[str, Any]]

    def __post_init__(self, mim: Mapping[str, Any], cl: Mapping[str, Any]) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"lambda must be in 0..1, not {self.weight:g}")
        # Parameters come in the order of the pure objectives (norms of gradients are summed in that order),
        # so the encoder must be found inside them first.
        encoder, other, own = self.encoder, copy.deepcopy(self.view), dict(cl)
        del self.encoder
        other.augmentation = own.pop("augmentation")
        self.mim = SimMIM(encoder, self.view, **mim) if self.weight < 1 else None
        self.cl = MoCo(encoder, other, **own) if self.weight > 0 else None
        self.encoder = encoder
        encoder.patch_embed.requires_grad_(self.mim is not None)

    def views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """SimMIM's view and mask, then MoCo's two views, of uint8 images `B C H W`."""
        terms = [term for term in (self.mim, self.cl) if term is not None]
        return tuple(view for term in terms for view in term.views(images, generator))

    def terms(self, *views: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The loss of masked image modelling and the contrastive loss of what `views` drew, each a scalar.

        One that the hybrid does not have is None.
        """
        mim = cl = None
        if self.mim is not None:
            mim = self.mim.loss(*views[:2])
        if self.cl is not None:
            self.encoder.patch_embed.requires_grad_(False)
            cl = self.cl.loss(*views[-2:])
            self.encoder.patch_embed.requires_grad_(self.mim is not None)
        return mim, cl

    def loss(self, *views: Tensor) -> Tensor:
        """Weighted sum of the two losses of what `views` drew."""
        return combine(*self.terms(*views), self.weight)

    def after_step(self, progress: Tensor) -> None:
        """Move MoCo's momentum encoder."""
        if self.cl is not None:
            self.cl.after_step(progress)
