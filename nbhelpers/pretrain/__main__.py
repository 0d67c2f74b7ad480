"""Command line of the trainer: one model, or a queue of them."""

import argparse
import os
import signal
import sys
from dataclasses import replace

import torch

from nbhelpers.files import cache_dir
from nbhelpers.pretrain import pretrain
from nbhelpers.pretrain.distributed import process_group
from nbhelpers.pretrain.queue import train, waiting
from nbhelpers.pretrain.recipes import BATCH_SIZES, STUDIES, recipe
from nbhelpers.ranks import rank


def duration(text: str) -> float:
    """A duration such as "90s", "8m" or "1.5h" in seconds.

    >>> duration("8m"), duration("1.5h")
    (480.0, 5400.0)
    """
    return float(text[:-1]) * 60 ** "smh".index(text[-1:])  # a second, 60 of them, 60 x 60 of them


def positive(text: str) -> int:
    """A whole number above 0.

    >>> positive("8")
    8
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The options, each with its explanation."""
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.pretrain",
        description="Train an encoder of the book and put it into data/encoders. A run that was stopped or "
        "killed goes on where it was when the same command is given again. Several devices: torchrun "
        "--nproc-per-node N -m nbhelpers.pretrain ...",
    )
    what, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    objectives = "cl (MoCo v3), mim (SimMIM), latent, mae, supervised, dino or hybrid-LAMBDA (hybrid-0.2): "
    what.add_argument("--objective", help=objectives + "(1 - LAMBDA) x mim + LAMBDA x cl")
    what.add_argument("--queue", metavar="FILE", help="CSV of models to train; finished ones are skipped")
    add("--study", choices=STUDIES, default="shapes", help="the images to train on (default: shapes)")
    add("--seed", type=int, default=0, help="of initialisation and data order (default: 0)")
    add("--width", type=positive, help="of the encoder, a multiple of a head's channels (default: recipe's)")
    add("--images", type=positive, help="images to see, instead of the recipe's number")
    batch = "images of a step (default: {cpu} on a CPU, {cuda} on a GPU)".format(**BATCH_SIZES)
    add("--batch-size", type=positive, help=batch)
    limit = parser.add_mutually_exclusive_group()
    stop = "stop cleanly after 90s, 8m, 1.5h ... and resume next time"
    limit.add_argument("--stop-after", type=duration, metavar="TIME", help=stop)
    limit.add_argument("--minutes", type=float, help="the same in minutes")
    workers = "runs of a queue side by side (default: one per core, or one on a GPU)"
    add("--workers", type=positive, help=workers)
    add("--device", help="cpu, cuda ... (default: a GPU when there is one)")
    precision = "of matrix products (default: bfloat16 where the device has units for it, else float32)"
    add("--precision", choices=("float32", "bfloat16"), help=precision)
    add("--nice", type=int, default=10, help="lower the process's priority by this much (default: 10)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when nothing failed."""
    line = parser()
    options = line.parse_args(arguments)
    alone = ("study", "seed", "width", "images") if options.queue else ("workers",)
    if given := [each for each in alone if getattr(options, each) != line.get_default(each)]:
        line.error(f"--{given[0]} says nothing {'with' if options.queue else 'without'} --queue")
    try:
        os.nice(options.nice)
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
        if options.minutes is not None:
            options.stop_after = 60 * options.minutes
        if (kind := torch.device(device).type) not in BATCH_SIZES:
            raise ValueError(f"training runs on {' or '.join(BATCH_SIZES)}, not on {kind}")
        options.batch_size = options.batch_size or BATCH_SIZES[kind]
        return _queue(options, device) if options.queue else _single(options, device)
    except KeyboardInterrupt:
        line.exit(130, "stopped; the same command goes on\n")
    except (ArithmeticError, AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        line.exit(1, f"{line.prog}: {error.args[0] if isinstance(error, KeyError) else error}\n")


def _queue(options: argparse.Namespace, device: str) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("a queue trains one model after the other; torchrun trains one on several devices")
    models = waiting(options.queue)
    print(f"{len(models)} models to train", flush=True)
    workers = options.workers or (os.cpu_count() if device == "cpu" else 1)
    common = [f"--device={device}", f"--batch-size={options.batch_size}", "--nice=0"]
    common += [f"--precision={options.precision}"] if options.precision else []
    return int(train(models, workers, options.stop_after, *common) > 0)


def _single(options: argparse.Namespace, device: str) -> int:
    chosen = recipe(options.study, options.objective)
    sizes = {"images": options.images or chosen.images, "batch_size": options.batch_size}
    chosen = replace(chosen.of_width(options.width or chosen.width), **sizes, seed=options.seed)
    precision = options.precision and getattr(torch, options.precision)
    with process_group(device) as own:
        done = pretrain(chosen, options.study, own, options.stop_after, precision=precision)
        if rank() == 0:
            print("done" if done else f"stopped; the same command goes on ({cache_dir() / 'pretrain'})")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after the steps, which handle it
    sys.exit(main())
