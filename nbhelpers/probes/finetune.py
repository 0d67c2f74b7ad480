"""Fine-tuning all weights on few or many labels, whole or with some blocks made new."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from timm.models import named_apply
from timm.models.vision_transformer import init_weights_vit_timm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from nbhelpers.capture import full_precision
from nbhelpers.images.source import ImageSource, labels_of
from nbhelpers.measure import identified
from nbhelpers.models import Encoder, without_decoder
from nbhelpers.probes.layers import accuracy, targets_of


@dataclass(frozen=True)
class FineTuning:
    """The recipe; `steps` are the same whatever the number of labels, so that few labels do not undertrain.

    `layer_decay` multiplies the learning rate from each layer to the one below it; `warmup` is a share of
    the steps. `half` has matrix products in bfloat16, by autocast, which suits long runs.
    """

    steps: int = 500
    batch_size: int = 128
    learning_rate: float = 5e-3
    layer_decay: float = 0.9
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    clip: float = 5.0
    half: bool = False


def shift_and_flip(images: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Shift each image `B C H W` by up to `largest` px, repeating its edge, and mirror half of them.

    >>> image = torch.tensor([[[[1, 2, 3]]]])
    >>> mirrored_or_not = shift_and_flip(image, 0, torch.Generator()).flatten().tolist()
    >>> mirrored_or_not in ([1, 2, 3], [3, 2, 1])
    True
    """
    batch, _, height, width = images.shape
    shift = torch.randint(-largest, largest + 1, (2, batch, 1), generator=generator)
    mirror = torch.rand(batch, 1, generator=generator) < 0.5
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    columns = torch.where(mirror, width - 1 - columns, columns)
    which = torch.arange(batch)[:, None, None]
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def reinitialise(encoder: Encoder, first: int = 0, last: int = 0, seed: int = 0) -> None:
    """Give the first and last so many blocks of the encoder new weights, as timm initialises ViT blocks.

    Raises:
        ValueError: for more blocks than there are, or weights that no layer's initialisation reaches.
    """
    if min(first, last) < 0 or first + last > encoder.depth:
        raise ValueError(f"cannot re-initialise first={first} and last={last} of {encoder.depth} blocks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in [*encoder.blocks[:first], *encoder.blocks[encoder.depth - last :]]:
            owners = [part for part in block.modules() if list(part.parameters(recurse=False))]
            if bare := {type(part).__name__ for part in owners if not hasattr(part, "reset_parameters")}:
                raise ValueError(f"{encoder.name}: no known initialisation for {', '.join(sorted(bare))}")
            named_apply(init_weights_vit_timm, block, include_root=True)  # it may have weights itself


def fine_tune(
    encoder: Encoder,
    images: ImageSource,
    label: str,
    recipe: FineTuning = FineTuning(),
    first: int = 0,
    last: int = 0,
    seed: int = 0,
) -> Encoder:
    """A fine-tuned copy of the encoder: linear head on mean-pooled patch tokens, every weight trained.

    The head reads features standardised by a batch norm without weights (as MAE's linear probe does).
    A decoder is left out. AdamW with layer-wise learning-rate decay, linear warm-up and cosine decay, label
    smoothing, images shifted and mirrored; fixed positions are trained too. So many `first` and `last`
    blocks are made new before. The copy's `module(x)` gives logits `B C`; `classify` uses it. The same seed
    gives the same weights on the same CPU.

    Raises:
        ValueError: for a module that is not a timm ViT, an unknown label, one class, or as `reinitialise`.
        FloatingPointError: where the loss is not finite.
    """
    labels = labels_of(images, label)
    if len(labels.unique()) < 2:  # any guess would be right
        raise ValueError(f"{images.name}: fine-tuning needs at least two classes of {label}")
    encoder = without_decoder(encoder)
    needed, kind = ("reset_classifier", "fc_norm", "group_matcher"), type(encoder.module).__name__
    if not all(hasattr(encoder.module, name) for name in needed) or hasattr(encoder.module, "head_dist"):
        raise ValueError(f"{encoder.name}: only timm ViTs with one head can be fine-tuned, not {kind}")
    tuned = replace(encoder, module=copy.deepcopy(encoder.module), name=f"{encoder.name}+{label}")
    reinitialise(tuned, first, last, seed)
    module, device = tuned.module, tuned.device
    module.reset_classifier(len(images.classes[label]), global_pool="avg")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nn.init.trunc_normal_(module.head.weight, std=2e-5)
    nn.init.zeros_(module.head.bias)
    # The mean feature can be far larger than the differences between images; the head would then not learn.
    module.fc_norm = nn.Sequential(module.fc_norm, nn.BatchNorm1d(tuned.width, affine=False, eps=1e-6))
    module.to(device).requires_grad_(True).train()
    written_out = recipe.half and device.type == "cpu"  # where torch's fused attention is slow in bfloat16
    fused = [part for part in module.modules() if written_out and getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False
    rates = {"lr": recipe.learning_rate, "layer_decay": recipe.layer_decay}
    optimizer = create_optimizer_v2(module, opt="adamw", weight_decay=recipe.weight_decay, **rates)
    steps = {"num_epochs": 1, "updates_per_epoch": recipe.steps, "step_on_epochs": False}
    warmup = {"warmup_epochs": recipe.warmup, "warmup_lr": 0.0}
    schedule, _ = create_scheduler_v2(optimizer, **steps, **warmup)
    generator = torch.Generator().manual_seed(seed)
    drawn = recipe.steps * recipe.batch_size
    epochs = [torch.randperm(len(images), generator=generator) for _ in range(-(-drawn // len(images)))]
    order = torch.cat(epochs)[:drawn].view(recipe.steps, recipe.batch_size)

    def views(rows: Tensor) -> Tensor:
        x = tuned.batch(images, rows)
        return tuned.preprocess(shift_and_flip(x, x.shape[-1] // 8, generator))

    for step, rows in enumerate(tqdm(order, desc=f"fine-tuning {encoder.name}", leave=False)):
        schedule.step_update(step)
        y = labels[rows].to(device)
        half = torch.autocast(device.type, torch.bfloat16, enabled=recipe.half)
        with torch.random.fork_rng(), half:  # drop path draws from the global generator
            torch.manual_seed(seed * recipe.steps + step)
            logits = module(views(rows))
        loss = F.cross_entropy(full_precision(logits), y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()
        if not loss.isfinite():
            raise FloatingPointError(f"{encoder.name}: loss not finite at step {step}; lower learning_rate")
    module.requires_grad_(False)
    for part in fused:
        part.fused_attn = True
    # The running statistics lag behind the weights: take those of the final weights, over ten batches.
    update_bn(map(views, order[:10]), module)
    module.eval()
    return tuned


@torch.no_grad()
def classify(tuned: Encoder, images: ImageSource) -> Tensor:
    """Most probable class `N` of images `N C H W` for an encoder that `fine_tune` returned."""
    batches = (tuned.batch(images, rows) for rows in torch.arange(len(images)).split(256))
    return torch.cat([tuned.module(tuned.preprocess(x)).argmax(1).cpu() for x in batches])


def fine_tuning_by_share(
    encoder: Encoder,
    train: ImageSource,
    test: ImageSource,
    label: str,
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    recipe: FineTuning = FineTuning(),
    first: int = 0,
    last: int = 0,
) -> pd.DataFrame:
    """Test accuracy after fine-tuning on a share of the labels, with Wilson's 95 % interval over test images.

    A share below 1 draws equally many images of every class, the same for every encoder.

    Columns: `study model objective seed metric label share first last value low high images`; metric is
    "fine_tuning".
    Raises the errors of `fine_tune`, and ValueError for a share with no image, or too many, of a class.
    """
    labels = targets_of([train, test], label)[label][1]
    rows = []
    for share in shares:
        per_class = round(share * len(train) / len(train.classes[label]))
        part = train if share == 1 else train.balanced(per_class, label)
        predicted = classify(fine_tune(encoder, part, label, recipe, first, last), test)
        row = {"metric": "fine_tuning", "label": label, "share": share, "first": first, "last": last}
        rows.append(row | accuracy(predicted, labels))
    return identified(pd.DataFrame(rows), encoder, test)
