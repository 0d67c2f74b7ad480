"""Command line of the analysis: `python -m nbhelpers.analyse MODEL --images FOLDER --out DIR`."""

import argparse
import sys
import warnings
from pathlib import Path

from nbhelpers.analyse import report
from nbhelpers.models import load
from nbhelpers.pretrain.__main__ import positive
from nbhelpers.studies import OWN, study


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
    parser.add_argument("--n-images", type=positive, help="draw so many images (default: all)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per pass (default: 64)")
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU when there is one)")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: 0)")
    return parser


def _study(name: str) -> str:
    """The study that an option names."""
    plain = name.removeprefix("study:")
    if plain in OWN and name == plain and Path(name).exists():
        raise ValueError(f"--images {name}: which one, the folder ./{name} or the book's own, study:{name}?")
    if plain not in OWN and name != plain:
        raise ValueError(f"--images {name}: the book's own studies with images are {' and '.join(OWN)}")
    return plain if plain in OWN else f"folder:{name}"


def _say(message: object, *_: object) -> None:
    """A line on the error stream, where progress goes too."""
    print(f"note: {message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; prints the page's path, or on bad input one line that says what is wrong."""
    line = parser()
    options = line.parse_args(arguments)
    if options.from_file and len(options.models) > 1:
        line.error(f"--from-file has the weights of one MODEL, got {len(options.models)}")
    with warnings.catch_warnings():
        warnings.showwarning = _say
        try:
            name = _study(options.images)
            number = len(study(name).images("test"))  # says what is left out of a folder
            if number < (options.n_images or 0):
                _say(f"{options.n_images} images asked for, there are {number}")
            for model in options.models:  # what cannot be loaded is said before the chapter starts
                load(model, device=options.device or "cpu", from_file=options.from_file)
            chapter = ("n_images", "seed", "batch_size", "device", "from_file")
            parameters = {key: getattr(options, key) for key in chapter}
            print(report(options.models, name, options.out, **parameters))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            line.exit(1, f"error: {error.args[0] if isinstance(error, KeyError) else error}\n")
        except KeyboardInterrupt:
            line.exit(130, "stopped; models that were finished are kept and not measured again\n")


if __name__ == "__main__":
    main()
