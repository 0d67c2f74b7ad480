"""Latent masked image modelling: SimMIM with the features of a momentum teacher as its target.

Masks, views and decoder are those of SimMIM, so that two encoders differ in what is predicted and in nothing
else. The target is data2vec's (Baevski et al., ICML 2022).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from nbhelpers.capture import full_precision
from nbhelpers.pretrain.distributed import mean_over_ranks
from nbhelpers.pretrain.objective import masked_error, options
from nbhelpers.pretrain.simmim import SimMIM


def masked_smooth_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Mean smooth L1 error over the features of masked patches only.

    .. math:: L = \frac{\sum_{b,n} m_{bn} \sum_d h(\hat t_{bnd} - t_{bnd})}{D \sum_{b,n} m_{bn}}, \quad
        h(e) = \begin{cases} e^2 / 2 & |e| < 1 \\ |e| - 1/2 & \text{else} \end{cases}

    Args:
        prediction: `B N D`.
        target: `B N D`; no gradient reaches it.
        mask: bool `B N`, true where masked.

    Returns:
        A scalar; NaN if nothing is masked.

    Source: data2vec, equation 2 with beta = 1.

    >>> mask = torch.tensor([[True, False]])
    >>> target = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])
    >>> float(masked_smooth_l1(torch.zeros(1, 2, 2), target, mask))  # (1/2 + 3/2) / 2
    1.0
    """
    return masked_error(smooth_l1_loss, prediction, target.detach(), mask)


def standardised_mean(outputs: Sequence[Tensor], eps: float = 1e-5) -> Tensor:
    r"""Mean over blocks of their outputs, each with mean 0 and deviation 1 in every channel.

    .. math:: t_{bnd} = \frac{1}{K} \sum_k \frac{x_{kbnd} - \mu_{kd}}{\sqrt{\sigma^2_{kd} + \epsilon}}

    with mean and variance over images b, of all processes, and patches n. A teacher that makes the same of
    every patch gives a target of 0.

    Args:
        outputs: of K blocks, each `B N D`.
        eps: added to the variance.

    Returns:
        `B N D`, with mean 0 in every channel.

    Source: data2vec, section 3.3: normalised blocks are averaged; by batch statistics as its official code
    does with `batch_norm_target_layer`.

    >>> standardised_mean([torch.tensor([[[1.0]], [[5.0]]])]).flatten().round(decimals=3)
    tensor([-1.,  1.])
    """
    total = torch.zeros_like(full_precision(outputs[0]))
    for output in map(full_precision, outputs):
        centred = output - mean_over_ranks(output.mean((0, 1)))
        variance = mean_over_ranks(centred.square().mean((0, 1)))
        total += centred * (variance + eps).rsqrt()
    return total / len(outputs)


@options
class Latent(SimMIM):
    """A student that sees the unmasked patches predicts what its teacher makes of the masked ones.

    The teacher, the moving average of the student, sees the whole view. `averaged_blocks` counts the last
    blocks whose outputs make up the target; the other options are those of `SimMIM`.
    """

    group = "latent MIM"
    averaged = (("encoder", "teacher"),)
    momentum: float = 0.96
    averaged_blocks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begin_averages()

    @property
    def outputs(self) -> int:
        """How many numbers are predicted of a patch: the teacher's features."""
        return self.encoder.embed_dim

    @torch.no_grad()
    def targets(self, view: Tensor) -> Tensor:
        """The teacher's features `B N D` of normalised images `B C H W`."""
        outputs = self.teacher.forward_intermediates(view, output_fmt="NLC", intermediates_only=True)
        return standardised_mean(outputs[-self.averaged_blocks :])

    def loss(self, view: Tensor, mask: Tensor) -> Tensor:
        """Smooth L1 loss on the masked patches' features of normalised images `B C H W`; mask bool `B N`."""
        return masked_smooth_l1(self.predict(view, mask), self.targets(view), mask)
