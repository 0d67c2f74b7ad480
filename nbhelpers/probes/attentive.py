"""Attentive probing: a linear probe that may choose, by learned queries, which patch tokens to read."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbhelpers.images.source import ImageSource
from nbhelpers.models.encoder import Encoder
from nbhelpers.probes.layers import Labels, accuracies, accuracy, by_depth, checked

BATCH_SIZE = 256  # images of a training step


class AttentiveProbe(nn.Module):
    r"""Learned queries pool the patch tokens `B P D`; a linear layer reads what they pooled.

    $y = W\,[\sum_p a_{1p} x_p; \ldots; \sum_p a_{Qp} x_p] + b$ with
    $a_q = \mathrm{softmax}_p(u_q \cdot x_p / \sqrt{D})$, on tokens standardised by `mean` and `std` of the
    training tokens. Key and value projections would add nothing: with a single layer of queries they can be
    folded into $u_q$ and $W$. With equal weights it is linear probing of mean-pooled tokens.

    >>> probe = AttentiveProbe(width=2, classes=3, queries=1)
    >>> with torch.no_grad():
    ...     _ = probe.queries.copy_(torch.tensor([[2.0**0.5, 0.0]]))
    >>> tokens = torch.tensor([[[torch.tensor(3.0).log(), 0.0], [0.0, 1.0]]])
    >>> probe.attention(tokens)
    tensor([[[0.7500, 0.2500]]], grad_fn=...)
    """

    def __init__(self, width: int, classes: int, queries: int = 4) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.head = nn.Linear(queries * width, classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def attention(self, tokens: Tensor) -> Tensor:
        """Weights `B Q P` of standardised patch tokens `B P D`; each row sums to 1."""
        return torch.einsum("qd,bpd->bqp", self.queries, tokens).div(tokens.shape[-1] ** 0.5).softmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class logits `B C` of patch tokens `B P D`."""
        tokens = (tokens.float() - self.mean) / self.std
        return self.head(torch.einsum("bqp,bpd->bqd", self.attention(tokens), tokens).flatten(1))

    @torch.no_grad()
    def predict(self, tokens: Tensor) -> Tensor:
        """Most probable class `N` of patch tokens `N P D`; ValueError for tokens that are not finite."""
        parts = checked("test", tokens, "N P D").split(1024)
        return torch.cat([self(part).argmax(1) for part in parts])


def fit_attentive(
    train_tokens: Tensor,
    train_labels: Tensor,
    validation_tokens: Tensor,
    validation_labels: Tensor,
    queries: int = 4,
    epochs: int = 50,
    seed: int = 0,
) -> AttentiveProbe:
    """Attentive probe on frozen patch tokens `N P D`, from its best epoch on validation tokens `M P D`.

    AdamW with a cosine schedule; the same seed gives the same probe. Tokens may be in half precision; the
    probe runs where the training tokens are.

    Raises:
        ValueError: for shapes that do not fit, or tokens that are not finite.
    """
    checked("train", train_tokens, "N P D", train_labels)
    checked("validation", validation_tokens, "M P D", validation_labels)
    device = train_tokens.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(train_tokens.shape[-1], int(train_labels.max()) + 1, queries).to(device)
    flat = train_tokens.flatten(0, 1).float()
    probe.mean.copy_(flat.mean(0))
    probe.std.copy_(flat.std(0).clamp(min=1e-6))
    del flat  # as large as the tokens, and not needed for training
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-2, weight_decay=0.1)
    steps = epochs * -(-len(train_tokens) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    best, best_accuracy = copy.deepcopy(probe), -1.0
    for _ in range(epochs):
        for rows in torch.randperm(len(train_tokens), generator=generator).to(device).split(BATCH_SIZE):
            loss = F.cross_entropy(probe(train_tokens[rows]), train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        reached = accuracy(probe.predict(validation_tokens), validation_labels)["value"]
        if reached > best_accuracy:
            best, best_accuracy = copy.deepcopy(probe), reached
    return best


def attentive_by_depth(
    encoder: Encoder,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    label: Labels,
    depths: Sequence[int] | None = None,
    **training: Any,
) -> pd.DataFrame:
    """Accuracy of an attentive probe at every depth, for one label or several, with Wilson's 95 % interval.

    Patch tokens are kept in half precision, of one depth at a time; `training` is what `fit_attentive` takes,
    such as `queries`, `epochs` and `seed`.

    Columns: `study model objective seed metric depth label pool norm value low high images`; NaN at a depth
    whose tokens are not finite. Raises the errors of `features`, `fit_attentive` and `targets_of`.
    """
    images, fit = [train, validation, test], partial(fit_attentive, **training)
    return by_depth(encoder, images, label, fit, accuracies("attentive"), depths, "query")
