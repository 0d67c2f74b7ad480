"""What each result table holds: its images, its models and what is measured on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import pandas as pd
import torch

from nbhelpers.images import ImageSource, MissingDataError, cue_conflict_cifar10
from nbhelpers.images.shapes import retextured
from nbhelpers.measure import analyse, cached, code_version, identified
from nbhelpers.metrics import METRICS
from nbhelpers.models import Encoder, MaskedAutoencoder, decoder_of, load
from nbhelpers.pretrain import recipe
from nbhelpers.pretrain.alignment import gradient_alignment
from nbhelpers.probes import (
    FineTuning,
    attentive_by_depth,
    cka_by_depth,
    components_by_share,
    dense_by_depth,
    fine_tuning_by_share,
    knn_by_depth,
    linear_by_depth,
    robustness_by_depth,
    shape_bias_by_depth,
)
from nbhelpers.probes.shape_bias import agreeing
from nbhelpers.studies import PAIR, VARIED, Study, first_seeds, study

# How many images the probes see: learnt from, penalty chosen on, and (the noise, thirty times) tested on.
TRAIN, VALIDATION, NOISE = 3_000, 500, 500
AGREEING = 20_000  # drawn so that the tenth of `shapes` whose shape and texture agree is enough to learn from
CHANGES = {
    "noise": tuple(k / 10 for k in range(1, 11)),
    "low-pass": (0.1, 0.2, 0.3, 0.5, 0.7),
    "high-pass": (0.1, 0.2, 0.3, 0.5, 0.7),
    "patch-shuffle": (16, 8, 4),
}
# What chapters compare all models by, the decoder's blocks included.
PROFILE = ("nmi", "attention_distance", "attention_entropy", "token_cosine", "delta_log_amplitude")
SHARES = (0.01, 0.1, 1.0)  # of the labels
FINE_TUNING = FineTuning(steps=200, batch_size=64)
NEW_BLOCKS = (2, 4)  # how many blocks, at either end, are made new before fine-tuning
LABELLED = 10_000  # images for fine-tuning
TOKENS_TRAIN = 1_000  # images whose tokens are learnt from one by one
FEWEST = 40  # photographs that can be cut in three: half of them are the neighbours of k-NN
# Of ten images of a class, those that are learnt from, chosen on, tested on; three images suffice for all.
ROLES = {"train": (0, 3, 5, 7, 9), "validation": (2,), "test": (1, 4, 6, 8)}
CUE = "cue"  # label of images whose shape and texture have the same number: either cue names it

COMPARED = 1_000  # images whose features are compared between encoders
# The hybrid whose two gradients are followed: a run of 400 steps, of which a core makes one in seconds.
OBJECTIVE = "hybrid-0.5"
RUN = {"images": 25_600, "batch_size": 64}
STEPS, BATCHES = (0, 25, 50, 100, 200, 400), 24
ALONG = ("nmi", "attention_distance", "token_cosine", "delta_log_amplitude")

Images = dict[str, ImageSource]


@dataclass(frozen=True)
class Table:
    """How a result table is made.

    Attributes:
        name: what it is called.
        about: what is in it.
        images: the images of a study that it is computed from, by role.
        measure: the tidy frame of one encoder and those images.
        code: which code makes its numbers, a key of `nbhelpers.measure.CODE`.
        models: encoders of a study whose rows are stored.
        studies: those that have this table; None: all.
        why: what keeps the others from having it.
        slow: too slow for a build of the book, so that it is always drawn as stored.
        kept: rows that are stored are drawn as stored; those of other models are computed.
        metrics: what `measure` can be limited to by its third argument.
        learns: how many images its probes learn from.
    """

    name: str
    about: str
    images: Callable[[Study], Images]
    measure: Callable[..., pd.DataFrame]
    code: str
    models: Callable[[Study], tuple[str, ...]] = lambda study: study.models
    studies: tuple[str, ...] | None = None
    why: str = ""
    slow: bool = False
    kept: bool = False
    metrics: tuple[str, ...] = ()
    learns: int | None = None

    def belongs_to(self, study: Study) -> bool:
        """Whether the study has this table; a folder of images never has a slow one, as nothing is stored."""
        return self.studies is None or study.name in self.studies


def _everything(study: Study, vary: Collection[str] = ()) -> tuple[str, ...]:
    """All encoders of a study, on demand those of unusual recipes too, and its untrained reference."""
    return tuple(dict.fromkeys([*study.trained(vary=vary), *study.models]))


_every_kind = partial(_everything, vary=VARIED)


def _sample(study: Study) -> Images:
    return {"test": study.sample}


def redrawn(study: Study, images: Images, number: int | None, seed: int) -> Images:
    """The images of a table with other test images in place of the study's sample.

    Raises:
        ValueError: where the table has no sample, or there are fewer images.
    """
    if "test" not in images:
        raise ValueError(f"this table has no sample of test images to draw; it has {', '.join(images)}")
    held_out = "train" in images and not study.splits
    source = images["test"] if held_out else study.images("test")
    label = None if study.splits else next(iter(source.labels))
    return images | {"test": source.subset(number or len(images["test"]), seed, label)}


def _metrics(encoder: Encoder, images: Images, metrics: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    return analyse(encoder, images["test"], metrics)


def _profile(encoder: Encoder, images: Images, metrics: Sequence[str] = PROFILE) -> pd.DataFrame:
    parts = [encoder]
    if isinstance(encoder.module, MaskedAutoencoder):
        parts.append(decoder_of(encoder))
    return pd.concat([analyse(part, images["test"], metrics) for part in parts], ignore_index=True)


def _probed(
    probe: Callable[..., pd.DataFrame], encoder: Encoder, *images: ImageSource, **options
) -> pd.DataFrame:
    """The frame of a function of `nbhelpers.probes`, kept in the cache folder."""
    sources = [*images, *options.get("versions", {}).values()]
    readable = {"versions": list, "recipe": asdict}
    arguments = {key: readable[key](value) if key in readable else value for key, value in options.items()}
    key = [probe.__name__, arguments, code_version("probes")]
    frame = cached("probes", encoder, sources, key, lambda: probe(encoder, *images, **options))
    return identified(frame, encoder, images[0])


def _drawn(study: Study, train: int) -> Images:
    """Images to learn from, to choose the penalty on, and to test on; of a folder, three parts of each class.

    Classes too small to be cut are left out, and a warning names them.

    Raises:
        MissingDataError: if it holds too few images, or a single class.
    """
    if study.splits:
        draw = {"train": train, "validation": VALIDATION}
        splits = {"train": study.images("train"), "validation": study.images("val")}
        return {role: splits[role].subset(n) for role, n in draw.items()} | _sample(study)
    whole = study.images()
    label = next(iter(whole.labels))
    numbers = whole.labels[label]
    sizes = torch.bincount(numbers, minlength=len(whole.classes[label]))
    small = [name for name, size in zip(whole.classes[label], sizes, strict=True) if 0 < size < len(ROLES)]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    order = order[numbers[order].argsort(stable=True)]
    order = order[sizes[numbers[order]] >= len(ROLES)]
    classes = numbers[order].unique(return_counts=True)[1]
    if len(order) < FEWEST or len(classes) < 2:
        raise MissingDataError(
            f"probes need at least {FEWEST} photographs of two classes, laid out as CLASS/FILE, and "
            f"{len(ROLES)} of each class; {whole.name} has {len(order)} of {len(classes)}"
            + (f", classes too small left out: {', '.join(small)}" if small else "")
        )
    if small:
        warnings.warn(
            f"{whole.name}: left out, with fewer than {len(ROLES)} images: {', '.join(small)}", stacklevel=2
        )
    place = torch.cat([torch.arange(count) for count in classes.tolist()]) % 10
    cut = {role: torch.isin(place, torch.tensor(places)) for role, places in ROLES.items()}
    most = {"train": train, "validation": VALIDATION, "test": len(study.sample)}
    parts = {role: whole.select(order[rows]) for role, rows in cut.items()}
    return {role: part.subset(min(most[role], len(part)), label=label) for role, part in parts.items()}


def _probe_images(study: Study) -> Images:
    return _drawn(study, TRAIN)


def _probes(encoder: Encoder, images: Images) -> pd.DataFrame:
    train, validation, test = images["train"], images["validation"], images["test"]
    labels = sorted(test.labels)
    linear = _probed(linear_by_depth, encoder, train, validation, test, label=labels)
    return pd.concat([linear, _probed(knn_by_depth, encoder, train, test, label=labels)], ignore_index=True)


def _components(encoder: Encoder, images: Images) -> pd.DataFrame:
    labels = [name for name in ("shape", "texture", "class") if name in images["test"].labels]
    splits = [images[role] for role in ("train", "validation", "test")]
    return _probed(components_by_share, encoder, *splits, label=labels or sorted(images["test"].labels))


def _cues(study: Study) -> Images:
    """Images for the shape bias: on `shapes` its own, on CIFAR-10 the cue-conflict stimuli."""
    if study.name == "shapes":
        images = _drawn(study, AGREEING)
        return {"train": images["train"], "validation": study.images("val"), "conflict": images["test"]}
    conflict = cue_conflict_cifar10()
    images = _drawn(study, TRAIN)
    return {"train": images["train"], "validation": images["validation"], "conflict": conflict}


def _shape_bias(encoder: Encoder, images: Images) -> pd.DataFrame:
    return _probed(shape_bias_by_depth, encoder, images["train"], images["validation"], images["conflict"])


def _noise_images(study: Study) -> Images:
    """Images for the noise; on `shapes` also those whose cues agree, as they are and painted anew."""
    images = _drawn(study, TRAIN)
    images["test"] = images["test"].subset(min(NOISE, len(images["test"])))
    if study.name != "shapes":
        return images
    splits = {"train": study.images("train").subset(AGREEING), "validation": study.images("val")}
    splits["test"] = study.images("test")
    for role, source in splits.items():
        part, cue = agreeing(source, source)
        part.labels[CUE], part.classes[CUE] = cue, part.classes["shape"]
        images[f"agreeing {role}"] = part
    images["agreeing test"] = images["agreeing test"].subset(NOISE)
    images["texture repainted"] = retextured(images["agreeing test"], replace=False)
    images["texture replaced"] = retextured(images["agreeing test"])
    return images


def _noise(encoder: Encoder, images: Images) -> pd.DataFrame:
    plain = [images[role] for role in ("train", "validation", "test")]
    labels = sorted(plain[0].labels)
    frames = [
        _probed(robustness_by_depth, encoder, *plain, label=labels, changes=CHANGES, depths=_all(encoder))
    ]
    if "agreeing test" in images:
        agree = [images[f"agreeing {role}"] for role in ("train", "validation", "test")]
        versions = {name: images[name] for name in ("texture repainted", "texture replaced")}
        options = {"label": CUE, "changes": {}, "versions": versions, "depths": _all(encoder)}
        frames.append(_probed(robustness_by_depth, encoder, *agree, **options))
    return pd.concat(frames, ignore_index=True)


def _labelled(study: Study) -> Images:
    return _drawn(study, LABELLED)


def _fine_tuning(encoder: Encoder, images: Images) -> pd.DataFrame:
    return _tuned(encoder, images, shares=SHARES)


def _new_blocks(encoder: Encoder, images: Images) -> pd.DataFrame:
    runs = [{end: blocks} for end in ("first", "last") for blocks in NEW_BLOCKS]
    return pd.concat([_tuned(encoder, images, shares=[1.0], **run) for run in runs], ignore_index=True)


def _tuned(encoder: Encoder, images: Images, **options) -> pd.DataFrame:
    label = sorted(images["test"].labels)[0]  # of `shapes`, the shape
    train, test = images["train"], images["test"]
    return _probed(fine_tuning_by_share, encoder, train, test, label=label, recipe=FINE_TUNING, **options)


def _token_images(study: Study) -> Images:
    return _drawn(study, TOKENS_TRAIN)


def _tokens(encoder: Encoder, images: Images) -> pd.DataFrame:
    """What all tokens tell together, and, where there are masks, what each tells of object and texture."""
    splits = [images[role] for role in ("train", "validation", "test")]
    frames = [_probed(attentive_by_depth, encoder, *splits, label=sorted(images["test"].labels))]
    if images["test"].masks is not None:
        frames.append(_probed(dense_by_depth, encoder, *splits, label=["mask", "texture"]))
    return pd.concat(frames, ignore_index=True)


def _compared(study: Study) -> Images:
    return {"test": study.sample.subset(min(COMPARED, len(study.sample)))}


def _cka(encoder: Encoder, images: Images) -> pd.DataFrame:
    """The encoder beside the CL and the MIM encoder, both of seed 0, of the study that the images are of."""
    chosen = study(images["test"].name.split("/")[0])
    others = [other for other in map(load, chosen.trained(*PAIR)) if other.seed == 0]
    key = ["cka", [other.fingerprint for other in others], code_version("metrics"), code_version("probes")]
    compute = partial(cka_by_depth, encoder, others, images["test"])
    return identified(cached("analyses", encoder, [images["test"]], key, compute), encoder, images["test"])


def _splits(study: Study) -> Images:
    return {"train": study.images("train"), "validation": study.images("val")}


def _start(study: Study) -> tuple[str, ...]:
    """The random encoder that a run of seed 0 begins with."""
    return (f"{study.name}.random",)


def _gradients(encoder: Encoder, images: Images) -> pd.DataFrame:
    """What happens to a random encoder of a study, along the run of a hybrid that begins with it."""
    run = replace(recipe(encoder.provenance["study"], OBJECTIVE), **RUN, seed=encoder.seed)
    sources = [images["train"], images["validation"]]
    key = ["gradients", run.as_dict(), STEPS, BATCHES, code_version("pretrain")]
    compute = partial(gradient_alignment, run, *sources, STEPS, BATCHES)
    return identified(cached("analyses", encoder, sources, key, compute), encoder, images["train"])


Look = Callable[[Encoder, int], None]  # called with the encoder as it is, and how many images it has seen
# Trains as the encoder was, on images["pretrain"], and looks at the encoder at the steps `moments(steps)`.
train_along: Callable[[Encoder, ImageSource, Look], None] | None = None


def moments(steps: int, number: int = 10) -> list[int]:
    """Steps of a training to look at the encoder at: the first, the last, and evenly in their logarithm.

    >>> moments(1000, 4)
    [1, 10, 100, 1000]
    """
    return sorted({round(steps ** (k / (number - 1))) for k in range(number)})


def measure_along(encoder: Encoder, images: Images) -> pd.DataFrame:
    """What is followed along a training: rows of `analyse` and of two probes, as the encoder is now."""
    label = sorted(images["test"].labels)[0]
    splits = [images[role] for role in ("train", "validation", "test")]
    frames = [
        analyse(encoder, images["test"], ALONG),
        _probed(linear_by_depth, encoder, *splits, label=label),
        _probed(knn_by_depth, encoder, splits[0], splits[2], label=label),
    ]
    return pd.concat(frames, ignore_index=True)


def _along_images(study: Study) -> Images:
    return _drawn(study, TRAIN) | {"pretrain": study.images("train")}


def _along_training(encoder: Encoder, images: Images) -> pd.DataFrame:
    if train_along is None:
        raise MissingDataError("there is no trainer yet that looks at the encoder on its way")
    frames = []

    def look(now: Encoder, images_seen: int) -> None:
        named = replace(now, name=encoder.name, objective=encoder.objective, seed=encoder.seed)
        frames.append(measure_along(named, images).assign(images_seen=images_seen, run=encoder.name))

    train_along(encoder, images["pretrain"], look)
    return pd.concat(frames, ignore_index=True)


def _first_of_pair(study: Study) -> tuple[str, ...]:
    return first_seeds(_pair(study))


def _all(encoder: Encoder) -> list[int]:
    return list(range(encoder.depth + 1))


def _pair(study: Study) -> tuple[str, ...]:
    """The trained encoders that every chapter sets beside each other."""
    return study.trained(*PAIR)


OWN = ("shapes", "cifar10")
SMALL = "only the book's own encoders are small enough for it"
TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "metrics",
            "every metric of attention and residual stream",
            _sample,
            _metrics,
            "metrics",
            metrics=tuple(METRICS),
        ),
        Table(
            "profile",
            "the metrics that all models are compared by; also of a decoder",
            _sample,
            _profile,
            "metrics",
            models=_every_kind,
            metrics=PROFILE,
        ),
        Table(
            "probes",
            "linear and k-NN probes of every label",
            _probe_images,
            _probes,
            "probes",
            models=_every_kind,
            learns=TRAIN,
            kept=True,
        ),
        Table(
            "components",
            "probes of the leading and of the trailing principal components of the last block",
            _probe_images,
            _components,
            "probes",
            models=_everything,
            learns=TRAIN,
            kept=True,
        ),
        Table(
            "shape_bias",
            "a probe's decisions where shape and texture disagree",
            _cues,
            _shape_bias,
            "probes",
            studies=OWN,
            why="the stimuli whose cues disagree have to show the classes of the photographs",
            kept=True,
        ),
        Table(
            "noise",
            "a probe under noise, filters, shuffling, new texture",
            _noise_images,
            _noise,
            "probes",
            kept=True,
        ),
        Table(
            "tokens",
            "attentive probes, and dense prediction where there are masks",
            _token_images,
            _tokens,
            "probes",
            models=_everything,
            learns=TOKENS_TRAIN,
            studies=OWN,
            why=SMALL,
            slow=True,
        ),
        Table(
            "fine_tuning",
            "accuracy after fine-tuning on a share of the labels",
            _labelled,
            _fine_tuning,
            "probes",
            models=_every_kind,
            studies=OWN,
            why=SMALL,
            slow=True,
        ),
        Table(
            "new_blocks",
            "fine-tuning with the first or last blocks made new",
            _labelled,
            _new_blocks,
            "probes",
            models=_pair,
            studies=OWN,
            why=SMALL,
            slow=True,
        ),
        Table(
            "cka",
            "CKA of pooled features with those of the CL and the MIM encoder, between all depths",
            _compared,
            _cka,
            "probes",
            models=_everything,
            studies=OWN,
            kept=True,
        ),
        Table(
            "gradients",
            "whether the two losses of a hybrid agree in each block, along a short training",
            _splits,
            _gradients,
            "pretrain",
            models=_start,
            studies=OWN,
            why=SMALL,
            slow=True,
        ),
        Table(
            "along_training",
            "metrics and probes by depth at moments of the training of CL and MIM",
            _along_images,
            _along_training,
            "metrics",
            models=_first_of_pair,
            studies=OWN,
            why=SMALL,
            slow=True,
            learns=TRAIN,
        ),
    )
}
