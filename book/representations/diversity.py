# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Diversity of representations
#
# **Claim.** The representations of a contrastive encoder are more alike than those of a masked image model: across
# heads, across depths and across the tokens of an image, above all in the later layers. Attention that
# [looks the same from everywhere](../attention/collapse.py) gives every token the same answer
# {cite:p}`park2023what`.
#
# How alike $M$ vectors $v_1, \dots, v_M$ are is the mean cosine over all pairs of different ones,
#
# $$
# \bar c = \frac{1}{M (M - 1)} \sum_{i \ne j} u_i \cdot u_j
#        = \frac{\lVert \sum_i u_i \rVert^2 - M}{M (M - 1)}, \qquad u_i = \frac{v_i}{\lVert v_i \rVert} ,
# $$ (eq-cosine)
#
# where the second form needs no pairs. It is 1 when all vectors point one way, 0 when they are orthogonal or spread
# evenly, and at least $-1 / (M - 1)$. Three sets of vectors are compared: the outputs of the $H$ heads for one token,
# the $N$ tokens of one image, and (with $M = 2$) one token before and after a step.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own

# %% [markdown]
# ## Between heads
#
# The output of head $h$ for a query token $q$ is $\sum_k A^h_{qk} v^h_k$. Heads with the same map still differ in
# their values $v^h$, so this cosine says whether heads *deliver* the same, not whether they look at the same place.

# %%
from nbhelpers import plots
from nbhelpers.results import table

plots.style()
frames = [table(study, "metrics", MODELS) for study in STUDIES]
axes = plots.panels([plots.title(frame) for frame in frames], sharey=True)
for ax, frame in zip(axes, frames, strict=True):
    plots.by_depth(frame, "head_cosine", ax, reference=(0, "orthogonal"))
axes[0].legend()
plots.show(axes, "Mean cosine between the heads' outputs for a token against depth, a line per model.")

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import late

METRICS = ["head_cosine", "across_attention_cosine", "across_block_cosine", "token_cosine"]
METRICS += ["attention_token_cosine"]
for study, frame in zip(STUDIES, frames, strict=True):
    for metric in METRICS:
        for objective, value in late(frame, metric).items():
            glue(f"{study}-{objective}-{metric}", value, display=False)

# %% [markdown]
# In the last third of the blocks the cosine between heads is {glue:text}`shapes-CL-head_cosine:.3f` for CL and
# {glue:text}`shapes-MIM-head_cosine:.3f` for MIM on `shapes`, {glue:text}`cifar10-CL-head_cosine:.3f` and
# {glue:text}`cifar10-MIM-head_cosine:.3f` on CIFAR-10. Heads have value projections of their own, so that those of an
# untrained encoder are orthogonal up to chance ({glue:text}`cifar10-random-head_cosine:.3f`, the sign differing from
# block to block): a cosine near 0 is where a model starts, and no sign of diversity that was learned.

# %% [markdown]
# ## Between depths
#
# The residual stream carries each token past the blocks. A cosine near 1 means that a step leaves the token's
# direction as it was. Upper row: before and after the self-attention of each block; lower row: between the outputs of
# consecutive blocks, which adds the MLP.

# %%
steps = ["across_attention_cosine", "across_block_cosine"]
axes = plots.panels(
    [plots.title(frame) for frame in frames] + [""] * len(frames),
    height=2.6,
    columns=len(frames),
    sharex=True,
    sharey=True,
)
for i, ax in enumerate(axes):
    plots.by_depth(frames[i % len(frames)], steps[i // len(frames)], ax)
    ax.label_outer()
axes[0].legend()
plots.show(axes, "Cosine of tokens before and after each attention, and each block, against depth.")

# %% [markdown]
# Late self-attentions leave a cosine of {glue:text}`shapes-CL-across_attention_cosine:.3f` in CL and
# {glue:text}`shapes-MIM-across_attention_cosine:.3f` in MIM on `shapes`,
# {glue:text}`cifar10-CL-across_attention_cosine:.3f` and {glue:text}`cifar10-MIM-across_attention_cosine:.3f` on
# CIFAR-10; whole blocks leave {glue:text}`shapes-CL-across_block_cosine:.3f` and
# {glue:text}`shapes-MIM-across_block_cosine:.3f`, {glue:text}`cifar10-CL-across_block_cosine:.3f` and
# {glue:text}`cifar10-MIM-across_block_cosine:.3f`. The higher of two numbers belongs to the model whose late blocks
# change less; the untrained encoder shows how much a block of this size changes before it has learned anything.

# %% [markdown]
# ## Between tokens
#
# Upper row: tokens of one image as the residual stream holds them, from the embedding (depth 0) on. Lower row: what
# self-attention gives to each token, before it is added. Collapsed attention must show in the lower row: tokens with
# the same map get the same output, a cosine of 1.

# %%
places = ["token_cosine", "attention_token_cosine"]
axes = plots.panels(
    [plots.title(frame) for frame in frames] + [""] * len(frames),
    height=2.6,
    columns=len(frames),
    sharex=True,
    sharey="row",
)
for i, ax in enumerate(axes):
    plots.by_depth(frames[i % len(frames)], places[i // len(frames)], ax, reference=(1, "all tokens alike"))
    ax.label_outer()
axes[0].legend()
plots.show(axes, "Mean cosine between tokens of an image, and between attention outputs, against depth.")

# %% [markdown]
# In the last third of the blocks, tokens of an image have a cosine of {glue:text}`shapes-CL-token_cosine:.3f` in CL
# and {glue:text}`shapes-MIM-token_cosine:.3f` in MIM on `shapes`, {glue:text}`cifar10-CL-token_cosine:.3f` and
# {glue:text}`cifar10-MIM-token_cosine:.3f` on CIFAR-10; their attention outputs
# {glue:text}`shapes-CL-attention_token_cosine:.3f` and {glue:text}`shapes-MIM-attention_token_cosine:.3f`,
# {glue:text}`cifar10-CL-attention_token_cosine:.3f` and {glue:text}`cifar10-MIM-attention_token_cosine:.3f`. The
# untrained encoder ({glue:text}`cifar10-random-attention_token_cosine:.3f` between outputs on CIFAR-10) attends
# uniformly, and its outputs are alike for that reason alone: a cosine is to be read beside its line.
#
# Neither the paper's code nor its poster gives numbers for these cosines, so there is no published curve to set
# beside them. A cosine also depends on the origin: a vector that all tokens of all images share raises it without
# making any two of them harder to tell apart. [Singular spectra](spectra.py) remove the mean first.

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose late tokens, or the outputs of whose late attentions, are not more alike than those of
# a masked encoder of the same architecture, trained on the same images, by more than the interval over images.
# Heads and depths are the weaker witnesses: there the random encoder already lies at an end of the scale.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("representations/diversity", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Draw `"nmi"` below `"attention_token_cosine"`: is a block with low NMI always one with outputs alike?
# 3. Take the mean over images off the tokens of `nbhelpers.probes.patch_tokens` before you compute
#    `nbhelpers.metrics.mean_pairwise_cosine`. What remains of the difference?
