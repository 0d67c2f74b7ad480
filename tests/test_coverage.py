"""Which of timm's architectures can be read: one small model of every family, with random weights.

`python tests/test_coverage.py` runs them and writes the table `data/coverage.csv`, which the book shows. The
test: a family of either outcome is read as that table says.
"""

import sys
import warnings

import pandas as pd
import pytest
import timm
import torch

from nbhelpers.files import DATA, atomic_path
from nbhelpers.images import ArraySource
from nbhelpers.measure import analyse
from nbhelpers.models import UnsupportedArchitecture, wrap

PATH = DATA / "coverage.csv"
# What the names of small variants contain, smallest first.
SMALL = ("test", "atto", "femto", "pico", "nano", "xxs", "xxtiny", "xtiny", "tiny", "xs", "mini", "small")


def smallest(family: str) -> str:
    """The model of a timm family (a file of `timm.models`) whose name promises the least work.

    >>> smallest("deit")
    'deit_tiny_patch16_224'
    """

    def size(name: str) -> tuple[int, int, str]:
        parts = name.split("_")
        rank = next((i for i, word in enumerate(SMALL) if word in parts), len(SMALL))
        return rank, len(name), name

    return min(timm.list_models(module=family), key=size)


def examine(family: str) -> dict[str, object]:
    """Read one model of a family: a row that says how its tokens are laid out, or why it is refused."""
    name = smallest(family)
    row: dict[str, object] = {"family": family, "model": name}
    with torch.device("meta"):  # refusing needs no weights
        try:
            wrap(timm.create_model(name))
        except UnsupportedArchitecture as reason:
            return row | {"outcome": "refused", "reason": str(reason)}
        except NotImplementedError:
            pass  # some layers cannot be made without memory
    encoder = wrap(timm.create_model(name), name=name, objective="random")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, *encoder.image_size), generator=generator).to(torch.uint8)
    frame = analyse(encoder, ArraySource("random", pixels, {}, {}), ["nmi", "token_norm"], cache=False)
    layers = frame.loc[frame["metric"] == "nmi", "depth"].nunique()
    if layers != encoder.depth:
        raise RuntimeError(f"{name}: {layers} of {encoder.depth} blocks were measured")
    return row | {
        "outcome": "analysed",
        "blocks": encoder.depth,
        "heads": encoder.heads,
        "prefix tokens": encoder.prefix,
        "patch grid": f"{encoder.grid[0]} x {encoder.grid[1]}",
    }


def coverage() -> pd.DataFrame:
    """The row of `examine` for every family of timm that has models, without those that are no ViT at all."""
    families = [family for family in timm.list_modules() if timm.list_models(module=family)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns about names it has moved
        rows = [examine(family) for family in families]
    table = pd.DataFrame(rows).astype({"blocks": "Int64", "heads": "Int64", "prefix tokens": "Int64"})
    other = table["reason"].str.contains("has no transformer blocks|cannot read ", na=False)
    return table[~other].sort_values(["outcome", "family"], ignore_index=True)


def main() -> int:
    """Write the table."""
    table = coverage()
    with atomic_path(PATH) as temporary:
        table.to_csv(temporary, index=False)
    print(table["outcome"].value_counts().to_string())
    return 0


@pytest.mark.parametrize("family", ["vision_transformer", "swin_transformer"])
def test_a_family_is_read_as_the_stored_table_says(family):
    stored = pd.read_csv(PATH).set_index("family").loc[family]
    row = examine(family)
    assert row["outcome"] == stored["outcome"]
    if row["outcome"] == "analysed":
        assert row["blocks"] == len(timm.create_model(row["model"]).blocks)
    else:
        assert row["reason"] == stored["reason"]


if __name__ == "__main__":
    sys.exit(main())
