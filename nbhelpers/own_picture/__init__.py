"""Encoders that look at a reader's own picture, in the reader's browser: the page and its weights.

Script and style are part of the HTML, as in the interactive maps. Weights are scripts beside the page, since
a page that was opened from a disk may load scripts but not data.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from IPython.display import HTML
from torch import Tensor

from nbhelpers.files import atomic_path
from nbhelpers.interactive import application, base64_of, png
from nbhelpers.models import Encoder
from nbhelpers.models.mini import StandardisedPatchEmbed, mini_vit
from nbhelpers.plots import line_style
from nbhelpers.studies import label

FALLBACK = (
    "Here encoders of this book look at a picture of yours: their attention maps at every depth and in every "
    "head, and how alike they see its parts. It needs a browser with scripts enabled."
)
SUFFIX = ".mjs"  # a script to browsers and servers, but Jupyter Book loads each .js of _static on every page
CURVES = ("nmi", "attention_distance")


class Group(NamedTuple):
    """Encoders of one study and the book's curves: the rows of `CURVES` by model, depth and head."""

    title: str
    encoders: Sequence[Encoder]
    frame: pd.DataFrame


class Picture(NamedTuple):
    """A picture that is offered, uint8 `C S S`, and the number of the group that looks at it."""

    title: str
    image: Tensor
    group: int = 0


def weights(encoder: Encoder) -> str:
    """The script that hands an encoder to the page: sizes, preprocessing, half-precision weights in base64.

    Raises:
        ValueError: the encoder is not a `mini_vit`, the only architecture that the page can compute.
    """
    state = encoder.module.state_dict()
    sizes = {"width": encoder.width, "depth": encoder.depth, "heads": encoder.heads}
    sizes |= {"size": encoder.image_size[0], "patch": encoder.patch_size[0]}
    plain = mini_vit(*sizes.values()).state_dict()
    if {key: value.shape for key, value in state.items()} != {key: v.shape for key, v in plain.items()}:
        raise ValueError(f"{encoder.name} is no mini_vit; the page computes the book's own encoders alone")
    content = sizes | {
        "name": encoder.name,
        "mean": encoder.mean,
        "std": encoder.std,
        "standardised": isinstance(encoder.module.patch_embed, StandardisedPatchEmbed),
        "eps": encoder.module.norm.eps,
        "tensors": [[key, value.numel()] for key, value in state.items()],
        "data": base64_of(np.concatenate([value.cpu().numpy().ravel() for value in state.values()]), "<f2"),
    }
    return f"ownPicture.receive({json.dumps(content)});\n"


def page(groups: Sequence[Group], pictures: Sequence[Picture], folder: str | Path) -> HTML:
    """The page's interactive part; weights are written into `folder`, which is relative to the page.

    Args:
        groups: encoders that look at a picture together; the first takes the reader's own.
        pictures: what is offered beside the reader's own.
        folder: where the page finds the weights; it must exist.
    """
    content = {
        "groups": [
            {"title": group.title, "models": [_model(encoder, group, folder) for encoder in group.encoders]}
            for group in groups
        ],
        "pictures": [picture._asdict() | {"image": png(picture.image)} for picture in pictures],
    }
    parts = (f"own_picture/{part}" for part in ("page.css", "page.js", "core.js"))
    return application("own-picture", FALLBACK, content, *parts)


def _model(encoder: Encoder, group: Group, folder: str | Path) -> dict:
    """What the page knows of an encoder before its weights, which are written here.

    Curves are `1+H L`, the mean over heads first.
    """
    path = Path(folder) / f"{encoder.name}{SUFFIX}"
    with atomic_path(path) as temporary:
        temporary.write_text(weights(encoder))
    rows = group.frame[group.frame["model"] == encoder.name]
    curves = {metric: rows[rows["metric"] == metric] for metric in CURVES}
    return {
        "name": encoder.name,
        "label": label(encoder.name),
        "colour": line_style(encoder.name, encoder.objective)["color"],
        "file": path.as_posix(),
        "bytes": path.stat().st_size,
        "images": int(curves["nmi"]["images"].iloc[0]),
        "curves": {
            metric: part.pivot(index="head", columns="depth", values="value").to_numpy().tolist()
            for metric, part in curves.items()
        },
    }
