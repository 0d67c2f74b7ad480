"""Command line of the analysis: `python -m nbhelpers.analyse MODEL --images FOLDER --out DIR`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import torch

from nbhelpers.images import ImageSource
from nbhelpers.models import load
from nbhelpers.report import report
from nbhelpers.studies import study

BUILT_IN = ("shapes", "cifar10")


def _count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The options, each with its explanation."""
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.analyse",
        description="Measure encoders on images: a table, a figure per metric and one HTML page.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a timm or hf-hub: name, a file ...")
    parser.add_argument("--images", required=True, help="a folder of images, or study:shapes, study:cifar10")
    parser.add_argument("--out", required=True, metavar="DIR", help="where page, figures and table go")
    parser.add_argument("--from-file", metavar="FILE", help="local copy of the weights of the one MODEL")
    parser.add_argument("--n-images", type=_count, help="draw so many images (default: all)")
    parser.add_argument("--batch-size", type=_count, default=64, help="images per forward pass (default: 64)")
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: 0)")
    return parser


def _study(name: str) -> str:
    """The study that an option names."""
    plain = name.removeprefix("study:")
    if plain in BUILT_IN and name == plain and Path(name).exists():
        raise ValueError(f"--images {name}: which one, the folder ./{name} or the book's own, study:{name}?")
    return plain if plain in BUILT_IN else f"folder:{name}"


def _report_skipped(folder: str, images: ImageSource) -> None:
    """Say how many files of a folder are left out."""
    if Path(folder).is_dir():
        files = sum(len(files) for *_, files in os.walk(folder))
        if skipped := files - len(images):
            _say(f"{folder}: {len(images)} images; {skipped} other or damaged files are left out")


def _say(message: object, *_: object) -> None:
    """A line on the error stream, where progress goes too."""
    print(f"note: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; prints the page's path, or on bad input one line that says what is wrong."""
    options = parser().parse_args(arguments)
    if options.from_file and len(options.models) > 1:
        parser().error(f"--from-file has the weights of one MODEL, got {len(options.models)}")
    with warnings.catch_warnings():
        warnings.showwarning = _say
        try:
            name = _study(options.images)
            images = study(name).images("test")
            _report_skipped(options.images, images)
            if options.n_images and options.n_images > len(images):
                _say(f"{options.n_images} images asked for, there are {len(images)}")
            torch.device(options.device or "cpu")
            for model in options.models:  # what cannot be loaded is said before the chapter starts
                load(model, device="cpu", from_file=options.from_file)
            chapter = {
                "seed": options.seed,
                "batch_size": options.batch_size,
                "device": options.device,
                "from_file": options.from_file and str(Path(options.from_file).resolve()),
            }
            print(report(options.models, name, options.out, options.n_images, **chapter))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; models that were finished are kept and not measured again", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
