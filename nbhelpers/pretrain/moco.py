"""MoCo v3: contrastive learning of two views with a momentum encoder (Chen, Xie and He, ICCV 2021)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.ops import MLP

from nbhelpers.capture import full_precision
from nbhelpers.pretrain.distributed import BatchNorm, gathered
from nbhelpers.pretrain.objective import Objective, options, without_autocast
from nbhelpers.ranks import rank, world_size


def info_nce(query: Tensor, key: Tensor, temperature: float, first: int = 0) -> Tensor:
    r"""Contrastive loss of one view's queries against the other view's keys.

    .. math:: L = -\frac{2 T}{B} \sum_i \log \frac{\exp(q_i \cdot k_i / T)}{\sum_j \exp(q_i \cdot k_j / T)}

    with unit vectors q and k. The factor 2 T makes gradients comparable between temperatures.

    Args:
        query: `B D`, any length.
        key: `K D`, any length; the row of the same number is the positive.
        temperature: T > 0.
        first: row of the first query's positive, where `key` holds the keys of several processes.

    Returns:
        A scalar in nats times 2 T; 2 T log K when all keys look alike.

    Source: MoCo v3, algorithm 1 and section 3.

    >>> same = torch.ones(4, 2)
    >>> round(float(info_nce(same, same, temperature=0.5)), 4)  # 2 * 0.5 * log 4
    1.3863
    """
    query, key = (normalize(full_precision(x), dim=1) for x in (query, key))
    with without_autocast(query):
        logits = query @ key.T / temperature
    positive = torch.arange(first, first + len(query), device=query.device)
    return 2 * temperature * cross_entropy(logits, positive)


def head(*sizes: int) -> nn.Sequential:
    """MLP with batch norm after every layer, ReLU between layers; the last norm has no parameters."""
    layers = MLP(sizes[0], list(sizes[1:]), BatchNorm, nn.ReLU, bias=False)
    return nn.Sequential(layers, BatchNorm(sizes[-1], affine=False))


@options
class MoCo(Objective):
    """Queries from encoder, projector and predictor; keys from the momentum encoder and its projector.

    The patch embedding stays at its random initialisation (MoCo v3, section 5: it makes training stable).
    `hidden` is the width of the heads' hidden layers, by default eight times the encoder's.
    """

    group, crops = "CL", 2
    averaged = (("encoder", "momentum_encoder"), ("projector", "momentum_projector"))
    temperature: float = 0.2
    momentum: float = 0.99
    hidden: int | None = None
    dim: int = 128

    def __post_init__(self) -> None:
        width = self.encoder.embed_dim
        hidden = self.hidden or 8 * width
        self.projector = head(width, hidden, hidden, self.dim)
        self.predictor = head(self.dim, hidden, self.dim)
        self.encoder.patch_embed.requires_grad_(False)
        self.begin_averages()

    def loss(self, one: Tensor, two: Tensor) -> Tensor:
        """Symmetric InfoNCE of two views `B C H W`, against the keys of all processes.

        Keys come without gradient, so that gathering them is all that other processes need.

        Raises:
            ValueError: for a single image, which there is no other to tell from.
        """
        if len(one) * world_size() < 2:
            raise ValueError("contrastive learning needs two images or more, in training and validation")
        both = torch.cat([one, two])
        # No batch statistics in the encoder: both views pass it at once. The heads see one view at a time.
        queries = [self.predictor(self.projector(z)) for z in self.encoder(both).chunk(2)]
        with torch.no_grad():
            keys = [gathered(self.momentum_projector(z)) for z in self.momentum_encoder(both).chunk(2)]
        first = rank() * len(one)
        pairs = zip(queries, keys[::-1], strict=True)
        return sum(info_nce(query, key, self.temperature, first) for query, key in pairs)
