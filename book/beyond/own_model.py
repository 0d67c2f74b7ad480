# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Your own model
#
# **Claim.** Nothing in this book is tied to its models. Any Vision Transformer with softmax attention over one grid
# of patches can be read: change one line below and every figure of the book is drawn for your model.
#
# What the figures need to know about a model is little: the queries $q$, keys $k$ and values $v$ of every block as
# the model uses them, and the residual stream $z_l$ between blocks. They are taken from the running model, after
# normalisation, rotary positions and position bias, so no code of the model has to change.

# %% tags=["parameters"]
MODEL = "cifar10.mim"  # a timm name, "hf-hub:...", a .safetensors file, or "random:" and an architecture
BESIDE = "cifar10.cl"  # another one to compare with
IMAGES = "shapes"  # a study, or "folder:/path/to/images"
N_IMAGES = 500

# %% [markdown]
# ## What was read off the model
#
# Prefix tokens, patch grid and preprocessing come from the model. If a row of this table is not what you expect,
# no figure further down can be trusted.

# %%
from nbhelpers import load, study
from nbhelpers.report import layout

encoders = [load(MODEL), load(BESIDE)]
images = study(IMAGES).images("test").subset(N_IMAGES, seed=0)
layout(encoders).style.hide(axis="index").format(precision=2)

# %% [markdown]
# ## Every figure at once
#
# One pass over the images per model measures everything; depth 0 is the embedding. `DRAWINGS` holds a caption for
# each.

# %%
import pandas as pd

from nbhelpers import analyse, plots
from nbhelpers.metrics import METRICS
from nbhelpers.report import DRAWINGS

plots.style()
frame = pd.concat([analyse(encoder, images, list(METRICS)) for encoder in encoders])
axes = plots.panels([drawing.metric.replace("_", " ") for drawing in DRAWINGS], columns=2)
for ax, drawing in zip(axes, DRAWINGS, strict=True):
    drawing.draw(frame, drawing.metric, ax)
plots.show(axes, "Twelve metrics of attention and residual stream against depth, a line per model.")

# %% tags=["remove-cell"]
from myst_nb import glue

nmi = frame[(frame["metric"] == "nmi") & (frame["head"] < 0)]
last = nmi[nmi["depth"] == nmi.groupby("model")["depth"].transform("max")].set_index("model")["value"]
glue("model", MODEL, display=False)
glue("beside", BESIDE, display=False)
glue("last-model", float(last[MODEL]), display=False)
glue("last-beside", float(last[BESIDE]), display=False)

# %% [markdown]
# In the last block, the NMI of {glue:text}`model` is {glue:text}`last-model:.3f`, that of {glue:text}`beside`
# {glue:text}`last-beside:.3f`.
#
# ## From a shell
#
# The same, as a folder with a page, its figures and the numbers behind them:
#
# ```bash
# python -m nbhelpers.analyse vit_small_patch16_224.dino --images /path/to/images --out report
# ```

# %% [markdown]
# ## A module that nobody registered
#
# A model of your own needs a description of its tokens where it carries none: how many stand before the patches,
# and how the patches are arranged. The rest is the same.

# %%
import timm

from nbhelpers.models import wrap

mine = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=3)
encoder = wrap(mine, prefix=1, grid=(4, 6), patch_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine")
ax = plots.by_depth(analyse(encoder, images.subset(16), ["nmi"]), "nmi", heads=True)
plots.show(ax, "NMI against depth of an untrained module on a grid of four by six patches, a dot per head.")

# %% [markdown]
# Its weights are random, so its attention is nearly uniform and its NMI nearly 0: what an untrained model looks like
# in every figure of this book.
#
# ## What cannot be read
#
# Architectures whose attention is confined to windows (Swin), pools its queries or keys (Hiera, MViT), or runs over
# channels (XCiT) have no $N \times N$ map over one grid. They are refused by name, with the reason, rather than
# measured wrongly.

# %%
from nbhelpers.models import UnsupportedArchitecture

try:
    wrap(timm.create_model("xcit_nano_12_p16_224"))
except UnsupportedArchitecture as reason:
    print(reason)

# %% [markdown]
# One small model of every family of timm's ViTs was run with random weights (`python -m nbhelpers.coverage`). These
# can be analysed, as can their relatives of other sizes:

# %%
from nbhelpers.coverage import PATH

families = pd.read_csv(PATH).convert_dtypes()
families[families["outcome"] == "analysed"].drop(columns=["outcome", "reason"]).style.hide(axis="index")

# %% [markdown]
# And these are refused, with the reason:

# %%
refused = families[families["outcome"] == "refused"]
refused[["family", "reason"]].style.hide(axis="index")

# %% [markdown]
# ## Try it yourself
#
# 1. Set `MODEL` to a name that `timm` knows, such as `"vit_base_patch16_224.mae"`.
# 2. Set `IMAGES` to a folder of your own photographs.
# 3. Fine-tune a model and put it beside the one you started from: which figures move most?
