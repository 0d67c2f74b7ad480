# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Attention distance
#
# **Claim.** Contrastive encoders look further: their self-attention reaches over a longer distance than that of
# masked image models, above all in the later layers {cite:p}`park2023what`.
#
# The **attention distance** of a head is the distance in pixels between a query patch and the patches it attends
# to, weighted by attention and averaged over the $N$ queries:
#
# $$
# D = \frac{1}{N} \sum_{q} \sum_{k} A_{qk}\, \lVert x_q - x_k \rVert ,
# $$ (eq-distance)
#
# with $x$ the centres of the patches and $A$ the attention among patch tokens alone, rows summing to one. It plays
# the role of the receptive field's size in a convolutional network. Attention that is the same everywhere has a
# distance too: 116.49 px on a grid of 14 x 14 patches of 16 px. A curve is readable only beside that line.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own

# %% [markdown]
# ## Distance by depth
#
# Lines are means over heads with the 95 % interval over images, dots are single heads. The dashed lines are uniform
# attention: computed from the patch grid, so they differ between our encoders and ViT-B/16.

# %%
from nbhelpers import load, plots
from nbhelpers.metrics import patch_distances
from nbhelpers.results import published, table
from nbhelpers.studies import label

plots.style()
frames = [table(study, "metrics", MODELS) for study in STUDIES]

# %%
encoders = [load(frame["model"].iloc[0]) for frame in frames]
grids = [*((encoder.grid, encoder.patch_size) for encoder in encoders), ((14, 14), 16)]  # ViT-B/16 last
uniform = [float(patch_distances(*grid).mean()) for grid in grids]
axes = plots.beside_published(
    frames,
    "attention_distance",
    published(),
    references=[(px, "uniform") for px in uniform],
    heads=True,
    sharey=False,
)
plots.show(
    axes, "Attention distance in pixels against depth, a line per model and a dot per head, uniform dashed."
)

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import against_published, late

for study, frame in zip(STUDIES, frames, strict=True):
    for objective, value in late(frame, "attention_distance").items():
        glue(f"{study}-{objective}", value, display=False)
glue("uniform", uniform[0], display=False)
glue("published", against_published(frames, "attention_distance"), display=False)

# %% [markdown]
# In the last third of the blocks the distance is {glue:text}`shapes-CL:.1f` px for CL and
# {glue:text}`shapes-MIM:.1f` px for MIM on `shapes`, {glue:text}`cifar10-CL:.1f` and {glue:text}`cifar10-MIM:.1f` px
# on CIFAR-10; uniform attention on this grid has {glue:text}`uniform:.2f` px, and an untrained encoder
# {glue:text}`shapes-random:.1f` px.
#
# The published curves are MoCo v3 and SimMIM, ViT-B/16, read off the output of the paper's own code (MoCo v3) and
# of a third party's run of the same code with the official weights (SimMIM); bars are the reading error.
# {glue:text}`published`

# %% [markdown]
# ## Near, far, or not looking at all?
#
# A distance close to the dashed line can mean an attention map that follows a large object, and it can mean a map
# that is flat. The two are told apart by the entropy of each head: a head that selects lies left of 1.

# %%
axes = plots.panels([plots.title(frame) for frame in frames])
for ax, frame in zip(axes, frames, strict=True):
    heads = frame[frame["head"] >= 0].pivot(
        index=["model", "objective", "depth", "head"], columns="metric", values="value"
    )
    for (model, objective), dots in heads.groupby(["model", "objective"], sort=False):
        look = plots.line_style(model, objective) | {"linestyle": "none"}
        name = label(model, objective)
        ax.plot(dots["attention_entropy"], dots["attention_distance"], label=name, alpha=0.6, **look)
    ax.set(xlabel=plots.LABELS["attention_entropy"], ylabel=plots.LABELS["attention_distance"])
axes[0].legend()
plots.show(axes, "Attention distance against attention entropy: one dot per head of every block.")

# %% [markdown]
# Heads in the upper left look far and select; heads in the upper right are close to uniform, and their distance is
# that of the grid, not of anything in the image.

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose distance in the last third of its blocks is not above that of a masked encoder of the
# same architecture, trained on the same images, by more than the interval over images.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("attention/distance", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Which head looks furthest, and at which depth? Sort the rows of `frame` with `head >= 0`.
# 3. Compute the distance of the class token's attention from `nbhelpers.capture`, which records every token.
