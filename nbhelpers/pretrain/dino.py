"""DINO: self-distillation with a momentum teacher (Caron et al., ICCV 2021), with two global views.

The original adds smaller local crops. An image of 32 px leaves no room for them: half of its side would be
four patches.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize, softmax
from torchvision.ops import MLP

from nbhelpers.capture import full_precision
from nbhelpers.pretrain.distributed import BatchNorm, mean_over_ranks
from nbhelpers.pretrain.objective import Objective, options, without_autocast


def self_distillation(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    r"""Cross-entropy from the teacher's sharpened and centred distribution to the student's.

    .. math:: L = -\frac{1}{B} \sum_i \sum_k P_{ik} \log Q_{ik}, \quad
        P = \mathrm{softmax}((t - c) / \tau_t), \quad Q = \mathrm{softmax}(s / \tau_s)

    Args:
        student: logits s, `B K`.
        teacher: logits t of another view, `B K`; no gradient reaches them.
        centre: c, `K`, running mean of the teacher's logits.
        student_temperature: of Q.
        teacher_temperature: of P, the lower one, which sharpens.

    Returns:
        A scalar in nats; log K where the student's logits are all equal.

    Source: DINO, equation 1 and algorithm 1.

    >>> equal = torch.zeros(3, 8)
    >>> round(float(self_distillation(equal, torch.randn(3, 8), torch.zeros(8), 0.1, 0.04)), 4)  # log 8
    2.0794
    """
    target = softmax((full_precision(teacher.detach()) - centre) / teacher_temperature, dim=1)
    return cross_entropy(full_precision(student) / student_temperature, target)


class Head(nn.Module):
    """MLP to a narrow unit vector, compared with prototypes of unit length: `B D` -> cosines `B K`.

    The batch norm is an option of the official code (`--use_bn_in_head`). Class tokens of a fresh encoder
    hardly differ between images: without it the teacher's output is the same for all, and training collapses.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = MLP(width, [hidden, hidden, bottleneck], BatchNorm, nn.GELU)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """Class tokens `B D` -> logits `B K`."""
        x = full_precision(self.mlp(x))
        with without_autocast(x):
            return linear(normalize(x, dim=1), normalize(self.prototypes, dim=1))


@options
class DINO(Objective):
    """A student predicts from one view the output of the teacher, its moving average, for the other view.

    Centring prevents collapse onto one prototype, sharpening collapse onto the uniform distribution; together
    they take the place of negatives.
    """

    group, crops = "CL", 2
    averaged = (("encoder", "teacher_encoder"), ("head", "teacher_head"))
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.99
    centre_momentum: float = 0.9
    hidden: int = 256
    bottleneck: int = 64
    prototypes: int = 1024

    def __post_init__(self) -> None:
        self.head = Head(self.encoder.embed_dim, self.hidden, self.bottleneck, self.prototypes)
        self.begin_averages()
        self.register_buffer("centre", torch.zeros(self.prototypes))

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        """Mean of the losses from each view `B C H W` to the other; moves the centre afterwards."""
        both = torch.cat([one, two])
        students = self.head(self.encoder(both)).chunk(2)
        with torch.no_grad():
            teachers = self.teacher_head(self.teacher_encoder(both)).chunk(2)
            centre = self.centre.clone()
            mean = mean_over_ranks(full_precision(torch.cat(teachers)).mean(0))
            self.centre.lerp_(mean, 1 - self.centre_momentum)
        pairs = zip(students, teachers[::-1], strict=True)
        temperatures = self.student_temperature, self.teacher_temperature
        return 0.5 * sum(self_distillation(*pair, centre, *temperatures) for pair in pairs)
