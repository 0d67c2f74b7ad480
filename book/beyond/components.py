# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Principal components
#
# **Claim.** What a masked pixel model knows of an image's class lies outside the directions in which its features vary
# most. Those directions describe pixels {cite:p}`balestriero2024reconstruction`, and get in the way when features are
# compared by their distance {cite:p}`vanyan2023local`.
#
# {cite:t}`vanyan2023local` remove single features of high variance from MAE's patch tokens. This page removes principal
# components of an image's mean token, so it tests a neighbouring claim.
#
# How good a masked encoder looks [depends on the probe](../components/behaviour.py): on generated images it gains far
# more than a contrastive one from a probe that is trained. Think of the spines of books in a library: the title is in
# large letters, the subject in small print. From a distance one sees the titles; someone who has been told where to look
# can read the subject.
#
# Let $x$ be the mean of an image's patch tokens after the last block. Over the training images, the decomposition
#
# $$
# \begin{gathered}
# \frac{1}{N} \sum_n (x_n - \bar x)(x_n - \bar x)^\top = U \Lambda\, U^\top, \\[0.6em]
# \Lambda = \operatorname{diag}(\lambda_1 \ge \dots \ge \lambda_D), \\[0.6em]
# x_S = U_S U_S^\top (x - \bar x)
# \end{gathered}
# $$
#
# defines the *principal components*, the columns of $U$, and $x_S$, what is left of an image when only a set $S$ of them
# is kept. The variances $\lambda$ say how large the letters are. The question is which $S$ holds the label.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000  # test images; halving them halves what a probe learns from, too
SEED = 0  # which images are drawn, where these are not all

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.results import StaleTableError, table
from nbhelpers.scorecard.evidence import mean
from nbhelpers.studies import OWN

plots.style()


# %% tags=["hide-input"]
panels, missing = {}, {}  # `shapes` has two labels, so it has two panels
for name in STUDIES:
    own = [*study(name).trained("cl", "mim", "mae"), f"{name}.random"]
    try:
        rows = table(name, "components", MODELS or own, n_images=N_IMAGES, seed=SEED)
    except (MissingDataError, StaleTableError) as reason:
        missing[name] = str(reason)
        continue
    panels |= {(name, of): part for of, part in rows.groupby("label")}


# %% tags=["hide-input"]
def draw(metric, axis, reference=None, chosen=panels):
    """A panel per study and label, over shares of components on a logarithmic axis."""
    titles = [f"{of}: {plots.title(rows)}" for (_, of), rows in chosen.items()]
    axes = plots.panels([*titles, *missing], sharey=True, missing=missing)
    for ax, rows in zip(axes, chosen.values(), strict=False):
        rows = rows[rows["parameter"] > 0]
        plots.by_parameter(rows, metric, axis, ax, reference)
        ax.set_xscale("log", base=2)
        ax.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
    return axes


# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["16a", "16b"], STUDIES, MODELS)


# %% tags=["hide-input"]
def gains(rows, share):
    """What k-NN gains when a share of the components is removed, by label."""
    rows = rows[(rows["metric"] == "knn_gained") & (rows["parameter"] == share)]
    return scorecard.read_labels(rows, mean)


# %% tags=["hide-input"]
gained, lines = {}, []
for (name, of), rows in panels.items():
    for share, text in {1 / 64: "1/64", 1 / 16: "1/16", 1 / 4: "1/4"}.items():
        gained[f"{study(name).title}, {of}", f"without {text}"] = gains(rows, share)
for who in dict.fromkeys(who for entry in gained.values() for who in entry):
    said = [scorecard.verdict(entry[who]) for entry in gained.values() if who in entry]
    counts = (said.count("shows"), len(said), said.count("does not show"))
    lines.append("- {}: gains in {} of {}, loses in {}.".format(who, *counts))
what = "k-NN without the leading 1/64, 1/16 or 1/4 of the components, over all labels:"
lines = [f"{what}\n", *lines] if lines else ["No study has its images here."]
Markdown("\n".join(lines))

# %% [markdown]
# A gain or a loss counts if its 95 % interval, over differences image by image, excludes zero (table below). The
# scorecard's rows are about SimMIM. MAE predicts pixels too (on photographs, after a shorter training), so its losses in
# this list speak against the claim for masked pixel models as such. On generated images both rows are about the label
# *shape*; of the texture, the leading eighth tells a probe as much in MIM as in CL.
#
# ## The quantity
#
# The components of up to 500 images at the last block of one encoder, and what is left of the features without the
# leading sixteenth of them. As a check, the two parts must add up to $x - \bar x$, and the variances must be those of
# `principal_components`.

# %%
from nbhelpers.probes import features, principal_components

(encoder,) = study("shapes").encoders((MODELS or ["shapes.mim"])[:1])
images = study("shapes").images("train").subset(min(500, N_IMAGES))
x = features(encoder, images, [encoder.depth])[0].double()  # N D

# %%
centred = x - x.mean(0)
variances, U = torch.linalg.eigh(centred.mT @ centred / len(x))  # ascending
variances, U = variances.flip(0), U.flip(1)
K = max(1, x.shape[1] // 16)
leading, trailing = U[:, :K], U[:, K:]
x_S = centred @ trailing @ trailing.mT

assert_close(x_S + centred @ leading @ leading.mT, centred)
assert_close(variances, principal_components(x)[1])
share = (variances[:K].sum() / variances.sum()).item()
taken = {"components taken": K, "their share of the variance": share}
pd.DataFrame(taken, index=["last block"]).round(2)

# %% [markdown]
# ## How much of the variance is in few components?
#
# First the variance alone. A curve near 1 at the left means that a few directions hold almost all of the squared
# distance between two images' features.

# %% mystnb={"image": {"alt": "Share of the variance in the leading components against their share of all components, one line per model, one panel per study."}, "figure": {"caption": "Share of the variance that lies in the leading principal components of the last block, against the share of components taken. With equal variance in all directions, the curve would reach one half only at one half."}}
# The same for every label, so one panel a study.
once = {(name, "last block"): rows for (name, _), rows in panels.items()}
axes = draw("variance_leading", "leading share of components", chosen=once)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(panels.values(), "components")

# %% [markdown]
# ## What a linear probe reads in the components
#
# This linear probe sees the leading components alone; at the right end it sees all of them, as in the other chapters.
# Where a curve reaches its final height tells how far down the list of components one has to read.

# %% mystnb={"image": {"alt": "Accuracy of a linear probe that sees the leading components alone, against their share, a line per model, one panel per study and label; guessing is a dashed line at a tenth."}, "figure": {"caption": "Accuracy of a linear probe of the leading principal components of the last block. Bands: 95 % interval over test images; dashed: guessing among ten classes. A number of images in the legend marks an encoder that saw fewer than CL and MIM."}}
guessing = (0.1, "guessing") if {*STUDIES} <= {*OWN} else None
axes = draw("linear_leading", "leading share of components", guessing)
legend = plots.legend_below(axes)

# %% [markdown]
# And the same from the other end, the components of least variance first:

# %% mystnb={"image": {"alt": "Accuracy of a linear probe that sees the trailing components alone, against their share, a line per model, one panel per study and label; guessing is a dashed line at a tenth."}, "figure": {"caption": "Accuracy of a linear probe of the trailing principal components. Bands and dashed line as above."}}
axes = draw("linear_trailing", "trailing share of components", guessing)
legend = plots.legend_below(axes)

# %% [markdown]
# The probe learns a weight for each direction, so low variance is no obstacle in itself. A curve that stays at guessing
# until the last components are added shows that the directions of least variance are noise even to a probe. The label
# then lies between the two ends, and the previous figure says how far down.
#
# ## Do the leading components get in the way of k-NN?
#
# k-NN has nothing but distances. When the leading components are removed, the others determine these distances.


# %% tags=["hide-input"]
def points_gained(rows):
    """What k-NN gains without the leading components, in points."""
    rows = rows[rows["metric"] == "knn_gained"]
    ends = {end: 100 * rows[end] for end in ("value", "low", "high")}
    return rows.assign(metric="points_gained", **ends)


# %% mystnb={"image": {"alt": "Points of accuracy that k-NN gains without the leading components, against the share of components that was removed, a line per model, one panel per study and label; a dashed line at 0 marks k-NN with all components."}, "figure": {"caption": "Accuracy of k-NN (cosine similarity of centred features) without the leading principal components, less that with all of them, in points. Above the dashed line at 0, a model gains when components are removed. Bands: 95 % interval of the difference on the same images."}}
gain = {key: points_gained(rows) for key, rows in panels.items()}
axes = draw("points_gained", "leading share removed", (0, "all components"), gain)
for ax in axes[: len(gain)]:
    ax.set_xlim(1 / 64 / 1.2, 0.6)
legend = plots.legend_below(axes)

# %% [markdown]
# The same in numbers, in points:

# %% tags=["hide-input"]
rows = {
    key: {who: 100 * part.value for who, part in entry.items()}
    for key, entry in gained.items()
}
points = pd.DataFrame(rows).T.round(1) + 0.0  # no -0.0
points = points.map("{:+.1f}".format, na_action="ignore").fillna("")
points.replace("-", "−", regex=True)

# %% [markdown]
# A trained classifier has little to gain from *removing* features, since it can learn to ignore them; a distance cannot.
#
# ## What would refute it
#
# A masked encoder whose k-NN gains no more than a contrastive one's when the leading components are removed, or whose
# linear probe loses no more when it sees them alone. Both rows were fixed before they were computed, for SimMIM alone:
# the leading sixteenth for neighbours, the leading eighth for the probe.

# %% tags=["hide-input"]
scorecard.rows("beyond/components", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - What shows: without the leading sixteenth of its components, SimMIM's k-NN gains on generated images. On photographs
#   it gains little, and the difference from CL comes mostly from what CL loses. That the class lies outside SimMIM's
#   leading components shows for generated shapes alone.
# - What does not show: the same for masked pixel models as such. MAE's k-NN loses by this removal in both studies.
# - Variance is not importance. The training loss decides which directions are large; the label does not.
# - k-NN asks whether a label is *loud*, a linear probe whether it is *there*. Report both.
# - Removing the leading components can help SimMIM's neighbours and harm those of another masked encoder. Before you
#   remove components from the features of a search index, measure on labelled images what that does.
#
# ## Exercises
#
# 1. **Another model.** In how many directions do the features of an untrained ViT vary? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]` (some minutes), or in the hidden cell below, on a few images.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# A few: four directions hold nearly all of the variance.
(tiny,) = study("shapes").encoders(["random:vit_tiny_patch16_224"])
few = study("shapes").images("train").subset(64)
_, values = principal_components(features(tiny, few, [tiny.depth])[0])
shares = (values.cumsum(0) / values.sum()).tolist()
held = pd.DataFrame({n: shares[n - 1] for n in (1, 2, 4, 8)}, ["share of variance"])
held.rename_axis(columns="leading components").round(2)

# %% [markdown]
# 2. **Whitening.** Divide each component by the root of its variance instead of removing the leading ones. How does k-NN
#    do then, and why may a small data set spoil it?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# All components now vary equally. With few images, the smallest are noise, which is
# now as large as the rest.
from nbhelpers.probes import knn_predict

few = min(500, N_IMAGES)
parts = [study("shapes").images(split).subset(few) for split in ("train", "test")]
learnt, asked = (features(encoder, part, [encoder.depth])[0].double() for part in parts)
U, variances = principal_components(learnt)
learnt, asked = learnt - learnt.mean(0), asked - learnt.mean(0)
labels, truth = (part.labels["shape"] for part in parts)
scales = {"plain": U, "whitened": U / variances.clamp(min=1e-9).sqrt()}
found = {key: knn_predict(learnt @ s, labels, asked @ s) for key, s in scales.items()}
right = {key: (each == truth).double().mean().item() for key, each in found.items()}
pd.DataFrame(right, index=["accuracy of k-NN"]).round(2)
