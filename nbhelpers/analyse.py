"""Command line of the analysis: `python -m nbhelpers.analyse MODEL --images FOLDER --out DIR`."""

from __future__ import annotations

import argparse
import sys

from nbhelpers.report import report


def parser() -> argparse.ArgumentParser:
    """The options, each with its explanation."""
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.analyse",
        description="Measure encoders on images: a table, a figure per metric and one HTML page.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a timm or hf-hub: name, a file ...")
    parser.add_argument("--images", required=True, help="a folder of images, or shapes or cifar10")
    parser.add_argument("--out", required=True, metavar="DIR", help="where page, figures and table go")
    parser.add_argument("--n-images", type=int, help="draw so many images (default: all)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default: 64)")
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: 0)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; prints the page's path."""
    options = parser().parse_args(arguments)
    name = options.images if options.images in ("shapes", "cifar10") else f"folder:{options.images}"
    options_of_chapter = {"seed": options.seed, "batch_size": options.batch_size, "device": options.device}
    print(report(options.models, name, options.out, options.n_images, **options_of_chapter))
    return 0


if __name__ == "__main__":
    sys.exit(main())
