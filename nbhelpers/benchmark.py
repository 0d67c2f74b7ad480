"""Benchmarks that print ratios to a reference measured in the same run: analysis, memory and training.

`python -m nbhelpers.benchmark analysis` sets the one-pass analysis beside the bare forward of the same model;
`python -m nbhelpers.benchmark memory` does so for peak memory, of a large input, for one image and for more;
`python -m nbhelpers.benchmark training` sets training steps beside the measured matrix product and the eager
step; with `--until-knn 0.5` it also trains until that k-NN accuracy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
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
from nbhelpers.metrics import METRICS, attention_distance, attention_entropy
from nbhelpers.metrics import normalized_mutual_information as nmi
from nbhelpers.models import Encoder, load
from nbhelpers.pretrain import Trainer, recipe
from nbhelpers.pretrain.recipes import BATCH_SIZES
from nbhelpers.pretrain.trainer import device_name, fast_precision
from nbhelpers.probes.knn import knn_by_depth

ATTENTION = ("attention_distance", "nmi", "attention_entropy")


def _bare(encoder: Encoder, images: Tensor) -> None:
    encoder.forward(images)


def _analysed(names: tuple[str, ...]) -> Callable[[Encoder, Tensor], None]:
    def run(encoder: Encoder, images: Tensor) -> None:
        source = ArraySource("benchmark", images, {}, {})
        feed(encoder, source, [METRICS[name].of(encoder).to(encoder.device) for name in names], len(images))

    return run


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


WAYS: dict[str, Callable[[Encoder, Tensor], None]] = {
    "bare forward": _bare,
    "attention metrics": _analysed(ATTENTION),
    "all metrics": _analysed(tuple(METRICS)),
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


def _peak_memory(way: str, name: str, batch: int) -> float:
    """MiB that a way needs on top of the loaded model, for a process that has done nothing else."""
    encoder, images = _prepared(name, batch)
    if encoder.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](encoder, images)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again at what is resident now
    before = _resident_peak()
    WAYS[way](encoder, images)
    return _resident_peak() - before


def _resident_peak() -> float:
    """This process's peak of resident memory, in MiB."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def _peak(way: str, name: str, batch: int) -> float:
    """MiB that a way needs on top of the loaded model, measured in a process of its own."""
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
    print(f"{name}, batch {batch}, {encoder.tokens} tokens, {encoder.device}")
    for way, seconds in best.items():
        ratio = seconds / best["bare forward"]
        print(
            f"  {way:22s} {ratio:5.2f} x {1000 * seconds / batch:8.1f} ms/image "
            f"{_peak(way, name, batch):7.0f} MiB at the peak"
        )


def memory(name: str, batch: int) -> None:
    """Print the peak memory of each way that keeps no map beside the bare forward: one image, and a batch.

    What a way takes beyond the bare forward is to be the same for both.
    """
    print(f"{name}: MiB at the peak on top of the loaded model, and beyond the bare forward")
    for images in (1, batch):
        bare = _peak("bare forward", name, images)
        print(f"  {'bare forward':22s} batch {images} {bare:7.0f}")
        for way in ("attention metrics", "all metrics"):
            peak = _peak(way, name, images)
            print(f"  {way:22s} batch {images} {peak:7.0f} {peak - bare:+7.0f}")


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


def training(device: torch.device, batch: int | None, rounds: int) -> None:
    """Print speed and share of the matrix-product peak of each objective's step, beside the eager step."""
    dtype = fast_precision(device)
    peak = _matmul_peak(device, dtype)
    print(f"{device_name(device)}: matrix product {peak / 1e12:.2f} TFLOP/s in {dtype}")
    images, steps = shapes("val"), 20 if device.type == "cuda" else 1
    for objective in ("cl", "mim", "hybrid-0.2", "mae", "supervised", "dino"):
        size = batch or BATCH_SIZES[device.type]
        chosen = replace(recipe("shapes", objective), images=(rounds + 2) * steps * size, batch_size=size)
        with tempfile.TemporaryDirectory() as folder:
            eager = Trainer(chosen, images, images, Path(folder), device, captured=False)
            with FlopCounterMode(display=False) as counter:
                next(eager.steps())
            work, speed = counter.get_total_flops(), _steps_per_second(eager, rounds, steps)
            line = f"eager {speed * size:8.0f} images/s"
            if device.type == "cuda":
                speed = _steps_per_second(
                    Trainer(chosen, images, images, Path(folder), device), rounds, steps
                )
                line = f"captured {speed * size:8.0f} images/s, {line}"
        share = 100 * speed * work / peak
        print(f"  {objective:12s} {speed * work / 1e12:7.3f} TFLOP/s {share:4.0f} % of the peak   {line}")


def until_knn(accuracy: float, device: torch.device, batch: int | None) -> None:
    """Print the seconds of training until contrastive learning on CIFAR-10 reaches a k-NN accuracy."""
    train, val = cifar10("train"), cifar10("val")
    chosen = replace(recipe("cifar10", "cl"), batch_size=batch or BATCH_SIZES[device.type])
    neighbours, asked = train.subset(10_000), val.subset(2_000)
    with tempfile.TemporaryDirectory() as folder:
        trainer, seconds = Trainer(chosen, train, val, Path(folder), device), 0.0
        for step in range(chosen.steps // 50, chosen.steps + 1, chosen.steps // 50):
            seconds += _seconds(device, lambda step=step: list(trainer.steps(step)))
            encoder = trainer.encoder()
            reached = knn_by_depth(encoder, neighbours, asked, "class", [encoder.depth])["value"].item()
            print(
                f"  {step * chosen.batch_size:9d} pairs {seconds:7.1f} s   k-NN {100 * reached:.1f} %",
                flush=True,
            )
            if reached >= accuracy:
                break


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.benchmark", description=__doc__)
    parser.add_argument("what", choices=("analysis", "memory", "training"))
    parser.add_argument(
        "--model", help="for analysis (default: ViT-B/16) or memory (default: ViT-B/14 at 518 px)"
    )
    parser.add_argument("--batch", type=int, default=4, help="for analysis and memory (default: 4)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, or training steps, to take the best of"
    )
    parser.add_argument("--batch-size", type=int, help="for training (default: that of the device)")
    parser.add_argument(
        "--until-knn",
        type=float,
        metavar="SHARE",
        help="for training: also time CL on CIFAR-10 until 0.5, ...",
    )
    options = parser.parse_args(arguments)
    if options.what == "analysis":
        analysis(options.model or "random:vit_base_patch16_224", options.batch, options.rounds)
    elif options.what == "memory":
        memory(options.model or "random:vit_base_patch14_dinov2", options.batch)
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        training(device, options.batch_size, options.rounds)
        if options.until_knn:
            until_knn(options.until_knn, device, options.batch_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
