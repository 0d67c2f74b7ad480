"""Muon for matrices and AdamW for vectors, without host synchronisation in a step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Newton-Schulz iteration whose coefficients differ from step to step, fitted to singular values in 0..1.
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalised(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    r"""Matrices `G M N` with the same singular vectors and all singular values near 1.

    .. math:: X_0 = G / \|G\|_F, \quad X_{k+1} = a_k X_k + b_k A X_k + c_k A^2 X_k, \quad A = X_k X_k^T

    Args:
        matrices: `G M N`.
        precision: of the products.

    Returns:
        `G M N`, float32.

    Source: Jordan et al. 2024 (Muon); coefficients as in timm's "quintic".

    >>> orthogonalised(torch.diag(torch.tensor([3.0, 1.0]))[None])[0].diag().round(decimals=1)
    tensor([1., 1.])
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(precision).contiguous()
    for a, b, c in COEFFICIENTS:
        product = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(product, product, product, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Optimizer:
    r"""Muon on matrices, stacked by shape; AdamW on biases, norms and tokens, which are not decayed.

    The state is tensors on the parameters' device, so that a captured step moves it on.

    .. math:: m \leftarrow \mu m + (1 - \mu) g, \quad
        \theta \leftarrow (1 - \eta w) \theta - 0.2 \eta \sqrt{\max(M, N)} \, \mathrm{orth}(m)

    Args:
        parameters: those without `requires_grad` are left alone.
        weight_decay: w, of the matrices.
        precision: of the Newton-Schulz products; CPUs without bfloat16 units emulate it, far slower.

    Source: Muon, Jordan et al. 2024, scaled as by Liu et al. 2025 (arXiv 2502.16982, equation 4); AdamW,
    Loshchilov and Hutter, ICLR 2019, algorithm 2.
    """

    MOMENTUM, BETAS, EPS = 0.95, (0.9, 0.95), 1e-7

    def __init__(
        self, parameters: Iterable[nn.Parameter], weight_decay: float, precision: torch.dtype = torch.float32
    ) -> None:
        self.weight_decay, self.precision = weight_decay, precision
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        self.vectors: list[nn.Parameter] = []
        for p in (p for p in parameters if p.requires_grad):
            if p.ndim in (2, 4):
                by_shape.setdefault((p.shape[0], p[0].numel()), []).append(p)
            else:
                self.vectors.append(p)
        self.matrices = list(by_shape.values())
        device = self.vectors[0].device
        self.state = {
            "momentum": [torch.zeros(len(g), *shape, device=device) for shape, g in by_shape.items()],
            "first": [torch.zeros_like(p) for p in self.vectors],
            "second": [torch.zeros_like(p) for p in self.vectors],
            "count": [torch.zeros((), device=device)],
        }

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """Move the parameters along their gradients; the learning rate is a scalar tensor."""
        for group, momentum in zip(self.matrices, self.state["momentum"], strict=True):
            momentum.lerp_(torch.stack([p.grad.flatten(1) for p in group]), 1 - self.MOMENTUM)
            moves = orthogonalised(momentum, self.precision) * (-0.2 * max(momentum.shape[1:]) ** 0.5 * rate)
            torch._foreach_mul_(group, 1 - rate * self.weight_decay)
            torch._foreach_add_(group, [m.view_as(p) for m, p in zip(moves, group, strict=True)])
        first, second, (count,) = (self.state[name] for name in ("first", "second", "count"))
        gradients = [p.grad for p in self.vectors]
        count += 1
        torch._foreach_lerp_(first, gradients, 1 - self.BETAS[0])
        torch._foreach_mul_(second, self.BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - self.BETAS[1])
        scale = torch._foreach_sqrt(second)
        torch._foreach_mul_(scale, (1 - torch.pow(self.BETAS[1], count)).rsqrt())
        torch._foreach_add_(scale, self.EPS)
        moves = torch._foreach_mul(first, -rate / (1 - torch.pow(self.BETAS[0], count)))
        torch._foreach_addcdiv_(self.vectors, moves, scale)

    def load(self, state: dict[str, list[Tensor]]) -> None:
        """Take over a stored `state`."""
        for name, tensors in self.state.items():
            torch._foreach_copy_(tensors, state[name])
