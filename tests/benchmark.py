"""Benchmarks that print ratios to a reference measured in the same run: analysis and training.

`make benchmark WHAT=analysis` sets time and peak memory of the one-pass analysis beside the bare
forward of the same model; `WHAT=training` sets training steps beside the measured matrix product and the
eager step, and `WHAT="training --until-knn 0.5"` also trains until that k-NN accuracy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from timm.layers import set_fused_attn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nbhelpers.images import ArraySource, cifar10, shapes
from nbhelpers.measure import feed
from nbhelpers.metrics import METRICS, attention_distance, attention_entropy, nmi
from nbhelpers.models import Encoder, load
from nbhelpers.pretrain import Trainer, recipe
from nbhelpers.pretrain.recipes import BATCH_SIZES
from nbhelpers.pretrain.trainer import device_name, fast_precision
from nbhelpers.probes.linear import knn_by_depth

ATTENTION = ("attention_distance", "nmi", "attention_entropy")


def _analysed(names: Iterable[str], encoder: Encoder, images: Tensor) -> None:
    metrics = [METRICS[name].of(encoder).to(encoder.device) for name in names]
    feed(encoder, ArraySource("benchmark", images, {}, {}), metrics, len(images))


def _stored(encoder: Encoder, images: Tensor) -> None:
    """The usual way: unfused attention, every map kept, metrics afterwards."""
    maps: list[Tensor] = []
    unfused = [m for m in encoder.module.modules() if getattr(m, "fused_attn", False)]
    for module in unfused:
        module.fused_attn = False
        module.attn_drop.register_forward_hook(lambda _m, _i, output: maps.append(output))
    encoder.forward(images)
    for module in unfused:
        module.fused_attn = True
        module.attn_drop._forward_hooks.clear()
    for attention in maps:
        patches = attention[:, :, encoder.prefix :, encoder.prefix :]
        patches = patches / patches.sum(-1, keepdim=True)
        attention_distance(patches, encoder.grid, encoder.patch_size)
        nmi(patches)
        attention_entropy(patches)


WAYS: dict[str, Callable[[Encoder, Tensor], object]] = {
    "bare forward": lambda encoder, images: encoder.forward(images),
    "attention metrics": partial(_analysed, ATTENTION),
    "all metrics": partial(_analysed, tuple(METRICS)),
    "unfused, maps stored": _stored,
}


def _prepared(name: str, batch: int) -> tuple[Encoder, Tensor]:
    set_fused_attn(True)
    encoder = load(name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, *encoder.image_size), generator=generator)
    return encoder, images.to(torch.uint8)


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    """How long something takes, the device's part included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _resident_peak(encoder: Encoder) -> float:
    """MiB of this process's peak of memory, on the device of the encoder."""
    if encoder.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def _peak_memory(way: str, name: str, batch: int) -> float:
    """MiB that a way needs on top of the loaded model, for a process that has done nothing else."""
    encoder, images = _prepared(name, batch)
    if encoder.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again at what is resident now
    before = _resident_peak(encoder)
    WAYS[way](encoder, images)
    return _resident_peak(encoder) - before


def _peak(way: str, name: str, batch: int) -> float:
    """The same, measured in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_memory, way, name, batch).result()


def analysis(name: str, batch: int, rounds: int) -> None:
    """Print time and memory of each way to look at a model, as ratios to its bare forward.

    The ways take turns, and the best of all rounds counts, so that other load on the machine hits them alike.
    """
    encoder, images = _prepared(name, batch)
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for way, run in WAYS.items():
            best[way] = min(best[way], _seconds(encoder.device, partial(run, encoder, images)))
    print(f"{name}, batch {batch}, {encoder.tokens} tokens, {encoder.device}; MiB for a batch, for one image")
    for way, seconds in best.items():
        ratio, each = seconds / best["bare forward"], 1000 * seconds / batch
        peaks = " ".join(f"{_peak(way, name, size):7.0f}" for size in (batch, 1))
        print(f"  {way:22s} {ratio:5.2f} x {each:8.1f} ms/image {peaks} MiB at the peak")


def _matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best of ten products of square matrices, in FLOP/s."""
    size = 8192 if device.type == "cuda" else 2048
    one = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(_seconds(device, lambda: one @ one) for _ in range(10))


def _steps_per_second(trainer: Trainer, rounds: int, steps: int) -> float:
    """Best of some rounds of training steps, after one that is not timed."""
    advance = lambda: list(trainer.steps(trainer.step + steps))  # noqa: E731
    advance()
    return steps / min(_seconds(trainer.device, advance) for _ in range(rounds))


def training(device: torch.device, batch: int, rounds: int) -> None:
    """Print speed and share of the matrix-product peak of each objective's step, beside the eager step."""
    dtype = fast_precision(device)
    peak = _matmul_peak(device, dtype)
    print(f"{device_name(device)}: matrix product {peak / 1e12:.2f} TFLOP/s in {dtype}")
    images, steps = shapes("val"), 20 if device.type == "cuda" else 1
    for objective in ("cl", "mim", "hybrid-0.2", "mae", "supervised", "dino"):
        chosen = replace(recipe("shapes", objective), images=(rounds + 2) * steps * batch, batch_size=batch)
        with tempfile.TemporaryDirectory() as folder:
            eager = Trainer(chosen, images, images, Path(folder), device, captured=False)
            with FlopCounterMode(display=False) as counter:
                next(eager.steps())
            work, speed = counter.get_total_flops(), _steps_per_second(eager, rounds, steps)
            line = f"eager {speed * batch:8.0f} images/s"
            if device.type == "cuda":
                speed = _steps_per_second(
                    Trainer(chosen, images, images, Path(folder), device), rounds, steps
                )
                line = f"captured {speed * batch:8.0f} images/s, {line}"
        share = 100 * speed * work / peak
        print(f"  {objective:12s} {speed * work / 1e12:7.3f} TFLOP/s {share:4.0f} % of the peak   {line}")


def until_knn(accuracy: float, device: torch.device, batch: int) -> None:
    """Print the seconds of training until contrastive learning on CIFAR-10 reaches a k-NN accuracy."""
    train, val = cifar10("train"), cifar10("val")
    chosen = replace(recipe("cifar10", "cl"), batch_size=batch)
    neighbours, asked = train.subset(10_000), val.subset(2_000)
    with tempfile.TemporaryDirectory() as folder:
        trainer, seconds = Trainer(chosen, train, val, Path(folder), device), 0.0
        for step in range(chosen.steps // 50, chosen.steps + 1, chosen.steps // 50):
            seconds += _seconds(device, lambda step=step: list(trainer.steps(step)))
            encoder = trainer.encoder()
            frame = knn_by_depth(encoder, neighbours, asked, "class", depths=[encoder.depth])
            reached = frame["value"].item()
            print(
                f"  {step * chosen.batch_size:9d} pairs {seconds:7.1f} s   k-NN {100 * reached:.1f} %",
                flush=True,
            )
            if reached >= accuracy:
                break


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python tests/benchmark.py", description=__doc__)
    parser.add_argument("what", choices=("analysis", "training"))
    parser.add_argument("--model", default="random:vit_base_patch16_224", help="of the analysis (ViT-B/16)")
    parser.add_argument("--batch-size", type=int, help="default: 4, or the trainer's on this device")
    parser.add_argument("--rounds", type=int, default=3, help="to take the best of (default: 3)")
    parser.add_argument(
        "--until-knn", type=float, metavar="SHARE", help="also train until CL reaches it: 0.5"
    )
    options = parser.parse_args(arguments)
    if options.what == "analysis":
        analysis(options.model, options.batch_size or 4, options.rounds)
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = options.batch_size or BATCH_SIZES[device.type]
    training(device, batch, options.rounds)
    if options.until_knn:
        until_knn(options.until_knn, device, batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
