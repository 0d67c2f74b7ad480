# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Frequencies
#
# **Claim.** Contrastive encoders keep the low frequencies of an image and lose the high ones; masked image models
# keep the high ones {cite:p}`park2023what`. Low frequencies carry outlines and layout, high frequencies carry
# texture.
#
# The patch tokens $z$ of an image, channel by channel, are a small picture on the patch grid. Its Fourier
# transform $\mathcal{F} z$ has an amplitude at every frequency, and the **Δ log amplitude** compares one frequency
# with the mean of the picture, frequency 0 {cite:p}`park2022how`:
#
# $$
# \Delta(f) = \Big\langle \log \lvert (\mathcal{F} z)(f, f) \rvert \Big\rangle
#           - \Big\langle \log \lvert (\mathcal{F} z)(0, 0) \rvert \Big\rangle ,
# $$ (eq-delta-log-amplitude)
#
# averaged over channels and images after the logarithm. It is 0 for tokens whose high frequencies are as strong as
# their mean, and the lower the smoother they are over the grid.
#
# Frequencies are given as a share of the grid's Nyquist frequency, one wave per two patches. The paper reports the
# last point of the diagonal below it: on a grid of 14 x 14 that is 6/7 of Nyquist on both axes. Our grid is 8 x 8,
# so its last point is {glue:text}`frequency:.2f` of Nyquist, a slightly coarser pattern.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own

# %% [markdown]
# ## High frequencies by depth
#
# A line per model, with the 95 % interval over images. Depth 0 is the embedding: patches and positions, before any
# block.

# %%
from nbhelpers import plots
from nbhelpers.results import published, table

plots.style()
frames = [table(study, "metrics", MODELS) for study in STUDIES]
axes = plots.beside_published(frames, "delta_log_amplitude", published())
plots.show(axes, "Δ log amplitude near Nyquist against depth, a line per model; one panel per study.")

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import against_published, late

rows = published().query("metric == 'delta_log_amplitude' and model in ['MoCo v3', 'SimMIM']")
theirs = rows.pivot(index="depth", columns="objective", values="value")
glue("published-first", float((theirs["MIM"] - theirs["CL"])[1]), display=False)
glue("published-last", float((theirs["MIM"] - theirs["CL"]).iloc[-1]), display=False)
for study, frame in zip(STUDIES, frames, strict=True):
    for objective, value in late(frame, "delta_log_amplitude").items():
        glue(f"{study}-{objective}", value, display=False)
point = frames[0][frames[0]["metric"] == "delta_log_amplitude"]
glue("frequency", float(point["frequency"].iloc[0]), display=False)
glue("published", against_published(frames, "delta_log_amplitude"), display=False)

# %% [markdown]
# In the last third of the blocks Δ log amplitude is {glue:text}`shapes-CL:.2f` for CL and {glue:text}`shapes-MIM:.2f`
# for MIM on `shapes`, {glue:text}`cifar10-CL:.2f` and {glue:text}`cifar10-MIM:.2f` on CIFAR-10, and
# {glue:text}`shapes-random:.2f` and {glue:text}`cifar10-random:.2f` in the untrained encoders. The claim holds on a study
# where CL's number is the lower one.
#
# In the published curves MIM lies above CL by {glue:text}`published-first:.2f` after the first block and by
# {glue:text}`published-last:.2f` after the last: the two differ most where the encoder begins. The last blocks of the
# masked model lower its high frequencies, which the authors read as blocks that work as a decoder. Levels of the
# two grids are not comparable one by one, since the reported frequencies differ; signs and shapes are.
# {glue:text}`published`

# %% [markdown]
# ## The whole spectrum
#
# One point of the diagonal cannot say whether the spectrum falls evenly. Here are all frequencies: rings of equal
# radius, in units of Nyquist on one axis, so that the corner of the spectrum is at 1.41. One line per depth, from
# the embedding (light) to the last block (dark).

# %%
models, titles = plots.per_model(frames)
axes = plots.panels(titles, height=2.3, columns=len(models) // len(frames), sharex=True, sharey=True)
for ax, rows in zip(axes, models, strict=True):
    plots.spectra(rows, "fourier_radial", ax)
    ax.label_outer()
plots.depth_bar(axes, frames[0]["depth"].max())
plots.show(axes, "Δ log amplitude against the radius of the frequency, a panel per model, a line per depth.")

# %% tags=["remove-cell"]
for study, frame in zip(STUDIES, frames, strict=True):
    rings = frame[frame["metric"] == "fourier_radial"]
    last = rings[rings["depth"] == rings["depth"].max()].sort_values("frequency")
    for objective, line in last.groupby("objective"):
        line = line.groupby("frequency")["value"].mean()
        glue(f"{study}-{objective}-low", float(line.iloc[1]), display=False)
        glue(f"{study}-{objective}-fall", float(line.iloc[1] - line.iloc[-1]), display=False)

# %% [markdown]
# After the last block, the step from the mean to the lowest ring is {glue:text}`shapes-CL-low:.2f` in CL and
# {glue:text}`shapes-MIM-low:.2f` in MIM on `shapes`, {glue:text}`cifar10-CL-low:.2f` and
# {glue:text}`cifar10-MIM-low:.2f` on CIFAR-10. From that ring to the corner the spectrum falls by another
# {glue:text}`shapes-CL-fall:.2f` and {glue:text}`shapes-MIM-fall:.2f`, and by {glue:text}`cifar10-CL-fall:.2f` and
# {glue:text}`cifar10-MIM-fall:.2f`.
#
# The first number belongs to the mean: tokens that share a large common vector have all other frequencies far below
# it, however they vary over the grid. Only the second is about smooth against rough. A low point in the first figure
# means that high frequencies are lost when it comes from the second; when it comes from the first, the tokens of an
# image have become alike, which is what the chapter on [diversity](diversity.py) measures.

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose Δ log amplitude in the last third of its blocks is not below that of a masked encoder of
# the same architecture, trained on the same images, by more than the interval over images. A lower value with a
# spectrum that does not fall more steeply beyond the first ring would not refute the number, but its reading.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("representations/frequency", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Draw `"fourier_diagonal"` instead of `"fourier_radial"`: its last point is the one in the first figure.
# 3. The position embedding is part of every token, the same in every image. Take it out of depth 0 with
#    `nbhelpers.metrics.delta_log_amplitude`: how much of the untrained encoder's curve was position?
