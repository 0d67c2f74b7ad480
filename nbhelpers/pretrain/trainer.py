"""One trainer for every objective: schedule, validation, log, checkpoint and exact resumption.

The randomness of step t is a function of (seed, t) alone - which images, which views, which mask - so that a
checkpoint needs no generator states and a resumed run repeats the uninterrupted one bit for bit (on a CPU).

Under torchrun every process takes its share of each batch, with views of its own; gradients are averaged by
PyTorch's DistributedDataParallel, and rank 0 alone writes.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from timm.optim import Muon, muon
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nbhelpers.files import atomic_path
from nbhelpers.images import ImageSource
from nbhelpers.models import Encoder, without_decoder
from nbhelpers.models.mini import mini_vit
from nbhelpers.models.weights import load_strictly
from nbhelpers.pretrain.distributed import mean_over_ranks, share
from nbhelpers.pretrain.objective import Objective
from nbhelpers.pretrain.recipes import Recipe, build
from nbhelpers.ranks import rank, world_size

COLUMNS = ("step", "images", "loss", "val_loss", "learning_rate", "images_per_second", "wall_time_s")
VALIDATION_IMAGES = 1024
# Far from every training step's number, so that validation never shares a random stream with a step.
_VALIDATION_STREAM = 2**31


# A CPU generator reads 32 bits of its seed. Multiples of this number (2^32 over the golden ratio) lie as far
# from each other on that circle as can be, so the streams of runs and processes do not overlap.
_STRIDE = 2_654_435_769
_MAX_SEED = 1000


def generator(
    seed: int, stream: int, device: torch.device | str = "cpu", process: int = 0
) -> torch.Generator:
    """The random stream number `stream` of a run, one for each process.

    >>> float(torch.rand(1, generator=generator(0, 5))) == float(torch.rand(1, generator=generator(1, 5)))
    False
    """
    return torch.Generator(device).manual_seed((stream + _STRIDE * (seed + _MAX_SEED * process)) % 2**32)


def batch_indices(images: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which images step number `step` trains on: every epoch is a fresh permutation of whole batches.

    >>> seen = torch.cat([batch_indices(6, 3, step, seed=0) for step in (0, 1)])
    >>> seen.sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    per_epoch = images // batch_size
    if not per_epoch:
        raise ValueError(f"a batch of {batch_size} needs at least as many images; there are {images}")
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(images, generator=generator(seed, _VALIDATION_STREAM + 1 + epoch))
    return order[position * batch_size : (position + 1) * batch_size]


def fast_precision(device: torch.device | str) -> torch.dtype:
    """The type that matrix products train in: bfloat16 where the device has units for it, else float32.

    Measured on one core with AVX-512 BF16, MoCo v3 and SimMIM train 1.7 times as fast in bfloat16. A CPU
    without such units emulates it, far slower than float32.

    >>> fast_precision("cuda")
    torch.bfloat16
    """
    native = torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def in_words(device: torch.device) -> str:
    """What trains; on a CPU every process has a core.

    >>> in_words(torch.device("cpu"))
    'one CPU core'
    """
    processes = world_size()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return name if processes == 1 else f"{processes} x {name}"
    return "one CPU core" if processes == 1 else f"{processes} CPU cores"


class SinglePrecisionMuon(Muon):
    """timm's Muon with its Newton-Schulz iteration in float32.

    timm iterates in bfloat16, which a CPU without bfloat16 units emulates: measured on AVX2, a 512 x 512
    matrix takes 2.4 s instead of 0.05 s. Its step has no argument for the type, so the function's default is
    replaced for the duration of the step.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One optimiser step; returns what `closure` returns."""
        original = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = partial(original, dtype=torch.float32)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = original


def optimizer(objective: nn.Module, recipe: Recipe, precision: torch.dtype) -> Muon:
    """Muon on matrices; its AdamW on biases, norms and tokens, which are not decayed."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim in (2, 4)]
    others = [p for p in trained if p.ndim not in (2, 4)]
    groups = [{"params": matrices}, {"params": others, "use_fallback": True, "weight_decay": 0.0}]
    kind = SinglePrecisionMuon if precision == torch.float32 else Muon
    return kind(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


class Trainer:
    """Trains one recipe on one source of images, in a folder that holds its log and its checkpoint.

    Args:
        recipe: what to train and how.
        train: images to train on.
        val: images for the validation loss; the first `VALIDATION_IMAGES`, always with the same views.
        folder: where `log.csv` and `checkpoint.pt` live; a run found there is resumed.
        device: a CPU trains with explicit attention, whose backward is faster there; a GPU with fused one.
        precision: bfloat16, by autocast, or float32; default `fast_precision` of the device.
        start: a trained encoder of the recipe's architecture to go on from, instead of random weights.

    Raises:
        MismatchedWeights: if `start` has another architecture.
        ValueError: if the folder holds a run of another recipe or precision, the images lack the labels that
            the objective reads, or a batch cannot be shared out evenly among the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: ImageSource,
        val: ImageSource,
        folder: Path,
        device: torch.device | str = "cpu",
        precision: torch.dtype | None = None,
        start: Encoder | None = None,
    ) -> None:
        self.recipe, self.train, self.device = recipe, train, torch.device(device)
        self.precision = precision or fast_precision(device)
        self.folder = Path(folder)
        self.objective = self._objective(train, start).to(self.device)
        self.parallel = DistributedDataParallel(self.objective) if world_size() > 1 else self.objective
        self.val = self._validation_batches(val)
        self.optimizer = optimizer(self.objective, recipe, self.precision)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=1,
            warmup_epochs=recipe.warmup,
            warmup_lr=0.0,
            warmup_prefix=False,
            step_on_epochs=False,
            updates_per_epoch=recipe.steps,
        )
        self.step, self.wall_time, self.rows, self.devices = 0, 0.0, [], []
        if self._checkpoint.exists():
            self._resume()

    def _objective(self, train: ImageSource, start: Encoder | None) -> Objective:
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            size = train[0].shape[-1]
            encoder = mini_vit(**recipe.architecture, image_size=size)
            if start is not None:
                load_strictly(encoder, without_decoder(start).module.state_dict())
            objective = build(recipe, encoder, train.mean, train.std)
        for module in objective.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = self.device.type != "cpu"
        return objective.train()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.recipe.steps

    def _autocast(self) -> torch.autocast:
        half = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half)

    def _batch(self, source: ImageSource, indices: Tensor) -> tuple[Tensor, ...]:
        """This process's share of a batch: images `B C H W`, and labels `B` if the objective reads some."""
        indices, label = share(indices), self.objective.label
        parts = [source.batch(indices)]
        if label is not None:
            if label not in source.labels:
                known = ", ".join(source.labels) or "none"
                raise ValueError(f"{source.name} has no labels {label!r} to learn from; it has {known}")
            parts.append(source.labels[label][indices])
        return tuple(part.to(self.device, non_blocking=True) for part in parts)

    def _validation_batches(self, val: ImageSource) -> list[tuple[Tensor, ...]]:
        count = min(len(val), VALIDATION_IMAGES)
        size = min(self.recipe.batch_size, count - count % world_size())
        return [self._batch(val, chunk) for chunk in torch.arange(count // size * size).split(size)]

    def _loss(self, model: nn.Module, batch: tuple[Tensor, ...], stream: int) -> Tensor:
        images, *labels = batch
        with self._autocast():
            return model(images, generator(self.recipe.seed, stream, self.device, rank()), *labels)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss on the validation images: batch norm as in training, the same views and masks every time."""
        state = {name: b.clone() for name, b in self.objective.named_buffers()}
        losses = [
            self._loss(self.objective, batch, _VALIDATION_STREAM - 1 - i) for i, batch in enumerate(self.val)
        ]
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(state[name])  # running statistics must not see the validation images
        return float(mean_over_ranks(torch.stack(losses).mean()))

    def _take_step(self) -> Tensor:
        indices = batch_indices(len(self.train), self.recipe.batch_size, self.step, self.recipe.seed)
        batch = self._batch(self.train, indices)
        self.scheduler.step_update(self.step)
        loss = self._loss(self.parallel, batch, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        self.objective.after_step(self.step / self.recipe.steps)
        return mean_over_ranks(loss.detach())

    def steps(self, until: int | None = None) -> Iterator[Tensor]:
        """Take steps up to number `until` (default: all), giving each step's loss."""
        last = self.recipe.steps if until is None else min(until, self.recipe.steps)
        while self.step < last:
            yield self._take_step()

    def run(self, stop_after: float | None = None, save_every: float = 180.0, log_every: int = 100) -> bool:
        """Train to the end, or for `stop_after` seconds; either way the state is saved. True when done.

        Raises:
            FloatingPointError: if the loss is not finite; the last good checkpoint stays.
        """
        if self.devices[-1:] != [in_words(self.device)]:
            self.devices.append(in_words(self.device))
        start = last_save = last_log = time.monotonic()
        before, losses = self.wall_time, []
        bar = tqdm(
            total=self.recipe.steps,
            initial=self.step,
            desc=self.folder.name,
            mininterval=5,
            unit="step",
            disable=rank() > 0,
        )
        for loss in self.steps():
            losses.append(loss)
            bar.update()
            now = time.monotonic()
            self.wall_time = before + now - start
            stopping = stop_after is not None and self._first_says(now - start >= stop_after)
            logging = self.step % log_every == 0 or self.done
            saving = stopping or self.done or now - last_save >= save_every
            if (logging or saving) and not torch.stack(losses).isfinite().all():
                raise FloatingPointError(
                    f"the loss is not finite at step {self.step}: lower the learning rate"
                )
            if logging:
                self._log(torch.stack(losses), now - last_log)
                bar.set_postfix(loss=f"{self.rows[-1]['loss']:.4f}", val=f"{self.rows[-1]['val_loss']:.4f}")
                losses, last_log = [], time.monotonic()
            if saving:
                self.save()
                last_save = time.monotonic()
            if stopping:
                break
        bar.close()
        return self.done

    def _first_says(self, value: bool) -> bool:
        """What rank 0 says, since clocks differ and all processes must stop at one step."""
        if world_size() == 1:
            return value
        answer = torch.tensor(float(value and rank() == 0), device=self.device)
        return bool(mean_over_ranks(answer) > 0)

    def _log(self, losses: Tensor, seconds: float) -> None:
        row = {
            "step": self.step,
            "images": self.step * self.recipe.batch_size,
            "loss": float(losses.mean()),
            "val_loss": self.validation_loss(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": len(losses) * self.recipe.batch_size / seconds,
            "wall_time_s": self.wall_time,
        }
        self.rows.append(row)
        if rank() > 0:
            return
        with atomic_path(self.folder / "log.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def save(self) -> None:
        """Write the whole state to the folder, atomically; rank 0 alone does."""
        if rank() > 0:
            return
        state = {
            "recipe": self.recipe.as_dict(),
            "precision": self.precision,
            "devices": self.devices,
            "step": self.step,
            "wall_time": self.wall_time,
            "rows": self.rows,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(self._checkpoint) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        # By way of the CPU: the optimiser reads its step counts there, and moves all else to the device.
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        if state["recipe"] != self.recipe.as_dict():
            ours = self.recipe.as_dict()
            differ = sorted(
                k for k in ours.keys() | state["recipe"].keys() if ours.get(k) != state["recipe"].get(k)
            )
            raise ValueError(
                f"{self._checkpoint} holds a run whose recipe differs in {', '.join(differ)}: "
                "train in another folder, or delete this one to start again"
            )
        if state["precision"] != self.precision:
            ours, theirs = (str(p).removeprefix("torch.") for p in (self.precision, state["precision"]))
            raise ValueError(
                f"{self._checkpoint} holds a run in {theirs}, which would go on in {ours}: ask for {theirs} "
                "(--precision), or delete it to start again"
            )
        for name in ("step", "wall_time", "rows", "devices"):
            setattr(self, name, state[name])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
