"""Gradient alignment of a hybrid's two losses, with respect to each block of the shared encoder."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nbhelpers.images import ImageSource
from nbhelpers.intervals import mean_interval, t_quantile
from nbhelpers.pretrain.hybrid import Hybrid
from nbhelpers.pretrain.recipes import Recipe
from nbhelpers.pretrain.schedule import generator
from nbhelpers.pretrain.trainer import Trainer

LOSSES = ("mim", "cl")  # the order of the axis S
# Far from the streams of training steps and of the validation loss, which lie below and around 2^31.
_STREAM = 3 * 2**30


def block_gradients(objective: Hybrid, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Both losses of a hybrid, and their gradients with respect to each block, without lambda.

    .. math:: g_{s \ell} = \nabla_{\theta_\ell} L_s

    The objective is left as it is, running statistics of batch norm included.

    Args:
        objective: the hybrid; its lambda must leave it both losses.
        views: what `objective.views` drew for one batch.

    Returns:
        The losses `S`, in the order of `LOSSES`, and the gradients `S L P`, P the parameters of a block.

    Raises:
        ValueError: if the objective has but one loss.
    """
    twin = copy.deepcopy(objective)
    losses = twin.terms(*views)
    if None in losses:
        raise ValueError(f"lambda = {objective.weight:g} leaves one loss, with nothing to compare it to")
    return torch.stack(losses).detach(), loss_gradients(losses, twin.encoder.blocks)


def loss_gradients(losses: Sequence[Tensor], blocks: Iterable[nn.Module]) -> Tensor:
    r"""Gradients `S L P` of scalar losses with respect to each of a model's L blocks, all of P parameters.

    For any two losses in a training loop of one's own; the graph is kept, so that `backward` can follow.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> y = layer(torch.ones(1, 1)).sum()
    >>> loss_gradients([y, -2 * y], [layer]).flatten().tolist()
    [1.0, -2.0]
    """
    parameters = [list(block.parameters()) for block in blocks]
    rows = []
    for loss in losses:
        flat = iter(torch.autograd.grad(loss, [p for block in parameters for p in block], retain_graph=True))
        rows.append(torch.stack([torch.cat([next(flat).flatten() for _ in block]) for block in parameters]))
    return torch.stack(rows)


def block_alignment(gradients: Tensor) -> pd.DataFrame:
    r"""How far two losses pull each block the same way, from their gradients on several batches.

    With :math:`g_k` and :math:`h_k` the gradients of the two losses on batch k:

    - `cosine`: mean of :math:`\cos(g_k, h_k)` over batches, both losses on the same images.
    - `conflict`: share of batches with :math:`\cos(g_k, h_k) < 0`.
    - `mim_cosine`, `cl_cosine`: mean of :math:`\cos(g_j, g_k)` over pairs of different batches, for one loss.
      Near 0, the gradient of a batch is mostly noise of that batch.
    - `direction`: cosine between the expected gradients, free of the noise that batches add,
      :math:`\sum_{j \ne k} g_j \cdot h_k / \sqrt{\sum_{j \ne k} g_j \cdot g_k \sum_{j \ne k} h_j \cdot h_k}`;
      NaN where a loss does not agree with itself at all. As an estimate it may leave -1..1.
    - `mim_norm`, `cl_norm`: mean length of a gradient.
    - `slope`: change of `cosine` from one block to the next, by least squares over blocks; its depth is NaN.

    Args:
        gradients: `K S L P`, a batch per row of the first axis; see `block_gradients`.

    Returns:
        Tidy frame `metric depth value low high batches`; cosines in -1..1; `low` and `high` bound the 95 %
        interval over batches (jackknife, t distribution).

    Raises:
        ValueError: for another shape, fewer than 3 batches, or gradients that are zero or not finite.

    Source: `cosine` and `conflict`, Jiang et al. 2023 (Layer Grafted Pre-training).

    Example: opposed in the first block, at right angles in the second.
        >>> mim = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> cl = torch.tensor([[-2.0, 0.0], [0.0, 1.0]])
        >>> frame = block_alignment(torch.stack([mim, cl]).expand(3, 2, 2, 2))
        >>> frame[frame["metric"] == "cosine"]["value"].tolist()
        [-1.0, 0.0]
        >>> frame[frame["metric"] == "conflict"]["value"].tolist()
        [1.0, 0.0]
    """
    if gradients.ndim != 4 or gradients.shape[1] != len(LOSSES) or len(gradients) < 3:
        wanted = f"gradients K S L P of at least 3 batches and {len(LOSSES)} losses"
        raise ValueError(f"block_alignment: expected {wanted}, got {tuple(gradients.shape)}")
    inner = torch.einsum("ksbp,jtbp->bsktj", *[gradients.double()] * 2)  # L S K S K
    lengths = torch.einsum("bsksk->bsk", inner)
    if not (lengths.isfinite().all() and lengths.gt(0).all()):
        raise ValueError("block_alignment: a gradient is zero or not finite")
    batches = len(gradients)
    masks = ~torch.eye(batches, dtype=torch.bool)
    jackknife = [_statistics(inner[:, :, others][..., others]) for others in masks]
    frames = []
    for metric, values in _statistics(inner).items():
        without = torch.stack([part[metric] for part in jackknife])
        half = t_quantile(batches) * ((batches - 1) * without.var(0, correction=0)).sqrt()
        depth = float("nan") if metric == "slope" else range(1, len(values) + 1)
        columns = {"value": values, "low": values - half, "high": values + half}
        columns = {name: column.numpy() for name, column in columns.items()}
        frames.append(pd.DataFrame({"metric": metric, "depth": depth, **columns, "batches": batches}))
    return pd.concat(frames, ignore_index=True)


def _statistics(inner: Tensor) -> dict[str, Tensor]:
    """What `block_alignment` reports, from inner products `L S K S K`: values `L`, of the slope `1`."""
    batches = inner.shape[2]
    lengths = torch.einsum("bsksk->bsk", inner).sqrt()
    cosines = inner / (lengths[:, :, :, None, None] * lengths[:, None, None])
    same = torch.einsum("bkk->bk", cosines[:, 0, :, 1])
    others = ~torch.eye(batches, dtype=torch.bool)

    def across(values: Tensor, one: int, two: int) -> Tensor:
        return values[:, one, :, two][:, others].mean(1)

    own = across(inner, 0, 0).clamp(min=0) * across(inner, 1, 1).clamp(min=0)
    depth = torch.arange(len(inner)).to(same) - (len(inner) - 1) / 2
    cosine = same.mean(1)
    return {
        "cosine": cosine,
        "conflict": (same < 0).double().mean(1),
        "mim_cosine": across(cosines, 0, 0),
        "cl_cosine": across(cosines, 1, 1),
        "direction": across(inner, 0, 1) / own.sqrt().where(own > 0, torch.nan),
        "mim_norm": lengths[:, 0].mean(1),
        "cl_norm": lengths[:, 1].mean(1),
        "slope": (depth * cosine).sum(0, keepdim=True) / depth.square().sum(),
    }


def gradient_alignment(
    recipe: Recipe, train: ImageSource, held_out: ImageSource, steps: Sequence[int], batches: int = 16
) -> pd.DataFrame:
    """Train a hybrid and measure, after some of its steps, whether its two losses agree.

    Both losses see the same images, each its own views of them as in training; images and views are the same
    every time, and none of them are trained on.

    Args:
        recipe: of a hybrid; its batch size is also that of the measurement.
        train: images to train on.
        held_out: images to measure on.
        steps: after how many steps to measure; 0 is the initialisation.
        batches: how many batches of `held_out` to measure on.

    Returns:
        The frames of `block_alignment`, with the columns `step` and `images` (how many were trained on) in
        front, and rows `mim_loss` and `cl_loss`, whose depth is NaN.

    Raises:
        ValueError: if there are too few images to measure on, or steps beyond the end of training.
    """
    if batches * recipe.batch_size > len(held_out) or not 0 <= min(steps) <= max(steps) <= recipe.steps:
        drawn = f"{batches} batches of {recipe.batch_size} from {len(held_out)} images"
        raise ValueError(f"not enough: {drawn}, after steps {min(steps)} to {max(steps)} of {recipe.steps}")
    frames = []
    with TemporaryDirectory() as folder:  # nothing is written there: the run is taken step by step
        # The stored table is to be the same from every machine, with units for bfloat16 or without.
        trainer = Trainer(recipe, train, held_out, Path(folder), precision=torch.float32)
        for step in tqdm(sorted(set(steps)), f"{recipe.objective}, gradients", unit="moment", disable=None):
            list(trainer.steps(until=step))
            measured = []
            for k, rows in enumerate(torch.arange(batches * recipe.batch_size).split(recipe.batch_size)):
                stream = generator(recipe.seed, _STREAM + k)
                views = trainer.objective.views(held_out.batch(rows), stream)
                measured.append(block_gradients(trainer.objective, views))
            losses, gradients = map(torch.stack, zip(*measured, strict=True))  # K S and K S L P
            means = dict(zip(("value", "low", "high"), mean_interval(losses), strict=True))
            names = [f"{name}_loss" for name in LOSSES]
            means = pd.DataFrame({"metric": names, "depth": float("nan"), **means, "batches": batches})
            frame = pd.concat([block_alignment(gradients), means], ignore_index=True)
            frame.insert(0, "step", step)
            frame.insert(1, "images", step * recipe.batch_size)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)
