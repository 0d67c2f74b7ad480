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
from nbhelpers.pretrain.queue import work_off
from nbhelpers.pretrain.recipes import CLASSES, recipe


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
        "killed goes on where it was when the same command is given again.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--objective", choices=sorted(CLASSES), help="cl = MoCo v3, mim = SimMIM")
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
        "--nice", type=int, default=10, help="lower the process's priority by this much (default: 10)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when nothing failed."""
    options = parser().parse_args(arguments)
    os.nice(options.nice)
    if options.queue:
        return 1 if work_off(options.queue, options.stop_after, options.workers) else 0
    chosen = replace(recipe(options.study, options.objective), seed=options.seed)
    if options.images:
        chosen = replace(chosen, images=options.images)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    done = pretrain(chosen, options.study, device=device, stop_after=options.stop_after)
    print("done" if done else f"stopped; the state is in {cache_dir() / 'pretrain'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
