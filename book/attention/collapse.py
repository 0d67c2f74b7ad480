# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Attention collapse
#
# **Claim.** In the later layers of a contrastive encoder, all query tokens attend to nearly the same place: the
# map no longer depends on where the query is. {cite:t}`park2023what` call this *attention collapse* and measure
# it by the mutual information of query and key, which is low for CL and high for MIM.
#
# Let $A_{qk}$ be the attention of query token $q$ to key token $k$ among the $N$ patch tokens, with rows that sum
# to one. Queries are equally likely, $p(q) = 1/N$, so a key is attended with $p(k) = \sum_q A_{qk} / N$, and
#
# $$
# \mathrm{NMI} = \frac{I(q; k)}{\sqrt{H(q)\,H(k)}}, \qquad
# I(q; k) = \sum_{q,k} \frac{A_{qk}}{N} \log \frac{A_{qk}}{p(k)} .
# $$ (eq-nmi)
#
# {term}`NMI` is 0 when every query has the same map, whatever that map is, and 1 when every query attends to one
# key of its own. A map that is flat and a map that singles out one object both give 0; the
# **attention entropy** $-\sum_k A_{qk} \log A_{qk} / \log N$, averaged over queries, tells them apart: it is 1 only for
# the flat one.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # a list of encoders by name, for example ["vit_small_patch16_224.dino"]; None: the study's own

# %% [markdown]
# ## Mutual information by depth
#
# One pass over the same images for every model gives both quantities, per image, layer and head. Lines are means
# over heads with the 95 % interval over images, dots are single heads. The panel on the right is the paper's own
# curve for encoders of twelve blocks.

# %%
from nbhelpers import plots, study
from nbhelpers.results import published, table

plots.style()
frames = [table(name, "metrics", MODELS) for name in STUDIES]
axes = plots.beside_published(frames, "nmi", published(), heads=True)
plots.show(
    axes, "NMI of query and key against depth, a line per model and a dot per head; one panel per study."
)

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import against_published, late, peak

for name, frame in zip(STUDIES, frames, strict=True):
    for objective, value in late(frame, "nmi").items():
        glue(f"{name}-{objective}", value, display=False)
    for objective, depth in peak(frame, "nmi").items():
        glue(f"{name}-{objective}-peak", depth, display=False)
    for objective, value in late(frame, "attention_entropy").items():
        glue(f"{name}-{objective}-entropy", value, display=False)
glue("published", against_published(frames, "nmi"), display=False)

# %% [markdown]
# Averaged over the last third of the blocks, NMI is {glue:text}`shapes-CL:.3f` for CL and {glue:text}`shapes-MIM:.3f`
# for MIM on `shapes`, {glue:text}`cifar10-CL:.3f` and {glue:text}`cifar10-MIM:.3f` on CIFAR-10. CL's NMI is highest
# at block {glue:text}`shapes-CL-peak` on `shapes` and at block {glue:text}`cifar10-CL-peak` on CIFAR-10.
#
# {glue:text}`published`

# %% [markdown]
# ## Flat, or the same object for all?
#
# A low NMI has two causes, and entropy separates them. The dashed line is uniform attention.

# %%
axes = plots.panels([plots.title(frame) for frame in frames], sharey=True)
for ax, frame in zip(axes, frames, strict=True):
    plots.by_depth(frame, "attention_entropy", ax, heads=True, reference=(1, "uniform attention"))
axes[0].legend()
plots.show(
    axes, "Attention entropy against depth, a line per model and a dot per head; uniform attention is at 1."
)

# %% [markdown]
# In the last third of the blocks, CL's entropy is {glue:text}`shapes-CL-entropy:.3f` on `shapes` and
# {glue:text}`cifar10-CL-entropy:.3f` on CIFAR-10, MIM's {glue:text}`shapes-MIM-entropy:.3f` and
# {glue:text}`cifar10-MIM-entropy:.3f`. Attention that is selective and yet the same for all queries lies low in
# both figures; attention that has stopped selecting lies low in the first and at the dashed line here. The random
# initialisation is of the second kind.

# %% [markdown]
# ## One method, or a kind of method?
#
# DINO has neither negatives nor InfoNCE, but it too asks for one representation of two views. {term}`MAE` hides patches as
# SimMIM does, but its encoder never sees a mask token. Supervised training has one answer per image
# as well, and is given it.

# %%
kinds = ["cl", "dino", "mim", "mae", "supervised"]
others = [table(name, "profile", MODELS or study(name).trained(*kinds)) for name in STUDIES]
others = [frame[~frame["model"].str.endswith(":decoder")] for frame in others]
axes = plots.beside_published(others, "nmi", published(), models=("MoCo v3", "DINO", "SimMIM", "MAE"))
plots.show(axes, "NMI of query and key against depth, a line per objective; one panel per study.")

# %% tags=["hide-input"]
from IPython.display import Markdown

Markdown(
    "\n".join(
        f"- `{name}`, NMI in the last third of the blocks: "
        + ", ".join(f"{who} {value:.3f}" for who, value in late(frame, "nmi").items())
        + "."
        for name, frame in zip(STUDIES, others, strict=True)
    )
)

# %% [markdown]
# The encoders here are trained briefly. What [more training](../components/behaviour.py) does to these curves is in the
# chapter on behaviour.

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose NMI in the last third of its blocks is not below that of a masked encoder of the same
# architecture, trained on the same images; or a low NMI that comes with an entropy of 1, since then nothing has
# collapsed: the layer does not select at all.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("attention/collapse", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put a model of yours, or any name that `timm` knows, into `MODELS` and run the page again.
# 2. Draw `"attention_distance"` instead of `"nmi"`, and see whether the two orders of models agree.
# 3. Compare heads: which block has the widest spread of dots, and does it differ between CL and MIM?
