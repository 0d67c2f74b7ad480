"""What each result table of encoders holds: its images, its models and what is measured on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import pandas as pd
import torch

from nbhelpers import probes
from nbhelpers.images import ImageSource, MissingDataError, cue_conflict_cifar10
from nbhelpers.images.folders import FileSource
from nbhelpers.images.source import earlier
from nbhelpers.measure import analyse, cached, code_version, identified, object_attention_by_depth
from nbhelpers.metrics import METRICS
from nbhelpers.models import Encoder, MaskedAutoencoder, decoder_of, load, manifest
from nbhelpers.pretrain import Recipe
from nbhelpers.probes.noise import CHANGES
from nbhelpers.studies import OWN, PAIR, VARIED, Study, first_seeds, study

# Images that probes learn from, choose the penalty on, and are tested on under noise (some thirty times).
TRAIN, VALIDATION, NOISE = 3_000, 500, 500
AGREEING = 20_000  # of `shapes`; the probe of shape bias learns from the tenth with equal shape and texture
# Metrics that chapters compare all models by, decoders included.
PROFILE = ("nmi", "attention_distance", "attention_entropy", "token_cosine", "delta_log_amplitude")
SHARES = (0.01, 0.1, 1.0)  # of the labels
FINE_TUNING = probes.FineTuning(steps=200, batch_size=64)
# Of .0005, .0015 and .005 these rates are best on validation images, for CL as for MIM of a width.
FINE_TUNING_WIDE = replace(FINE_TUNING, learning_rate=1.5e-3, half=True)
EPOCHS, FEWER = 20, 8  # of fine-tuning on all photographs for training, 45,000
FINE_TUNING_ON_ALL, FINE_TUNING_SHORTER = (
    replace(FINE_TUNING_WIDE, steps=epochs * 45_000 // 128, batch_size=128) for epochs in (EPOCHS, FEWER)
)
NEW_BLOCKS = (2, 4)  # how many blocks, at either end, are made new before fine-tuning
LABELLED = 10_000  # images for fine-tuning
TOKENS_TRAIN = 1_000  # of these, images whose tokens are learnt from one by one
FEWEST = 40  # photographs of a folder: half of them are learnt from, and k-NN asks 20
# Number of an image within its class, modulo ten -> its split; the first three are in one each.
ROLES = {"train": (0, 3, 5, 7, 9), "validation": (2,), "test": (1, 4, 6, 8)}

COMPARED = 1_000  # images whose features are compared between encoders
SLOW = {"slow": True, "why": "only the book's own encoders are small enough for it"}
MASKS = "only generated images come with masks of their objects"
CUES = "the stimuli whose cues disagree have to show the classes of the photographs"

Images = dict[str, ImageSource]
Measure = Callable[..., pd.DataFrame]  # rows of an encoder, or of a training
TABLES: dict[str, Table] = {}


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
        settings: what else its numbers depend on, such as constants and other encoders.
        runs: in place of encoders, trainings by name that `measure` gets; their weights are not kept.
        hours: without a GPU it takes hours, and is made there only when it is asked for by name.
        why: what keeps other studies than `studies` from having it; empty: all have it.
        studies: that have it, where there is a `why`.
        slow: too slow for a build of the book, so that it is always drawn as stored.
        kept: rows that are stored are drawn as stored; those of other models are computed.
        metrics: what `measure` can be limited to by its third argument.
    """

    name: str
    about: str
    images: Callable[[Study], Images]
    measure: Measure
    code: str = "probes"
    models: Callable[[Study], tuple[str, ...]] = lambda study: study.models
    settings: Callable[[Study], object] | None = None
    runs: Callable[[Study], dict[str, Recipe]] | None = None
    why: str = ""
    studies: tuple[str, ...] = OWN
    slow: bool = False
    hours: bool = False
    kept: bool = False
    metrics: Collection[str] = ()

    def belongs_to(self, study: Study) -> bool:
        """Whether the study has this table."""
        return not self.why or study.name in self.studies


def declare(name: str, images: Callable[[Study], Images], **options) -> Callable[[Measure], Measure]:
    """Decorator that enters a table: the function measures an encoder, its docstring says what is in it."""
    if runs := options.get("runs"):
        options |= {"models": lambda study: tuple(runs(study)), "hours": True}

    def enter(measure: Measure) -> Measure:
        TABLES[name] = Table(name, measure.__doc__.strip("."), images, measure, **options)
        return measure

    return enter


def _everything(study: Study, vary: Collection[str] = ()) -> tuple[str, ...]:
    """All encoders of a study, on demand those of unusual recipes too, and its untrained reference."""
    return tuple(dict.fromkeys([*study.trained(vary=vary), *study.models]))


_every_kind = partial(_everything, vary=VARIED)


def _sample(study: Study) -> Images:
    return {"test": study.sample}


def redrawn(study: Study, images: Images, number: int | None, seed: int) -> Images:
    """The images of a table drawn anew: `number` in place of the study's sample, or all if it has fewer."""

    def anew(role: str, part: ImageSource) -> ImageSource:
        whole = study.images("test") if role == "test" and not held_out else part
        label = None if study.splits else next(iter(whole.classes))
        few = max(1, round(len(part) * share))
        return whole.at_most(few if role != "test" or number is None else number, seed, label)

    held_out = "train" in images and not study.splits
    share = 1 if number is None else min(1, number / len(study.sample))
    return {role: anew(role, part) for role, part in images.items()}


def _drawn(study: Study, train: int) -> Images:
    """Images to learn from, to choose the penalty on, and to test on; of a folder, three parts of each class.

    Of a folder's files with one content the first counts. Classes too small to be cut are left out, and a
    warning names them.

    Raises:
        MissingDataError: if it holds too few images, or a single class.
    """
    if study.splits:
        draw = {"train": ("train", train), "validation": ("val", VALIDATION)}
        return {role: study.images(split).subset(n) for role, (split, n) in draw.items()} | _sample(study)
    whole = study.images()
    if isinstance(whole, FileSource):  # each content once, so that no test image was learnt from
        whole = whole.select([*pd.Series(whole.digests).drop_duplicates().index])
    label = next(iter(whole.labels))
    numbers = whole.labels[label]
    sizes = torch.bincount(numbers, minlength=len(whole.classes[label]))
    small = [name for name, size in zip(whole.classes[label], sizes, strict=True) if 0 < size < len(ROLES)]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    order = order[numbers[order].argsort(stable=True)]
    order = order[sizes[numbers[order]] >= len(ROLES)]
    left_out = f"; too small to be cut, left out: {', '.join(small)}" if small else ""
    classes = len(numbers[order].unique())
    if len(order) < FEWEST or classes < 2:
        raise MissingDataError(
            f"probes need at least {FEWEST} photographs of two classes, laid out as CLASS/FILE, and "
            f"{len(ROLES)} of each class; {whole.name} has {len(order)} of {classes}{left_out}"
        )
    if small:
        warnings.warn(f"{whole.name} is cut in {len(ROLES)}{left_out}", stacklevel=2)
    place = earlier(numbers[order]) % 10
    parts = {role: whole.select(order[torch.isin(place, torch.tensor(at))]) for role, at in ROLES.items()}
    most = {"train": train, "validation": VALIDATION, "test": len(study.sample)}
    return {role: part.at_most(most[role], label=label) for role, part in parts.items()}


def probed(
    probe: Measure, encoder: Encoder, *images: ImageSource, code: str = "probes", **options: object
) -> pd.DataFrame:
    """The frame of a function of encoder and images; of this package's, kept in the cache folder."""
    if not probe.__module__.startswith("nbhelpers."):  # whose code no key holds
        return identified(probe(encoder, *images, **options), encoder, images[0])
    named = [source.classes for source in images]  # fingerprints hold the numbers of classes alone
    keys = {"frame": [probe.__name__, options, code_version(code), named]}
    frames = cached(encoder, images, keys, lambda _: {"frame": probe(encoder, *images, **options)})
    return identified(frames["frame"], encoder, images[0])


def splits_of(images: Images) -> list[ImageSource]:
    """Images to learn from, to choose the penalty on, to test on."""
    return [images[role] for role in ROLES]


@declare("metrics", _sample, code="metrics", metrics=METRICS)
def _metrics(encoder: Encoder, images: Images, metrics: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    """Every metric of attention and residual stream."""
    return analyse(encoder, images["test"], metrics)


@declare("profile", _sample, code="metrics", models=_every_kind, metrics=PROFILE, kept=True)
def _profile(encoder: Encoder, images: Images, metrics: Sequence[str] = PROFILE) -> pd.DataFrame:
    """The metrics that all models are compared by; also of a decoder."""
    decoders = [decoder_of(encoder)] if isinstance(encoder.module, MaskedAutoencoder) else []
    frames = [analyse(part, images["test"], metrics) for part in (encoder, *decoders)]
    return pd.concat(frames, ignore_index=True)


@declare("objects", _sample, code="metrics", kept=True, why=MASKS, studies=("shapes",))
def _objects(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Share of attention that falls on the object, by kind of query."""
    return probed(object_attention_by_depth, encoder, images["test"], code="metrics")


def _few(study: Study) -> Images:
    return _drawn(study, TRAIN)


@declare("probes", _few, models=_every_kind, kept=True)
def _probes(encoder: Encoder, images: Images, **reading: object) -> pd.DataFrame:
    """Linear and k-NN probes of every label."""
    train, validation, test = splits_of(images)
    options = {"label": sorted(test.labels), **reading}
    linear = probed(probes.linear_by_depth, encoder, train, validation, test, **options)
    knn = probed(probes.knn_by_depth, encoder, train, test, **options)
    return pd.concat([linear, knn], ignore_index=True)


def _attentive(encoder: Encoder, images: Images) -> pd.DataFrame:
    options = {"label": sorted(images["test"].labels), "depths": [encoder.depth]}
    return probed(probes.attentive_by_depth, encoder, *splits_of(images), **options)


def _all(study: Study) -> Images:
    return dict(zip(ROLES, map(study.images, ("train", "val", "test")), strict=True))


BOUNDED = "it alone has a fixed number of labels and encoders that are small enough"


def _seeds(study: Study) -> tuple[str, ...]:
    """The encoders of CL and MIM that have several seeds, if there are some."""
    try:
        return study.alike(*PAIR, seeds=2)
    except LookupError:
        return ()


def _everything_and_seeds(study: Study) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*_everything(study), *_seeds(study))))


@declare("all_labels", _all, models=_everything_and_seeds, slow=True, why=BOUNDED, studies=("cifar10",))
def _all_labels(encoder: Encoder, images: Images) -> pd.DataFrame:
    """All three probes of the last block, with every label of the training images."""
    parts = [_probes(encoder, images, depths=[encoder.depth]), _attentive(encoder, images)]
    return pd.concat(parts, ignore_index=True)


@declare("components", _few, models=_everything, kept=True)
def _components(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Probes of the leading and of the trailing principal components of the last block."""
    labels = sorted(images["test"].labels)
    return probed(probes.components_by_share, encoder, *splits_of(images), label=labels)


def _and_seeds(study: Study) -> tuple[str, ...]:
    """The models of a study, and of the book's own studies others that have several seeds."""
    if study.name not in OWN:
        return study.models
    return tuple(dict.fromkeys((*study.models, *_seeds(study), *study.alike(*PAIR, "latent"))))


def _cues(study: Study) -> Images:
    """Images for the shape bias: on `shapes` its own, on CIFAR-10 the cue-conflict stimuli."""
    if study.name == "shapes":
        images = _drawn(study, AGREEING)
        return {"train": images["train"], "validation": study.images("val"), "conflict": images["test"]}
    conflict = cue_conflict_cifar10()
    images = _drawn(study, TRAIN)
    return {"train": images["train"], "validation": images["validation"], "conflict": conflict}


@declare("shape_bias", _cues, why=CUES, models=_and_seeds, kept=True)
def _shape_bias(encoder: Encoder, images: Images) -> pd.DataFrame:
    """A probe's decisions where shape and texture disagree."""
    return probed(probes.shape_bias_by_depth, encoder, *images.values())  # in the order of `_cues`


def _noise_images(study: Study) -> Images:
    """Images for the noise: few, since each is looked at some thirty times."""
    images = _drawn(study, TRAIN)
    return images | {"test": images["test"].at_most(NOISE)}


@declare("noise", _noise_images, settings=lambda study: CHANGES, models=_and_seeds, kept=True)
def _noise(encoder: Encoder, images: Images) -> pd.DataFrame:
    """A probe under noise, filters, shuffling."""
    depths, labels = list(range(encoder.depth + 1)), sorted(images["train"].labels)
    options = {"label": labels, "changes": CHANGES, "depths": depths}
    return probed(probes.robustness_by_depth, encoder, *splits_of(images), **options)


@declare("tokens", _few, settings=lambda study: TOKENS_TRAIN, models=_everything, **SLOW)
def _tokens(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Attentive probes of the last block, and dense prediction where there are masks."""
    train, *others = splits_of(images)
    frames = [_attentive(encoder, images)]
    if train.masks is not None:
        parts = train.select(range(TOKENS_TRAIN)), *others
        frames.append(probed(probes.dense_by_depth, encoder, *parts))
    return pd.concat(frames, ignore_index=True)


def _recipes() -> list[dict[str, object]]:
    """Of fine-tuning on few labels, by which an encoder of any width is tuned."""
    return [asdict(recipe) for recipe in (FINE_TUNING, FINE_TUNING_WIDE)]


def _labelled(study: Study) -> Images:
    return _drawn(study, LABELLED)


def _both(study: Study) -> tuple[str, ...]:
    return study.trained(*PAIR)


@declare("fine_tuning", _labelled, settings=lambda study: [SHARES, *_recipes()], models=_every_kind, **SLOW)
def _fine_tuning(encoder: Encoder, images: Images, **options: object) -> pd.DataFrame:
    """Accuracy after fine-tuning on a share of the labels."""
    label = sorted(images["test"].labels)[0]  # of `shapes`, the shape
    recipe = FINE_TUNING_WIDE if encoder.width > 64 else FINE_TUNING
    options = {"shares": SHARES, "recipe": recipe} | options | {"label": label}
    return probed(probes.fine_tuning_by_share, encoder, images["train"], images["test"], **options)


HOURS = SLOW | {"hours": True, "why": BOUNDED, "studies": ("cifar10",)}


@declare(
    "all_labels_tuned",
    _all,
    settings=lambda study: asdict(FINE_TUNING_ON_ALL),
    models=lambda study: (*study.trained(*PAIR, "mae", "hybrid-0.2", "supervised"), f"{study.name}.random"),
    **HOURS,
)
def _all_labels_tuned(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Accuracy after fine-tuning with every label of the training images."""
    return _fine_tuning(encoder, images, shares=[1.0], recipe=FINE_TUNING_ON_ALL)


@declare("tuned_shorter", _all, settings=lambda study: asdict(FINE_TUNING_SHORTER), models=_both, **HOURS)
def _tuned_shorter(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Accuracy of CL and MIM after fine-tuning with every label, in fewer epochs."""
    return _fine_tuning(encoder, images, shares=[1.0], recipe=FINE_TUNING_SHORTER)


@declare("new_blocks", _labelled, settings=lambda study: [NEW_BLOCKS, *_recipes()], models=_both, **SLOW)
def _new_blocks(encoder: Encoder, images: Images) -> pd.DataFrame:
    """Fine-tuning with the first or last blocks made new."""
    runs = [{end: blocks} for end in ("first", "last") for blocks in NEW_BLOCKS]
    return pd.concat([_fine_tuning(encoder, images, shares=[1.0], **run) for run in runs], ignore_index=True)


def _compared(study: Study) -> tuple[str, ...]:
    """CL and MIM, with which all are compared."""
    return first_seeds(_both(study))


@declare(
    "cka",
    lambda study: {"test": study.sample.at_most(COMPARED)},
    settings=lambda study: [manifest()[name]["sha256"] for name in _compared(study)],
    models=_everything,
    why="an encoder is compared with those that learnt from the same images",
    kept=True,
)
def _cka(encoder: Encoder, images: Images) -> pd.DataFrame:
    """CKA of pooled features with those of the CL and the MIM encoder, between all depths."""
    chosen, test = study(images["test"].name.split("/")[0]), images["test"]
    others = [*map(load, _compared(chosen))]
    return probed(probes.cka_by_depth, encoder, test, others=others)
