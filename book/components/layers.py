# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Layers
#
# **Claim.** The later layers matter to contrastive learning, the earlier ones to masked image modelling. A linear
# probe of a contrastive encoder gains up to the last block; that of a masked encoder is better at first, is best
# near the middle and then falls, as if the last blocks were a decoder that nobody asked for {cite:p}`park2023what`.
#
# A {term}`linear probe` at {term}`depth` $\ell$ reads the mean $x$ of an image's patch tokens there, the encoder kept
# frozen, and is fitted by penalised maximum likelihood to labels $y$:
#
# $$
# \min_{W, b}\; \tfrac{1}{2} \lVert W \rVert^2
#   - C \sum_i \log \operatorname{softmax}(W x_i + b)_{y_i} ,
# $$ (eq-linear-probe)
#
# with $C$ chosen on validation images. Accuracy on test images says how much of the label a linear layer can read at
# that depth. It cannot fall because information is gone by chance: what a block writes is added to the residual stream,
# and a probe loses what the block covers up.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own

# %% [markdown]
# ## A linear probe at every depth
#
# `shapes` has two labels, so it has two panels. Bands are the 95 % interval over test images; the dashed line is the
# accuracy of guessing. The last panel is the published curve on ImageNet, with its 1,000 classes.

# %% tags=["hide-input"]
from nbhelpers import plots, study
from nbhelpers.results import published, table

plots.style()
kinds = ["cl", "dino", "mim", "mae", "supervised"]
names = {s: MODELS or list(dict.fromkeys([*study(s).trained(*kinds), *study(s).models])) for s in STUDIES}
frames = [table(s, "probes", names[s]) for s in STUDIES]
panels = {
    (s, label): rows for s, f in zip(STUDIES, frames, strict=True) for label, rows in f.groupby("label")
}

# %%
titles = [f"{label}, {plots.title(rows)}" for (_, label), rows in panels.items()]
chance = {"shapes": (0.1, "chance"), "cifar10": (0.1, "chance")}
axes = plots.panels([*titles, "published"], columns=2, sharey=True)
for ax, ((s, _), rows) in zip(axes, panels.items(), strict=False):
    plots.by_depth(rows, "linear", ax, reference=chance.get(s))
plots.published_by_depth(published(), "linear", axes[-1], models=("MoCo v3", "SimMIM", "MAE"))
plots.legend_below(axes[:-1])
axes[-1].legend()
plots.show(axes, "Accuracy of a linear probe against depth, a line per model; a panel per label and study.")

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import against_published, by_label, highest, peak

for (s, label), rows in panels.items():
    for who, depth in peak(rows, "linear").items():
        glue(f"{s}-{label}-{who}", depth, display=False)
    for who, value in highest(rows, "linear").items():
        glue(f"{s}-{label}-{who}-best", value, display=False)
glue("published", against_published(frames, "linear"), display=False)
glue("depth", int(frames[0]["depth"].max()), display=False)
rows = published().query("metric == 'linear' and depth.notna() and part == 'encoder'")
for model, line in rows.groupby("model"):
    glue(f"published-{model.split()[0]}", int(line["depth"].loc[line["value"].idxmax()]), display=False)

# %% [markdown]
# Of {glue:text}`depth` blocks, the shape on `shapes` is read best at depth {glue:text}`shapes-shape-CL` in CL (accuracy
# {glue:text}`shapes-shape-CL-best:.2f`) and at depth {glue:text}`shapes-shape-MIM` in MIM
# ({glue:text}`shapes-shape-MIM-best:.2f`), the texture at depths {glue:text}`shapes-texture-CL`
# ({glue:text}`shapes-texture-CL-best:.2f`) and {glue:text}`shapes-texture-MIM`
# ({glue:text}`shapes-texture-MIM-best:.2f`). The class of a photograph is read best at depth
# {glue:text}`cifar10-class-CL` ({glue:text}`cifar10-class-CL-best:.2f`) in CL and at depth
# {glue:text}`cifar10-class-MIM` ({glue:text}`cifar10-class-MIM-best:.2f`) in MIM. An untrained encoder reaches
# {glue:text}`shapes-shape-random-best:.2f`, {glue:text}`shapes-texture-random-best:.2f` and
# {glue:text}`cifar10-class-random-best:.2f`: that much is in the pixels for whoever averages them. MAE, whose encoder has a
# [decoder](decoder.py) behind it, is read best at depth {glue:text}`shapes-shape-MAE` for shape
# ({glue:text}`shapes-shape-MAE-best:.2f`), {glue:text}`shapes-texture-MAE` for texture
# ({glue:text}`shapes-texture-MAE-best:.2f`) and {glue:text}`cifar10-class-MAE` for photographs
# ({glue:text}`cifar10-class-MAE-best:.2f`). DINO, trained on `shapes` only, is read best at depth
# {glue:text}`shapes-shape-DINO` for shape ({glue:text}`shapes-shape-DINO-best:.2f`) and {glue:text}`shapes-texture-DINO`
# for texture ({glue:text}`shapes-texture-DINO-best:.2f`).
#
# Of twelve blocks, the published probes are best at depth {glue:text}`published-MoCo` in MoCo v3, at depth
# {glue:text}`published-SimMIM` in SimMIM and at depth {glue:text}`published-MAE` in MAE. MAE is a masked model with a
# decoder of its own, and its curve falls little: that is the evidence for the reading that a masked model without
# a decoder makes one of its last blocks. {glue:text}`published`

# %% [markdown]
# ## Without training anything
#
# A probe that is trained can pick out a direction that hardly varies. Voting among the nearest training images
# cannot, so {term}`k-NN` shows what the features are mostly about.

# %%
axes = plots.panels(titles, columns=len(titles), sharey=True)
for ax, ((s, _), rows) in zip(axes, panels.items(), strict=True):
    plots.by_depth(rows, "knn", ax, reference=chance.get(s))
    ax.label_outer()
plots.legend_below(axes)
plots.show(axes, "Accuracy of k-NN against depth, a line per model; a panel per label and study.")

# %% tags=["remove-cell"]
for (s, label), rows in panels.items():
    for who, depth in peak(rows, "knn").items():
        glue(f"{s}-{label}-{who}-knn", depth, display=False)

# %% [markdown]
# k-NN is best at depth {glue:text}`shapes-shape-CL-knn` for shape and {glue:text}`shapes-texture-CL-knn` for texture in
# CL, at {glue:text}`shapes-shape-MIM-knn` and {glue:text}`shapes-texture-MIM-knn` in MIM, and for photographs at
# {glue:text}`cifar10-class-CL-knn` in CL and {glue:text}`cifar10-class-MIM-knn` in MIM. Where the two probes disagree about the
# best depth, the label is there in a direction that other things outweigh.

# %% [markdown]
# ## Which blocks could be made new?
#
# Another way to ask what a layer is worth: give some blocks random weights again, fine-tune the whole encoder, and see
# what is lost. Blocks that only serve the pre-training task cost nothing. Left, the first blocks are new, right the last
# ones; the dashed line is an encoder with nothing pre-trained. The table is too slow for a build;
# `make results STUDY=shapes` and `make results STUDY=cifar10` make it again.

# %% tags=["hide-input"]
import pandas as pd

own = [s for s in STUDIES if study(s).splits]  # with encoders small enough to be fine-tuned
pair = {s: study(s).trained("cl", "mim") for s in own}
kept = {s: table(s, "fine_tuning", [*pair[s], f"{s}.random"]).query("share == 1") for s in own}
new = {s: pd.concat([kept[s], table(s, "new_blocks", pair[s])], ignore_index=True) for s in own}

# %%
from itertools import product

ends = list(product(own, ("first", "last")))
axes = plots.panels([f"{end} blocks, {plots.title(new[s])}" for s, end in ends], columns=2, sharey="row")
for ax, (s, end) in zip(axes, ends, strict=True):
    trained, scratch = (new[s][(new[s]["objective"] == "random") == is_random] for is_random in (False, True))
    rows = trained[trained["last" if end == "first" else "first"] == 0].assign(parameter=trained[end])
    reference = (scratch["value"].iloc[0], "untrained")
    plots.by_parameter(rows, "fine_tuning", f"{end} blocks made new", ax, reference)
axes[0].legend()
plots.show(
    axes,
    "Accuracy after fine-tuning against how many first or last blocks were made new, CL and MIM per study.",
)

# %% tags=["remove-cell"]
most = int(max(frame["first"].max() for frame in new.values()))
glue("new", most, display=False)
for s, frame in new.items():
    lost = frame.assign(
        value=100 * (frame["model"].map(kept[s].set_index("model")["value"]) - frame["value"])
    )
    for end in ("first", "last"):
        for who, value in by_label(lost[lost[end] == most]).items():
            glue(f"{s}-{who}-{end}-lost", value, display=False)

# %% [markdown]
# Without the first {glue:text}`new` blocks, CL loses {glue:text}`shapes-CL-first-lost:.1f` points and MIM
# {glue:text}`shapes-MIM-first-lost:.1f` on `shapes`, {glue:text}`cifar10-CL-first-lost:.1f` and
# {glue:text}`cifar10-MIM-first-lost:.1f` on CIFAR-10; without the last {glue:text}`new`, {glue:text}`shapes-CL-last-lost:.1f` and
# {glue:text}`shapes-MIM-last-lost:.1f`, {glue:text}`cifar10-CL-last-lost:.1f` and {glue:text}`cifar10-MIM-last-lost:.1f`.

# %% [markdown]
# ## What would refute it
#
# A masked encoder without a decoder of its own whose probe is best at its last block, or a contrastive encoder whose probe
# is best in the middle, by more than the interval over images; or a contrastive encoder that is ahead from the first
# block on. A difference within the bands says neither.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("components/layers", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Probe the class token instead: `nbhelpers.probes.linear_by_depth(..., pool="class")`, for a model that has one.
# 3. Pass the tokens through the model's final norm first (`norm=True`). Which depths change, and why only those?
