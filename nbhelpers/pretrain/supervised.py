"""Supervised training: class labels from the class token, the reference for what labels alone teach."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nbhelpers.capture import full_precision
from nbhelpers.pretrain.objective import Objective, options


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    r"""Cross-entropy against labels of which a share is spread evenly over all classes.

    .. math:: L = -\frac{1}{B} \sum_{i, c} y_{ic} \log p_{ic}, \quad
        y_{ic} = (1 - \epsilon) [c = l_i] + \epsilon / C

    Args:
        logits: `B C`; p is their softmax.
        labels: int64 `B` in 0..C-1.
        smoothing: the share epsilon in 0..1.

    Returns:
        A scalar in nats; log C for equal logits.

    Source: Szegedy et al., CVPR 2016, section 7.

    >>> import torch
    >>> round(float(smoothed_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]), 0.1)), 4)  # log 4
    1.3863
    """
    return cross_entropy(full_precision(logits), labels, label_smoothing=smoothing)


@options
class Supervised(Objective):
    """A linear classifier on the class token after the last norm; the classifier is not kept.

    Args:
        encoder: the encoder.
        view: of every image.
        label: which labels to learn.
        classes: how many there are.
        smoothing: see `smoothed_cross_entropy`.
    """

    group = "supervised"
    label: str
    classes: int
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        self.classifier = nn.Linear(self.encoder.embed_dim, self.classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def loss(self, view: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of normalised images `B C H W` with labels `B`."""
        return smoothed_cross_entropy(self.classifier(self.encoder(view)), labels, self.smoothing)
