"""One trainer for every objective and device: one step, its log, its checkpoint and exact resumption.

The step (`Trainer.body`) never asks the device for a value, and all that changes from one step to the next
(`schedule`) is a tensor. On a GPU it is captured in one CUDA graph and replayed; elsewhere the same step runs
as it is.

Under torchrun every process takes its share of each batch, with views of its own; gradients are averaged,
nothing is captured, and rank 0 alone writes.
"""

import copy
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from tqdm import tqdm

from nbhelpers.files import atomic_path
from nbhelpers.images import ArraySource, ImageSource
from nbhelpers.images.source import Triple
from nbhelpers.models import Encoder, MismatchedWeights, without_decoder, wrap
from nbhelpers.models.identity import code_of
from nbhelpers.models.mini import mini_vit
from nbhelpers.models.weights import load_strictly
from nbhelpers.pretrain.distributed import average_gradients, mean_over_ranks, share
from nbhelpers.pretrain.objective import Objective
from nbhelpers.pretrain.optimizer import Optimizer
from nbhelpers.pretrain.recipes import Recipe, build
from nbhelpers.pretrain.schedule import VALIDATION_STREAM, epoch_order, generator, learning_rate, stream_seed
from nbhelpers.probes.layers import targets_of
from nbhelpers.ranks import rank, world_size

VALIDATION_IMAGES = 1024
_PROGRESS = ("step", "wall_time", "rows", "devices")  # attributes of the trainer in its checkpoint


def fast_precision(device: torch.device | str) -> torch.dtype:
    """The type that matrix products train in: bfloat16 where the device has units for it, else float32.

    Measured on one core with AVX-512 BF16, MoCo v3 and SimMIM train 1.7 times as fast in bfloat16. A CPU
    without such units emulates it, far slower than float32.

    >>> fast_precision("cuda")
    torch.bfloat16
    """
    native = torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def device_name(device: torch.device) -> str:
    """Name of the hardware for the manifest; of CPUs, the cores that may be used."""
    processes = world_size()
    if device.type != "cuda":
        cores = processes * torch.get_num_threads()
        return "one CPU core" if cores == 1 else f"{cores} CPU cores"
    name = torch.cuda.get_device_name(device)
    return name if processes == 1 else f"{processes} x {name}"


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM: the function given says whether one came. A second one acts at once."""
    received: list[int] = []
    with ExitStack() as previous:

        def note(number: int, _frame: object) -> None:
            received.append(number)
            previous.close()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous.callback(signal.signal, number, signal.signal(number, note))
        yield lambda: bool(received)


class Trainer:
    """Trains one recipe on one source of images, in a folder that holds its log and its checkpoint.

    Args:
        recipe: what to train and how.
        train: images to train on, square and of one size; all of them are held on the device, as uint8.
        val: images for the validation loss; whole batches of the first `VALIDATION_IMAGES`, always with the
            same views.
        folder: where `log.csv` and `checkpoint.pt` live; a run found there is resumed.
        device: a CPU trains with explicit attention, whose backward is faster there; a GPU with fused one.
        precision: bfloat16, by autocast, or float32; default `fast_precision` of the device.
        start: a trained encoder of the recipe's architecture to go on from, instead of random weights. From
            then on it gets images normalised by the mean and deviation of `train`, not by its own.
        captured: whether a GPU compiles the blocks and replays the step from a graph; other devices never do.

    Raises:
        MismatchedWeights: if `start` has another architecture.
        ValueError: if the folder holds a run of another recipe, precision or start, a colour channel is the
            same in all images, they lack the labels that the objective reads, patches do not cover them, or a
            batch cannot be shared out evenly among the processes.
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
        captured: bool = True,
    ) -> None:
        if min(train.std) <= 0:
            what = "a colour channel is the same everywhere: repeat another in its place"
            raise ValueError(f"{train.name}: {what}")
        self.recipe, self.train, self.device = recipe, train, torch.device(device)
        self.precision = precision or fast_precision(device)
        self.settings = asdict(recipe) | {"precision": str(self.precision).removeprefix("torch.")}
        # Generated images are known by their labels alone; what else they were made by is in the name.
        for which, images in {"training": train, "validation": val}.items():
            made = images.name.partition(", ")[2] if images.known_by_labels else ""
            self.settings[f"{which} images"] = images.identity + made
        self.settings["start"] = start and start.fingerprint
        self.folder, self._checkpoint = Path(folder), Path(folder) / "checkpoint.pt"
        self.captured = captured and self.device.type == "cuda" and world_size() == 1
        self.objective = self._objective(train, start).to(self.device)
        kinds = {type(part) for part in self.objective.modules() if isinstance(part, Objective)}
        self.code = sorted(map(code_of, kinds))
        ours, theirs = self._labels(train, val)
        everything = train.images if isinstance(train, ArraySource) else train.batch(range(len(train)))
        self.images = [part.to(self.device) for part in (everything, *ours)]  # and labels, if any are read
        self.val = self._validation_batches(val, theirs)
        self.optimizer = Optimizer(self.objective.parameters(), recipe.weight_decay, self.precision)
        self.generator = torch.Generator(self.device)
        self.count = torch.zeros((), dtype=torch.int64, device=self.device)  # of steps, for the step itself
        self.rate, self.loss = (torch.zeros((), device=self.device) for _ in range(2))
        self.order = self._order(0)
        self.step, self.wall_time, self.rows, self.devices = 0, 0.0, [], []
        self._epoch, self._graph = 0, None
        if self._checkpoint.exists():
            self._resume()

    def _objective(self, train: ImageSource, start: Encoder | None) -> Objective:
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            size = train[0].shape[-1]
            if size % recipe.patch_size:  # whose edge would not be seen
                raise ValueError(f"patches of {recipe.patch_size} pixels do not cover an image of {size}")
            encoder = mini_vit(**recipe.architecture, image_size=size)
            if start is not None:
                start = without_decoder(start)
                load_strictly(encoder, start.module.state_dict())
                # What no weight shows: the number of heads, and what is done to the images.
                sides = (start.heads, start.module), (recipe.heads, encoder)
                theirs, ours = (f"{n} heads behind a {type(of.patch_embed).__name__}" for n, of in sides)
                if theirs != ours:
                    raise MismatchedWeights(f"{start.name} has {theirs}, the recipe {ours}")
            objective = build(recipe, encoder, train.mean, train.std)
        for module in objective.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = self.device.type != "cpu"
            if self.captured and isinstance(module, Block):
                # Compile for each shape: by default the second shape is compiled for any size, far slower.
                torch._dynamo.config.automatic_dynamic_shapes = False
                torch._dynamo.config.cache_size_limit = 64
                module.compile()
        return objective.train()

    @property
    def std(self) -> Triple:
        """What the encoder's images are divided by, per channel: the deviations of those it is trained on.

        Equal where it standardises each image, which undoes a common scale, as in training.
        """
        return (max(self.train.std),) * 3 if self.recipe.standardised else self.train.std

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.recipe.steps

    def encoder(self) -> Encoder:
        """The encoder as it is now: a copy, to be measured."""
        who = {"name": self.folder.name, "objective": self.objective.group, "seed": self.recipe.seed}
        return wrap(copy.deepcopy(self.objective.encoder), mean=self.train.mean, std=self.std, **who)

    def _labels(self, train: ImageSource, val: ImageSource) -> list[list[Tensor]]:
        """The labels `N` that the objective reads, one or none, of each source, numbered as in the first."""
        if (label := self.objective.label) is None:
            return [[], []]
        labels, learnt = targets_of([train, val], label)[label], self.recipe.options["classes"]
        if (named := len(train.classes[label])) > learnt:
            way = f"give it options=recipe.options | {{'classes': {named}}}"
            raise ValueError(f"{train.name} has {named} classes of {label}, the recipe is of {learnt}: {way}")
        return [[each] for each in labels]

    def _validation_batches(self, val: ImageSource, labels: Sequence[Tensor]) -> list[list[Tensor]]:
        count = min(len(val), VALIDATION_IMAGES)
        size = min(self.recipe.batch_size, count - count % world_size())
        shares = [share(chunk) for chunk in torch.arange(count // size * size).split(size)]
        batches = [(val.batch(rows), *(each[rows] for each in labels)) for rows in shares]
        return [[part.to(self.device) for part in batch] for batch in batches]

    def _order(self, epoch: int) -> Tensor:
        """This process's part of `epoch_order`, on the device."""
        order = epoch_order(len(self.train), self.recipe.batch_size, epoch, self.recipe.seed)
        return share(order.T).T.contiguous().to(self.device)

    def _loss(self, batch: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Loss of images and labels, in the run's precision."""
        half = self.precision == torch.bfloat16
        # Without a cache of converted weights: a graph would keep those of the step in which it was captured.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            return self.objective(batch[0], generator, *batch[1:])

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss on the validation images: batch norm as in training, the same views and masks every time."""
        state = {name: b.clone() for name, b in self.objective.named_buffers()}
        seed, device = self.recipe.seed, self.device
        streams = [generator(seed, VALIDATION_STREAM - 1 - i, device, rank()) for i in range(len(self.val))]
        losses = [self._loss(batch, stream) for batch, stream in zip(self.val, streams, strict=True)]
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(state[name])  # running statistics must not see the validation images
        return float(mean_over_ranks(torch.stack(losses).mean()))

    def body(self) -> None:
        """One step in tensors alone: no host synchronisation, no Python number that differs between steps."""
        steps = self.recipe.steps
        self.rate.copy_(learning_rate(self.recipe, self.count.double() / steps))
        rows = self.order.index_select(0, (self.count % len(self.order)).view(1)).flatten()
        self.objective.zero_grad()
        loss = self._loss([values.index_select(0, rows) for values in self.images], self.generator)
        loss.backward()
        average_gradients(self.objective.parameters())
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip)
        self.optimizer.step(self.rate)
        self.count += 1
        self.objective.after_step(self.count.double() / steps)
        self.loss.copy_(mean_over_ranks(loss.detach()))

    @torch.no_grad()
    def _capture(self) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph; three steps warm up compilers and libraries and are then undone."""
        state = [*self.objective.state_dict().values(), *chain(*self.optimizer.state.values()), self.count]
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), torch.enable_grad():
            for _ in range(3):
                self.body()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch._foreach_copy_(state, before)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph), torch.enable_grad():
            self.body()
        return graph

    def steps(self, until: float = math.inf) -> Iterator[Tensor]:
        """Take steps up to number `until` (default: all), giving each step's loss."""
        while self.step < min(until, self.recipe.steps):
            epoch = self.step // len(self.order)
            if epoch != self._epoch:
                self.order.copy_(self._order(epoch))
                self._epoch = epoch
            if self.captured and self._graph is None:
                self._graph = self._capture()
            self.generator.manual_seed(stream_seed(self.recipe.seed, self.step, rank()))
            take = self._graph.replay if self.captured else self.body
            take()
            self.step += 1
            yield self.loss.clone()

    def run(
        self,
        stop_after: float | None = None,
        save_every: float = 180.0,
        log_every: int = 100,
        until: float = math.inf,
    ) -> bool:
        """Train to the end, for `stop_after` seconds, or until a signal; the state is saved. True at the end.

        Args:
            stop_after: in seconds.
            save_every: seconds from one checkpoint to the next.
            log_every: steps from one row of the log to the next.
            until: step to stop at, as for a look at `encoder`; by default the last one of the recipe.

        Raises:
            FloatingPointError: if the loss is not finite; the last good checkpoint stays.
        """
        if self.devices[-1:] != [device_name(self.device)]:
            self.devices.append(device_name(self.device))
        last = min(until, self.recipe.steps)
        shown = {"desc": self.folder.name, "unit": "step", "mininterval": 5, "disable": rank() > 0}
        bar = tqdm(total=last, initial=self.step, **shown)
        with stop_signals() as signalled, bar:
            begun, before, logged, saved, losses = time.monotonic(), self.wall_time, 0.0, 0.0, []

            def clock() -> float:
                """Seconds of training in this call."""
                return time.monotonic() - begun

            for loss in self.steps(until):
                losses.append(loss)
                bar.update()
                stopping = self._any(signalled() or (stop_after is not None and clock() >= stop_after))
                logging = self.step % log_every == 0 or self.done
                saving = stopping or self.step == last or clock() - saved >= save_every
                if (logging or saving) and not torch.stack(losses).isfinite().all():  # waits for the device
                    raise FloatingPointError(f"no finite loss at step {self.step}: lower the learning rate")
                self.wall_time = before + clock()
                if logging:
                    self._log(torch.stack(losses), clock() - logged)
                    bar.set_postfix(loss=self.rows[-1]["loss"], val=self.rows[-1]["val_loss"])
                    losses, logged = [], clock()
                if saving:
                    self.save()
                    saved = clock()
                if stopping:
                    break
        return self.step >= last

    def _any(self, value: bool) -> bool:
        """Whether it holds in any process, since all must stop at one step."""
        if world_size() == 1:
            return value
        return bool(mean_over_ranks(torch.tensor(float(value), device=self.device)) > 0)

    def _log(self, losses: Tensor, seconds: float) -> None:
        row = {
            "step": self.step,
            "images": self.step * self.recipe.batch_size,
            "loss": float(losses.mean()),
            "val_loss": self.validation_loss(),
            "learning_rate": float(self.rate),
            "images_per_second": len(losses) * self.recipe.batch_size / seconds,
            "wall_time_s": self.wall_time,
        }
        self.rows.append(row)
        if rank() == 0:
            with atomic_path(self.folder / "log.csv") as temporary:
                pd.DataFrame(self.rows).to_csv(temporary, index=False)

    def save(self) -> None:
        """Write the whole state to the folder, atomically; rank 0 alone does."""
        if rank() > 0:
            return
        state = {name: getattr(self, name) for name in ("settings", "code", *_PROGRESS)}
        state |= {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state}
        # Given a path, torch says of a full disk no more than "unexpected pos".
        with atomic_path(self._checkpoint) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def _resume(self) -> None:
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        ours, theirs = self.settings, state.get("settings", {})
        if differ := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            ways = "ask for the same, train in another (cache) folder, or delete it to start again"
            raise ValueError(f"{self._checkpoint} is of a run that differs in {', '.join(differ)}: {ways}")
        if state.get("code", self.code) != self.code:
            what = f"was trained by other code of {type(self.objective).__name__} than this"
            warnings.warn(f"{self._checkpoint} {what}; delete it to start again", stacklevel=3)
        for name in _PROGRESS:
            setattr(self, name, state[name])
        self.count.fill_(self.step)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load(state["optimizer"])
