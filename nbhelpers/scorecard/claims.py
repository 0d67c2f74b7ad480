"""The paper's claims, each as an effect that is above 0 when the claim shows.

All of it was fixed before any effect was computed: which table, which metric, where in the encoder, which
side is subtracted. "Late" is the last third of the blocks; a claim that names no place is judged there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nbhelpers.scorecard import evidence as read
from nbhelpers.scorecard.evidence import Evidence, NotMeasured, Paper, Quantity
from nbhelpers.scorecard.intervals import Interval, difference, largest, smallest

# Encoders of two widths that saw the same images.
NARROW, WIDE = "width 16, 256,000 images", "width 64, 256,000 images"
Effect = Callable[..., Interval]  # of the evidence and the claim's quantities


@dataclass(frozen=True)
class Published:
    """A number that the paper publishes in another form than a curve, and its unit if it differs."""

    effect: Callable[[Paper], float]
    unit: str | None = None


@dataclass(frozen=True)
class Claim:
    """One claim, or one part of a claim.

    Attributes:
        number: of the claim in the book's list, with a letter where it has parts.
        words: what is claimed.
        measure: the effect, in words.
        chapter: where it is looked at.
        unit: of the effect.
        effect: what is computed from evidence and quantities.
        quantities: what is read off each encoder; of two, the difference.
        published: how the paper's own number is had where it is not on the published curves.
    """

    number: str
    words: str
    measure: str
    chapter: str
    unit: str
    effect: Effect
    quantities: tuple[Quantity, ...]
    published: Published | None = None


def of(who: str) -> Effect:
    """The quantity of one kind of encoder."""
    return lambda evidence, *quantities: evidence.of(who, *quantities)


def ahead(more: str, less: str) -> Effect:
    """How far the quantity of one kind of encoder lies above that of another."""
    return lambda evidence, *quantities: difference(
        evidence.of(more, *quantities), evidence.of(less, *quantities)
    )


def ahead_everywhere(more: str, less: str) -> Effect:
    """The smallest difference of two kinds of encoders over all depths."""

    def effect(evidence: Evidence, quantity: Quantity) -> Interval:
        depths = sorted(set(evidence.curves(more, quantity)[0]["depth"]))

        def make(comparisons: int) -> list[Interval]:
            here = [replace(quantity, read=read.at(depth)) for depth in depths]
            return [
                difference(*(evidence.of(who, q, comparisons=comparisons) for who in (more, less)))
                for q in here
            ]

        return smallest(make)

    return effect


def best_hybrid(effect: Callable[[Evidence, str, int, Quantity], Interval]) -> Effect:
    """The largest effect of those hybrids that were measured, under the hybrid's name."""

    def best(evidence: Evidence, quantity: Quantity) -> Interval:
        measured, why = [], NotMeasured("no hybrid was trained")
        for hybrid in evidence.hybrids():
            try:
                effect(evidence, hybrid, 1, quantity)
                measured.append(hybrid)
            except NotMeasured as error:
                why = error
        if not measured:
            raise why
        return largest(
            lambda comparisons: [
                replace(effect(evidence, hybrid, comparisons, quantity), name=hybrid) for hybrid in measured
            ]
        )

    return best


def _above_both_parents(evidence: Evidence, hybrid: str, comparisons: int, quantity: Quantity) -> Interval:
    """How far a hybrid lies above the better of CL and MIM."""

    def make(parents: int) -> list[Interval]:
        these = {"comparisons": comparisons * parents}
        child = evidence.of(hybrid, quantity, **these)
        return [
            difference(child, evidence.of(evidence.beside(hybrid, parent), quantity, **these))
            for parent in read.PAIR
        ]

    return smallest(make)


def _hybrid_alone(evidence: Evidence, hybrid: str, comparisons: int, quantity: Quantity) -> Interval:
    return evidence.of(hybrid, quantity, comparisons=comparisons)


def gain_from_width(evidence: Evidence, quantity: Quantity) -> Interval:
    """How much more MIM gains than CL from the narrowest width to a wide one."""
    gains = {
        who: difference(*(evidence.of(f"{who}, {width}", quantity) for width in (WIDE, NARROW)))
        for who in read.PAIR
    }
    return difference(gains["MIM"], gains["CL"])


def _published_hybrid(metric: str) -> Published:
    """The best of three hybrids above the better of its parents, in points."""

    def points(paper: Paper) -> float:
        parents = [
            paper.number(metric, "SimMIM", "lambda=0.0"),
            paper.number(metric, "MoCo v3", "lambda=1.0"),
        ]
        hybrids = [paper.number(metric, "SimMIM+MoCo", f"lambda={share}") for share in (0.2, 0.4, 0.6)]
        return 100 * (max(hybrids) - max(parents))

    return Published(points)


def _published_gain(paper: Paper) -> float:
    gain = {
        model: paper.number("finetune", model, "figure 1a") - paper.number("linear", model, "last layer")
        for model in ("SimMIM", "MoCo v3")
    }
    return 100 * (gain["SimMIM"] - gain["MoCo v3"])


def _published_width(paper: Paper) -> float:
    setting = "figure 1b, 100 epochs by the authors"
    gain = {
        model: paper.number("finetune", model, setting)
        - paper.number("finetune", model, setting, "ViT-Ti/16")
        for model in ("SimMIM", "MoCo v3")
    }
    return 100 * (gain["SimMIM"] - gain["MoCo v3"])


def _published_dense(paper: Paper) -> float:
    return paper.number("box_ap", "MAE", "COCO") - paper.number("box_ap", "MoCo v3", "COCO")


def _metric(name: str, place: read.Reading = read.late) -> tuple[Quantity, ...]:
    return (Quantity("metrics", name, place),)


POINTS = "points"
PROBE = Quantity("probes", "linear", read.last, 100)
TUNED = Quantity("fine_tuning", "fine_tuning", read.of_all_labels, 100)

CLAIMS = (
    Claim(
        "1",
        "CL's attention reaches further",
        "attention distance, late: CL − MIM",
        "attention/distance",
        "px",
        ahead("CL", "MIM"),
        _metric("attention_distance"),
    ),
    Claim(
        "2",
        "CL's attention depends less on the query",
        "NMI, late: MIM − CL",
        "attention/collapse",
        "",
        ahead("MIM", "CL"),
        _metric("nmi"),
    ),
    Claim(
        "3",
        "CL's attention collapses towards the end",
        "NMI of CL: its maximum before the last block − the last block",
        "attention/collapse",
        "",
        of("CL"),
        _metric("nmi", read.highest_less_last),
    ),
    Claim(
        "4",
        "Heads are more alike in CL",
        "cosine between heads, late: CL − MIM",
        "representations/diversity",
        "",
        ahead("CL", "MIM"),
        _metric("head_cosine"),
    ),
    Claim(
        "5",
        "Tokens of an image are more alike in CL",
        "cosine between tokens, late: CL − MIM",
        "representations/diversity",
        "",
        ahead("CL", "MIM"),
        _metric("token_cosine"),
    ),
    Claim(
        "6",
        "Successive depths are more alike in CL",
        "cosine across a block, late: CL − MIM",
        "representations/diversity",
        "",
        ahead("CL", "MIM"),
        _metric("across_block_cosine"),
    ),
    Claim(
        "7",
        "CL's attention moves all tokens of an image together",
        "common share of the update, late: CL − MIM",
        "representations/geometry",
        "",
        ahead("CL", "MIM"),
        _metric("common_update_share"),
    ),
    Claim(
        "8a",
        "CL spreads images over more directions",
        "effective rank over images, late: CL − MIM",
        "representations/spectra",
        "directions",
        ahead("CL", "MIM"),
        _metric("image_spectrum", read.late_effective_rank),
    ),
    Claim(
        "8b",
        "MIM spreads the tokens of an image over more directions",
        "effective rank over tokens, late: MIM − CL",
        "representations/spectra",
        "directions",
        ahead("MIM", "CL"),
        _metric("token_effective_rank"),
    ),
    Claim(
        "9a",
        "MIM holds more high frequencies at all depths",
        "Δ log amplitude: the smallest MIM − CL of all depths",
        "representations/frequency",
        "",
        ahead_everywhere("MIM", "CL"),
        _metric("delta_log_amplitude"),
    ),
    Claim(
        "9b",
        "MIM lowers them in its last blocks",
        "Δ log amplitude of MIM: before the last third − late",
        "representations/frequency",
        "",
        of("MIM"),
        _metric("delta_log_amplitude", read.taken_by_late),
    ),
    Claim(
        "10",
        "CL goes by shape more than MIM",
        "shape bias at the last block: CL − MIM",
        "representations/shape_texture",
        "",
        ahead("CL", "MIM"),
        (Quantity("shape_bias", "shape_bias", read.last, label="shape/texture"),),
    ),
    Claim(
        "11",
        "High-frequency noise costs MIM more",
        "drop of accuracy, noise above 2/3 of Nyquist, last block: MIM − CL",
        "representations/shape_texture",
        POINTS,
        ahead("MIM", "CL"),
        (Quantity("noise", "drop", read.under_high_noise, 100),),
    ),
    Claim(
        "12",
        "CL is read best at a later depth",
        "depth of the best linear probe: CL − MIM",
        "components/layers",
        "blocks",
        ahead("CL", "MIM"),
        (Quantity("probes", "linear", read.peak),),
    ),
    Claim(
        "13a",
        "With a decoder behind it (MAE), an encoder keeps its high frequencies to the end",
        "Δ log amplitude, before the last third − late: MIM − MAE",
        "components/decoder",
        "",
        ahead("MIM", "MAE"),
        _metric("delta_log_amplitude", read.taken_by_late),
    ),
    Claim(
        "13b",
        "MAE's decoder has a higher NMI than its encoder",
        "NMI, mean over all blocks: decoder − encoder",
        "components/decoder",
        "",
        ahead("MAE's decoder", "MAE"),
        _metric("nmi", read.overall),
    ),
    Claim(
        "14a",
        "CL wins under a linear probe",
        "accuracy of a linear probe at the last block: CL − MIM",
        "components/behaviour",
        POINTS,
        ahead("CL", "MIM"),
        (PROBE,),
    ),
    Claim(
        "14b",
        "MIM wins in dense prediction",
        "mean IoU of object and ground from single tokens, last block: MIM − CL",
        "components/behaviour",
        POINTS,
        ahead("MIM", "CL"),
        (Quantity("tokens", "miou", read.last, 100, "mask"),),
        Published(_published_dense, "box AP"),
    ),
    Claim(
        "14c",
        "MIM gains more from fine-tuning",
        "fine-tuned accuracy − linear probe: MIM − CL",
        "components/behaviour",
        POINTS,
        ahead("MIM", "CL"),
        (TUNED, PROBE),
        Published(_published_gain),
    ),
    Claim(
        "14d",
        "MIM gains more from width",
        "fine-tuned accuracy, wide − narrow: MIM − CL",
        "components/behaviour",
        POINTS,
        gain_from_width,
        (TUNED,),
        Published(_published_width),
    ),
    Claim(
        "15a",
        "A hybrid beats both parents under a linear probe",
        "accuracy at the last block: best hybrid − better parent",
        "hybrid/hybrid",
        POINTS,
        best_hybrid(_above_both_parents),
        (PROBE,),
        _published_hybrid("linear"),
    ),
    Claim(
        "15b",
        "A hybrid beats both parents in fine-tuning",
        "fine-tuned accuracy: best hybrid − better parent",
        "hybrid/hybrid",
        POINTS,
        best_hybrid(_above_both_parents),
        (TUNED,),
        _published_hybrid("finetune"),
    ),
    Claim(
        "15c",
        "A hybrid's attention collapses late",
        "NMI of the best hybrid: first third of the blocks − last third",
        "hybrid/hybrid",
        "",
        best_hybrid(_hybrid_alone),
        _metric("nmi", read.early_less_late),
    ),
)
