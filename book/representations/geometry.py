# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Token geometry
#
# **Claim.** Self-attention of a contrastive encoder moves all tokens of an image in unison, that of a masked image
# model moves each one separately. So CL tells images apart, with all tokens of an image in one clump, and MIM tells
# tokens apart, with those of different images mixed {cite:p}`park2023what`.
#
# Let $z_n$ be the $N$ patch tokens of an image before a block's self-attention, $z'_n$ after its residual, and
# $u_n = z'_n - z_n$ the update. The share of it that is common to all tokens is
#
# $$
# \frac{N \lVert \bar u \rVert^2}{\sum_n \lVert u_n \rVert^2}, \qquad \bar u = \frac{1}{N} \sum_n u_n ,
# $$ (eq-common-update)
#
# 1 when all tokens move by the same vector, and about $1/N$ when each goes its own way.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own
IMAGE = 7  # which generated test image has its tokens drawn
DEPTH = 8  # block whose output t-SNE is given
SEED = 0  # which 18 images, and where t-SNE starts

# %% [markdown]
# ## One image, before and after each attention
#
# The tokens of one image in the plane of the two principal components of both sets together. A line runs from where
# a token was to the dot where it is after self-attention; the number is the common share of the update, in all
# dimensions. First a generated image:

# %%
from nbhelpers import plots, study
from nbhelpers.capture import capture
from nbhelpers.images import photographs
from nbhelpers.metrics import patch_tokens
from nbhelpers.studies import label


def token_steps(encoders, image):
    """Tokens before and after each self-attention, drawn."""
    steps, colours = {}, {}
    for encoder in encoders:
        places = []  # the residual stream: block 0, after attention 1, block 1, after attention 2, ...
        with capture(
            encoder, on_stream=lambda record, kept=places: kept.append(patch_tokens(record)[0].cpu())
        ):
            encoder.forward(image)
        name = label(encoder.name, encoder.objective)
        steps[name] = list(zip(places[0::2], places[1::2], strict=False))
        colours[name] = plots.line_style(encoder.name, encoder.objective)["color"]
    return plots.token_steps(steps, DEPTHS, colours)


plots.style()
DEPTHS = (1 / 8, 2 / 8, 4 / 8, 6 / 8, 7 / 8, 1)  # as shares of each model's own
generated = study("shapes").images("test").batch([IMAGE])
figure = token_steps(study("shapes").encoders(MODELS), generated)
plots.show(figure, "Tokens of a generated image before and after self-attention, a row per model.")

# %% [markdown]
# Then a photograph, which comes with scikit-image, shown to the encoders trained on CIFAR-10:

# %%
figure = token_steps(study("cifar10").encoders(MODELS), photographs(32).batch([0]))
plots.show(figure, "Tokens of a photograph before and after self-attention, a row per model.")

# %% [markdown]
# ## The common share by depth
#
# The same number for many images. The dashed line is $1/N$: updates that have nothing in common.

# %%
from nbhelpers import load
from nbhelpers.results import table

frames = [table(name, "metrics", MODELS) for name in STUDIES]
axes = plots.panels([plots.title(frame) for frame in frames], sharey=True)
for ax, frame in zip(axes, frames, strict=True):
    rows, columns = load(frame["model"].iloc[0]).grid
    plots.by_depth(frame, "common_update_share", ax, reference=(1 / (rows * columns), "independent"))
    ax.set_ylim(-0.12, 1.05)
    ax.label_outer()
axes[0].legend()
plots.show(axes, "Share of the update common to all tokens of an image against depth, a line per model.")

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import late

for name, frame in zip(STUDIES, frames, strict=True):
    for objective, value in late(frame, "common_update_share").items():
        glue(f"{name}-{objective}", value, display=False)

# %% [markdown]
# In the last third of the blocks the common share is {glue:text}`shapes-CL:.2f` for CL and
# {glue:text}`shapes-MIM:.2f` for MIM on `shapes`, {glue:text}`cifar10-CL:.2f` and {glue:text}`cifar10-MIM:.2f` on
# CIFAR-10. An untrained encoder has {glue:text}`cifar10-random:.2f`: its attention is uniform, gives every token the
# same output and moves all of them together, without telling anything apart. A high share is therefore where a model
# starts; a low one has been learned.
#
# There is no published number for it: the paper shows the picture.

# %% [markdown]
# ## Tokens of 18 images
#
# How far the tokens of a few images fall into groups is the **silhouette**: with $a$ the mean distance of a token to
# the others of its group and $b$ that to the nearest other group, the mean of $(b - a) / \max(a, b)$. It is 1 for tight
# groups far apart, and 0 or below where there are none. Groups are the images (upper row) or their classes (lower row):
# six images from each of three classes, drawn by `SEED`. Distances are taken in the representation, in all dimensions.
# Where the photographs of CIFAR-10 are not at hand, this part shows `shapes` alone.

# %%
import pandas as pd

from nbhelpers.probes import silhouette_by_depth, token_map

few = {}  # study: its 18 images
for name in STUDIES:
    if study(name).missing is None:
        images = study(name).images("test")
        kind = next(iter(images.labels))  # an object's shape, a photograph's class
        few[name] = images.restrict(images.classes[kind][:3], kind).balanced(6, kind, seed=SEED)
pairs = [(encoder, few[name]) for name in few for encoder in study(name).encoders(MODELS)]
scores = pd.concat(silhouette_by_depth(*pair, label=next(iter(pair[1].labels))) for pair in pairs)
scores = scores.assign(source="computed")

# %%
groups = ["silhouette_image", "silhouette_label"]
frames = [scores[scores["study"] == name] for name in few]
titles = [plots.title(frame) for frame in frames]
axes = plots.panels(titles + [""] * len(few), height=2.6, columns=len(few), sharex=True, sharey="row")
for i, ax in enumerate(axes):
    plots.by_depth(frames[i % len(few)], groups[i // len(few)], ax, reference=(0, "no groups"))
    ax.label_outer()
axes[0].legend()
plots.show(axes, "Silhouette of tokens by image, and by class, against depth, a line per model.")

# %% tags=["remove-cell"]
for name, frame in zip(few, frames, strict=True):
    for group in groups:
        for objective, value in late(frame, group).items():
            glue(f"{name}-{objective}-{group}", f"{value:.2f}", display=False)

# %% [markdown]
# In the last third of the blocks the silhouette by image is {glue:text}`shapes-CL-silhouette_image` for CL and
# {glue:text}`shapes-MIM-silhouette_image` for MIM on `shapes`, {glue:text}`cifar10-CL-silhouette_image` and
# {glue:text}`cifar10-MIM-silhouette_image` on CIFAR-10; by class it is {glue:text}`shapes-CL-silhouette_label` and
# {glue:text}`shapes-MIM-silhouette_label`, {glue:text}`cifar10-CL-silhouette_label` and
# {glue:text}`cifar10-MIM-silhouette_label`. A positive number by image says that an image's tokens keep together, as
# the claim has it for CL; one near zero or below, that a token lies as near to tokens of other images.
#
# ## A map of them
#
# t-SNE puts tokens near each other that are near each other in the representation. (The paper's notebook asks for
# "depth 10" of a list that holds the embedding and then two entries per block, so what it draws is the output of
# block 5. Here a depth is a block, and the figure above shows what another `DEPTH` would give.)

# %%
maps = [token_map(*pair, DEPTH, perplexity=20, seed=SEED) for pair in pairs]
titles = [f"{m['study'][0]}: {label(m['model'][0], m['objective'][0])}" for m in maps]
columns = len(maps) // len(few)
axes = plots.panels(titles, height=3, columns=columns)
for i, (ax, points) in enumerate(zip(axes, maps, strict=True)):
    plots.token_map(points, "shape" if "shape" in points else "class", ax, legend=i % columns == 0)
plots.show(axes, "t-SNE of the tokens of 18 images, a panel per model, coloured by class.")

# %% [markdown]
# The same maps, with a colour per image:

# %%
axes = plots.panels(titles, height=3, columns=columns)
for ax, points in zip(axes, maps, strict=True):
    plots.token_map(points, "image", ax, legend=False)
plots.show(axes, "t-SNE of the tokens of 18 images, a panel per model, coloured by image.")

# %% tags=["remove-cell"]
from sklearn.metrics import silhouette_score

for points in maps:
    place, who = points[["x", "y"]], f"{points['study'][0]}-{points['objective'][0]}-map"
    for group in ("image", "shape" if "shape" in points else "class"):
        key = f"{who}-{'image' if group == 'image' else 'label'}"
        glue(key, f"{silhouette_score(place, points[group]):.2f}", display=False)
absent = [f"{name}-{objective}" for name in STUDIES if name not in few for objective in ("CL", "MIM")]
for who in absent:
    for key in (*groups, "map-image", "map-label"):
        glue(f"{who}-{key}", "(needs the photographs)", display=False)

# %% [markdown]
# Where a map shows a lattice of small clumps, tokens lie together by their position in the patch grid, over all
# images: the position embedding alone does that. A map shows neighbours and distorts distances, so its silhouettes
# are numbers of their own: by image {glue:text}`shapes-CL-map-image` for CL and {glue:text}`shapes-MIM-map-image` for
# MIM on `shapes`, {glue:text}`cifar10-CL-map-image` and {glue:text}`cifar10-MIM-map-image` on CIFAR-10; by class
# {glue:text}`shapes-CL-map-label`, {glue:text}`shapes-MIM-map-label`, {glue:text}`cifar10-CL-map-label` and
# {glue:text}`cifar10-MIM-map-label`. In the paper's map, CL has one clump per image, and MIM mixes the tokens of
# different images of a class (published; a picture without numbers).

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose common share of the update in the last third of the blocks is not higher than that of a
# masked encoder of the same architecture, trained on the same images; or one whose tokens, grouped by image, have no
# higher silhouette. A common share as high as the untrained encoder's, with a silhouette near zero, would say that
# tokens move together to no purpose.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("representations/geometry", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Set `DEPTH` to the block where the silhouettes by image of CL and MIM lie furthest apart.
# 3. Set `SEED` to another number: which of the things you saw in the maps are still there?
