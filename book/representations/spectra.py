# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Singular spectra
#
# **Claim.** Contrastive learning spreads *images* apart, masked image modelling spreads the *tokens* of an image
# apart {cite:p}`park2023what`. The claim is about two levels, and predicts the opposite order on each: over images,
# CL uses more directions than MIM; over the tokens of one image, MIM uses more directions than CL.
#
# Let $z_n$ be the patch tokens of an image at some depth. The spectrum of their covariance,
#
# $$
# \lambda = \operatorname{eig}\Big( \frac{1}{N - 1} \sum_n (z_n - \bar z)(z_n - \bar z)^\top \Big),
# \qquad \Delta \log \lambda_r = \log \lambda_r - \log \lambda_1 ,
# $$ (eq-spectrum)
#
# says how variance falls off over directions, ranked by size. At the **token level** the curves are averaged over
# images; $N$ tokens have at most $N - 1$ ranks. At the **image level**, $z_n$ is the mean token of image $n$ instead,
# and one covariance is taken over all images. The eigenvalues are squares of singular values of the centred data,
# after the author's own definition.
#
# A flat curve means that many directions are used, a steep one that few are. The **effective rank** makes it one
# number, between 1 and the number of ranks:
#
# $$
# \exp\Big( -\sum_r p_r \log p_r \Big), \qquad p_r = \lambda_r \Big/ \sum_{r'} \lambda_{r'} .
# $$ (eq-effective-rank)

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own

# %% [markdown]
# ## The tokens of an image
#
# One line per depth, from the embedding (light) to the last block (dark).

# %%
from nbhelpers import plots
from nbhelpers.results import table

plots.style()
frames = [table(study, "metrics", MODELS) for study in STUDIES]
models, titles = plots.per_model(frames)
axes = plots.panels(titles, height=2.3, columns=len(models) // len(frames), sharex=True, sharey=True)
for ax, rows in zip(axes, models, strict=True):
    plots.spectra(rows, "token_spectrum", ax).set_ylim(-25, 1)
    ax.label_outer()
plots.depth_bar(axes, frames[0]["depth"].max())
plots.show(
    axes, "Log eigenvalue of the tokens' covariance against rank, a panel per model, a line per depth."
)

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import late

for frame in frames:
    for objective, value in late(frame, "token_effective_rank").items():
        glue(f"{frame['study'].iloc[0]}-{objective}-tokens", value, display=False)

# %% [markdown]
# In the last third of the blocks the tokens of an image have an effective rank of
# {glue:text}`shapes-CL-tokens:.1f` in CL and {glue:text}`shapes-MIM-tokens:.1f` in MIM on `shapes`,
# {glue:text}`cifar10-CL-tokens:.1f` and {glue:text}`cifar10-MIM-tokens:.1f` on CIFAR-10. Part of it needs no
# image: the position embedding alone spreads the tokens, the same way in every image, which is most of what the
# untrained encoder has ({glue:text}`cifar10-random-tokens:.1f`).

# %% [markdown]
# ## The images of a set
#
# The same, with an image's mean token in place of a token and all images in place of one. The embedding (depth 0) of a
# patch is a linear map of its 4 x 4 x 3 numbers, so its curve ends at 48 directions; what lies beyond is rounding.

# %%
axes = plots.panels(titles, height=2.3, columns=len(models) // len(frames), sharex=True, sharey=True)
for ax, rows in zip(axes, models, strict=True):
    plots.spectra(rows, "image_spectrum", ax).set_ylim(-25, 1)
    ax.label_outer()
plots.depth_bar(axes, frames[0]["depth"].max())
plots.show(
    axes, "Log eigenvalue of the images' covariance against rank, a panel per model, a line per depth."
)

# %% [markdown]
# ## Both levels by depth
#
# Effective rank of every curve above: of tokens in the upper row, with the 95 % interval over images, of images in
# the lower row, where there is one covariance and no interval.

# %%
import pandas as pd
import torch

from nbhelpers.metrics import effective_rank

by = ["study", "source", "model", "objective", "seed", "depth"]
for i, frame in enumerate(frames):
    spectrum = frame[frame["metric"] == "image_spectrum"].groupby(by, sort=False, dropna=False)["value"]
    ranks = spectrum.agg(lambda values: effective_rank(torch.tensor(values.to_numpy())).item()).reset_index()
    ranks = ranks.assign(metric="image_effective_rank", head=-1, low=ranks["value"], high=ranks["value"])
    frames[i] = pd.concat([frame, ranks], ignore_index=True)

# %%
levels = ["token_effective_rank", "image_effective_rank"]
axes = plots.panels(
    [plots.title(frame) for frame in frames] + [""] * len(frames),
    height=2.6,
    columns=len(frames),
    sharex=True,
    sharey="row",
)
for i, ax in enumerate(axes):
    plots.by_depth(frames[i % len(frames)], levels[i // len(frames)], ax)
    ax.label_outer()
axes[0].legend()
plots.show(axes, "Effective rank of an image's tokens, and of the images, against depth, a line per model.")

# %% tags=["remove-cell"]
for frame in frames:
    for objective, value in late(frame, "image_effective_rank").items():
        glue(f"{frame['study'].iloc[0]}-{objective}-images", value, display=False)

# %% [markdown]
# In the last third of the blocks the images have an effective rank of {glue:text}`shapes-CL-images:.1f` in CL and
# {glue:text}`shapes-MIM-images:.1f` in MIM on `shapes`, {glue:text}`cifar10-CL-images:.1f` and
# {glue:text}`cifar10-MIM-images:.1f` on CIFAR-10, of {glue:text}`cifar10-random-images:.1f` in the untrained encoder.
# The claim holds on a study where CL has the larger of the two numbers here and the smaller of the two at the token
# level. Which level tells what: images spread over many directions are what a linear classifier of whole images can
# use; tokens spread over many directions within an image are what a task per place, such as segmentation, can use.
#
# The released code has no spectra and the poster no numbers for them, so no published curve is shown; the definition
# is the one that the author gave in answer to a question.

# %% [markdown]
# ## What would refute it
#
# On either study, an effective rank of tokens in the last third of the blocks that is not lower in CL than in MIM,
# or one of images that is not higher. The two can fail apart: a model whose tokens collapse and whose images do too
# has lost both.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("representations/spectra", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Draw absolute instead of relative spectra with `nbhelpers.metrics.token_spectrum`: does the largest eigenvalue
#    grow with depth, and in which model?
# 3. Leave the first direction out: `effective_rank` of the ranks from 2 on. For which model does that change most?
