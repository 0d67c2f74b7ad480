"""Tables that compare the two objectives: features between encoders, gradients within a hybrid."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from nbhelpers.images import ImageSource
from nbhelpers.measure import cached, code_version, identified
from nbhelpers.models import Encoder, load
from nbhelpers.pretrain import recipe
from nbhelpers.pretrain.alignment import gradient_alignment
from nbhelpers.probes import cka_by_depth
from nbhelpers.probes.rows import identity
from nbhelpers.studies import PAIR, Study, study

COMPARED = 1_000  # images whose features are compared between encoders
# The hybrid whose two gradients are followed: a tenth of the recipe's images, in batches half as large.
OBJECTIVE = "hybrid-0.5"
RUN = {"images": 25_600, "batch_size": 64, "width": 64, "heads": 4}
STEPS, BATCHES = (0, 25, 50, 100, 200, 400), 24


def sample(study: Study) -> dict[str, ImageSource]:
    """Test images to compare features on."""
    return {"test": study.sample.subset(min(COMPARED, len(study.sample)))}


def cka(encoder: Encoder, images: dict[str, ImageSource]) -> pd.DataFrame:
    """The encoder beside the CL and the MIM encoder, both of seed 0, of the study that the images are of."""
    who = identity(encoder, images["test"])
    others = [other for other in map(load, study(who["study"]).trained(*PAIR)) if other.seed == 0]
    key = ["cka", [other.fingerprint for other in others], code_version("metrics"), code_version("probes")]
    compute = partial(cka_by_depth, encoder, others, images["test"])
    return cached("analyses", encoder, [images["test"]], key, compute).assign(**who)


def splits(study: Study) -> dict[str, ImageSource]:
    """Images to train on, and images to measure gradients on."""
    return {"train": study.images("train"), "validation": study.images("val")}


def start(study: Study) -> tuple[str, ...]:
    """The random encoder that a run of seed 0 begins with."""
    return (f"{study.name}.random",)


def gradients(encoder: Encoder, images: dict[str, ImageSource]) -> pd.DataFrame:
    """What happens to a random encoder of a study, along the run of a hybrid that begins with it."""
    run = replace(recipe(encoder.provenance["study"], OBJECTIVE), **RUN, seed=encoder.seed)
    sources = [images["train"], images["validation"]]
    key = ["gradients", run.as_dict(), STEPS, BATCHES, code_version("pretrain")]
    compute = partial(gradient_alignment, run, *sources, STEPS, BATCHES)
    return identified(cached("analyses", encoder, sources, key, compute), encoder, images["train"])
