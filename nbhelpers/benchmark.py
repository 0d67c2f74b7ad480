"""Benchmarks that print ratios to a reference measured in the same run: analysis, memory and training.

`python -m nbhelpers.benchmark analysis` sets the one-pass analysis beside the bare forward of the same model;
`python -m nbhelpers.benchmark memory` does so for peak memory, of a large input, for one image and for more;
`python -m nbhelpers.benchmark training` sets training steps beside the machine's measured matrix product.
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
from pathlib import Path

import torch
from timm.layers import set_fused_attn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nbhelpers.images import ArraySource, shapes
from nbhelpers.measure import feed
from nbhelpers.metrics import METRICS, attention_distance, attention_entropy
from nbhelpers.metrics import normalized_mutual_information as nmi
from nbhelpers.models import Encoder, load
from nbhelpers.pretrain import Trainer
from nbhelpers.pretrain.recipes import STUDIES, family
from nbhelpers.pretrain.trainer import fast_precision

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


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
            _synchronise(encoder.device)
            start = time.perf_counter()
            run(encoder, images)
            _synchronise(encoder.device)
            best[way] = min(best[way], time.perf_counter() - start)
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
    """Best of five products of 2048 x 2048 matrices, in FLOP/s."""
    one = torch.randn(2048, 2048, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        one @ one
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def training(steps: int) -> None:
    """Print images/s of each objective's recipe and the share of the matrix-product peak that it reaches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = fast_precision(device)
    peak = _matmul_peak(device, dtype)
    print(f"{device}, {torch.get_num_threads()} threads: matrix product {peak / 1e9:.0f} GFLOP/s in {dtype}")
    images = shapes("val")
    one_each = {family(objective): recipe for objective, recipe in reversed(STUDIES["shapes"].items())}
    for recipe in reversed(one_each.values()):
        chosen = replace(recipe, images=(steps + 2) * recipe.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(chosen, images, images, Path(folder), device)
            with FlopCounterMode(display=False) as counter:
                next(trainer.steps(1))
            best = float("inf")
            for step in range(2, steps + 2):
                start = time.perf_counter()
                next(trainer.steps(step))
                _synchronise(device)
                best = min(best, time.perf_counter() - start)
        speed, share = chosen.batch_size / best, counter.get_total_flops() / best / peak
        name = recipe.objective
        print(f"  {name:12s} {speed:8.0f} images/s   {100 * share:4.0f} % of the matrix-product peak")


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
    options = parser.parse_args(arguments)
    if options.what == "analysis":
        analysis(options.model or "random:vit_base_patch16_224", options.batch, options.rounds)
    elif options.what == "memory":
        memory(options.model or "random:vit_base_patch14_dinov2", options.batch)
    else:
        training(options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
