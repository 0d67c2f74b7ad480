"""Supervised training: class labels from the class token, the reference for what labels alone teach."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nbhelpers.capture import full_precision
from nbhelpers.pretrain.objective import Objective, options


@options
class Supervised(Objective):
    """A linear classifier on the class token after the last norm; the classifier is not kept.

    Args:
        encoder: the encoder.
        view: of every image.
        label: which labels to learn.
        classes: how many there are.
        smoothing: share of each label that is spread evenly over all classes (Szegedy et al., CVPR 2016).
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
        """Cross-entropy of normalised images `B C H W` with labels `B`, in nats."""
        logits = full_precision(self.classifier(self.encoder(view)))
        return cross_entropy(logits, labels, label_smoothing=self.smoothing)
