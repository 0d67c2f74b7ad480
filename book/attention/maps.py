# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Attention maps
#
# **Claim.** Ask a contrastive encoder where two different tokens of an image look, and in its late layers both
# answer with the same map, often the outline of the object. Ask a masked image model, and each token looks around
# itself {cite:p}`park2023what`.
#
# The map of a query token $q$ is the row $A_{q\cdot}$ of the attention among the patch tokens,
#
# $$
# A_{qk} = \frac{\exp(q_q \cdot k_k / \sqrt{d})}{\sum_{k'} \exp(q_q \cdot k_{k'} / \sqrt{d})} ,
# $$
#
# and how alike the maps of two queries are is the cosine $\cos(A_{q\cdot}, A_{q'\cdot})$, from 0 (they share no key) to
# 1 (the same map).

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own
IMAGE = 7  # which generated test image
QUERIES = [(0.2, 0.2), (0.55, 0.55)]  # places of the two queries: shares of the image's height and width

# %% [markdown]
# ## Two queries on one image
#
# Maps are averaged over heads and lie over the image; the query patch is outlined. The scale is that of each map, from
# nothing to its maximum. First a generated image:

# %%
from nbhelpers import plots, study
from nbhelpers.images import photographs
from nbhelpers.measure import attention_maps
from nbhelpers.studies import label


def maps(encoders, image):
    return {label(e.name, e.objective): attention_maps(e, image)[:, 0] for e in encoders}


plots.style()
DEPTHS = (1 / 8, 3 / 8, 5 / 8, 1)  # as shares of each model's own
generated = study("shapes").images("test").batch([IMAGE])
figure = plots.query_maps(generated, maps(study("shapes").encoders(MODELS), generated), QUERIES, DEPTHS)
plots.show(figure, "Attention maps of two query patches at four depths, a row per model and query.")

# %% [markdown]
# Then a photograph, which comes with scikit-image, shown to the encoders trained on CIFAR-10:

# %%
photograph = photographs(32).batch([0])
figure = plots.query_maps(photograph, maps(study("cifar10").encoders(MODELS), photograph), QUERIES, DEPTHS)
plots.show(figure, "Attention maps of two query patches of a photograph at four depths, per model and query.")

# %% [markdown]
# ## One head at a time
#
# An average over heads can hide that each of them looks elsewhere. These are the heads of the last but one block,
# for the second query.

# %%
encoders = study("cifar10").encoders(MODELS)
figure = plots.head_maps(photograph, maps(encoders, photograph), QUERIES[1], depth=7 / 8)
plots.show(
    figure, "Attention maps of one query patch in every head of the last but one block, a row per model."
)

# %% [markdown]
# ## Any query, at any depth, in any head
#
# Click a patch of the image, or move the outlined query with the arrow keys once it has the focus. Each map is drawn
# on its own scale. The number below it is the attention distance of this one query, beside that of uniform
# attention: from a corner, every map reaches further than from the middle. Rows, columns and heads are counted from 0.

# %%
from nbhelpers import interactive

scenes = []
for number in (IMAGE, IMAGE + 1):
    image = study("shapes").images("test").batch([number])
    encoders = study("shapes").encoders(MODELS or ["shapes.cl", "shapes.mim"])
    scenes.append(interactive.Scene(f"generated image {number}", image, encoders))
pictures = photographs(32)
for number in (0, 2, 4):
    encoders = study("cifar10").encoders(MODELS or ["cifar10.cl", "cifar10.mim"])
    title = f"photograph, {pictures.classes['class'][number]}"
    scenes.append(interactive.Scene(title, pictures.batch([number]), encoders))
interactive.explore(scenes)

# %% [markdown]
# ## How similar are the maps of different queries?
#
# What the eye sees on one image is counted here over many: the mean cosine between the maps of all pairs of
# queries, per head, then averaged over heads.

# %%
from nbhelpers.results import table

frames = [table(name, "metrics", MODELS) for name in STUDIES]
axes = plots.panels([plots.title(frame) for frame in frames], sharey=True)
for ax, frame in zip(axes, frames, strict=True):
    plots.by_depth(frame, "query_cosine", ax, heads=True, reference=(1, "same map for all queries"))
axes[0].legend()
plots.show(
    axes, "Mean cosine between the attention maps of different queries against depth, a line per model."
)

# %% tags=["remove-cell"]
import torch
from myst_nb import glue

from nbhelpers.results import late, published_maps

paper = published_maps().set_index(["objective", "query"])["value"]
for objective in ("CL", "MIM"):
    one, two = (torch.tensor(paper[objective, query].to_numpy()) for query in (1, 2))
    glue(f"paper-{objective}", float(torch.cosine_similarity(one, two, dim=0)), display=False)
for name, frame in zip(STUDIES, frames, strict=True):
    for objective, value in late(frame, "query_cosine").items():
        glue(f"{name}-{objective}", value, display=False)

# %% [markdown]
# In the last third of the blocks the mean cosine is {glue:text}`shapes-CL:.2f` for CL and {glue:text}`shapes-MIM:.2f`
# for MIM on `shapes`, {glue:text}`cifar10-CL:.2f` and {glue:text}`cifar10-MIM:.2f` on CIFAR-10, where an untrained
# encoder has {glue:text}`cifar10-random:.2f`: its maps are flat, and flat maps are all alike. The two maps of the
# paper's own figure 2 have a cosine of {glue:text}`paper-CL:.2f` for MoCo v3 and {glue:text}`paper-MIM:.2f` for SimMIM
# (published; read off the poster's figure, each map scaled to its own range).
#
# A cosine of one has two causes, the same object for all and nothing in particular for all; the chapter on
# [attention collapse](collapse.py) tells them apart.

# %% [markdown]
# ## What would refute it
#
# Maps of a contrastive encoder's late layers that follow the query as closely as those of a masked encoder; in
# numbers, a cosine in the last third of the blocks that is not higher.
#
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Move the two queries: both onto the object, both onto the ground.
# 3. `photographs(32)` holds two more pictures. Is there one whose maps contradict the numbers?
