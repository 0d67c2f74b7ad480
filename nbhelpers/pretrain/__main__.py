"""Command line of the trainer: one model, or a queue of them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace

import torch

from nbhelpers.files import cache_dir
from nbhelpers.pretrain import pretrain
from nbhelpers.pretrain.distributed import process_group
from nbhelpers.pretrain.queue import work_off
from nbhelpers.pretrain.recipes import recipe
from nbhelpers.ranks import rank


def seconds(text: str) -> float:
    """A duration such as "90s", "8m" or "1.5h" in seconds.

    >>> seconds("8m"), seconds("1.5h")
    (480.0, 5400.0)
    """
    match = re.fullmatch(r"([\d.]+)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 8m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def parser() -> argparse.ArgumentParser:
    """The options, each with its explanation."""
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.pretrain",
        description="Train an encoder of the book and put it into data/encoders. A run that was stopped or "
        "killed goes on where it was when the same command is given again. Several devices: torchrun "
        "--nproc-per-node N -m nbhelpers.pretrain ...",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--objective",
        help="cl (MoCo v3), mim (SimMIM), mae, supervised, dino, or hybrid-LAMBDA such as hybrid-0.2: "
        "(1 - LAMBDA) x mim + LAMBDA x cl",
    )
    what.add_argument(
        "--queue", metavar="FILE", help="CSV of models to train, several at once; finished ones are skipped"
    )
    parser.add_argument(
        "--study",
        choices=("shapes", "cifar10"),
        default="shapes",
        help="the images to train on (default: shapes)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of initialisation and data order (default: 0)"
    )
    parser.add_argument(
        "--width", type=int, help="of the encoder, a multiple of a head's channels (default: the recipe's)"
    )
    parser.add_argument("--images", type=int, help="images to see, instead of the recipe's number")
    parser.add_argument(
        "--stop-after",
        type=seconds,
        metavar="TIME",
        help="stop cleanly after 90s, 8m, 1.5h ... and resume next time",
    )
    parser.add_argument(
        "--workers", type=int, help="runs of a queue side by side (default: one per core, four on a GPU)"
    )
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU when there is one)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of matrix products (default: bfloat16 where the device has units for it, else float32)",
    )
    parser.add_argument(
        "--nice", type=int, default=10, help="lower the process's priority by this much (default: 10)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when nothing failed."""
    line = parser()
    options = line.parse_args(arguments)
    os.nice(options.nice)
    if options.queue:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            line.error("a queue trains models side by side; torchrun trains one model on several devices")
        return 1 if work_off(options.queue, options.stop_after, options.workers) else 0
    try:
        chosen = replace(recipe(options.study, options.objective), seed=options.seed)
        chosen = chosen.of_width(options.width or chosen.width)
    except (KeyError, ValueError) as error:
        line.error(error.args[0])
    if options.images:
        chosen = replace(chosen, images=options.images)
    wanted = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with process_group(wanted) as device:
        done = pretrain(
            chosen,
            options.study,
            device=device,
            stop_after=options.stop_after,
            precision=options.precision and getattr(torch, options.precision),
        )
        if rank() == 0:
            print("done" if done else f"stopped; the state is in {cache_dir() / 'pretrain'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
