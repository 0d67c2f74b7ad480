# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The images
#
# **Claim.** In this book's generated images, the shape says next to nothing about the texture, so a model that names one
# of them has not inferred it from the other.
#
# The book asks whether an encoder relies on shape or on texture, whether it looks near or far, and whether it tells
# images or tokens apart. On photographs such questions are hard to pose, because shape, texture and class come together:
# what looks like fur is nearly always shaped like an animal. Most figures are therefore drawn twice: for `shapes`, images
# generated so that shape and texture are independent, and for the photographs of CIFAR-10.
#
# An image of `shapes` is $32 \times 32$ pixels and holds one object. Its pixels are
#
# $$
# x = c \,\bigl(a + t\,(b - a)\bigr) + (1 - c)\, g + \varepsilon ,
# $$
#
# where $c$ is the fraction of the pixel that the silhouette covers, $t$ a texture that mixes the two colours $a$ and $b$,
# $g$ a smooth coloured background, whose amplitude falls with frequency as $f^{-1.2}$, and $\varepsilon$ sensor noise.
# Silhouette and texture are drawn independently, each from ten; position, size, aspect ratio, angle, wavelength and
# colours are random.

# %% tags=["parameters"]
SPLIT = "test"
N_IMAGES = 4000
SEED = 0

# %% tags=["hide-input"]
from math import ceil

import pandas as pd
import torch
from IPython.display import Markdown
from scipy.stats import chi2
from scipy.stats.contingency import association

from nbhelpers import plots, study
from nbhelpers.images.shapes import SHAPES, TEXTURES
from nbhelpers.models import manifest

plots.style()
PAIRS = [f"{name}.{kind}" for name in ("shapes", "cifar10") for kind in ("cl", "mim")]
images = study("shapes").images(SPLIT).subset(N_IMAGES, seed=SEED)
shape, texture = images.labels["shape"], images.labels["texture"]

# %% [markdown]
# ## Result
#
# Cramér's $V$ measures how much two labels tell about each other, from 0 (nothing) to 1 (everything). With $n_{st}$ of
# the $n$ images having shape $s$ and texture $t$, and $\chi^2$ the deviation of these counts from independence,
#
# $$
# \begin{gathered}
# V = \sqrt{\frac{\chi^2}{n\,(10 - 1)}}, \\[0.6em]
# \chi^2 = \sum_{s,t} \frac{(n_{st} - n_{s\cdot}\, n_{\cdot t} / n)^2}{n_{s\cdot}\, n_{\cdot t} / n} .
# \end{gathered}
# $$

# %%
n_st = torch.zeros(10, 10, dtype=torch.float64)
n_st.index_put_((shape, texture), torch.ones(1, dtype=torch.float64), accumulate=True)
expected = n_st.sum(1, keepdim=True) * n_st.sum(0) / n_st.sum()
V = (((n_st - expected) ** 2 / expected).sum() / (n_st.sum() * 9)).sqrt()
torch.testing.assert_close(float(V), association(n_st.long().numpy(), method="cramer"))

# %% tags=["hide-input"]
limit = (chi2.ppf(0.95, 81) / (9 * len(images))) ** 0.5  # 9 x 9 degrees of freedom
verdict = "agree with" if V < limit else "contradict"
Markdown(
    f"The images **{verdict}** independent labels: Cramér's V is {V:.3f}, "
    f"and for labels drawn at random it stays below {limit:.3f} in 19 of 20 cases. "
    f"Among the {len(images):,} images, every pair of shape and texture occurs at least "
    f"{int(n_st.min())} times. "
    f"On average {100 * float(images.masks.float().mean()):.0f} % of an image's pixels "
    "belong to its object."
)

# %% [markdown]
# ## Every shape with every texture
#
# Each image has two labels: its row (shape) and its column (texture).

# %% mystnb={"image": {"alt": "A ten by ten table of generated images: each row is one silhouette, each column one texture, labelled with their names."}, "figure": {"caption": "Generated images: a row for each silhouette, a column for each texture. Position, size, angle, wavelength and colours are random."}}
table = [[(shape == s) & (texture == t) for t in range(10)] for s in range(10)]
chosen = [int(cell.nonzero()[0]) for row in table for cell in row]
ax = plots.gallery(images.batch(chosen), columns=10)
places = [2 + 34 * (i + 0.5) for i in range(10)]  # 32 pixels and a margin of 2
ax.set_xticks(places, TEXTURES, rotation=45, ha="left")
ax.set_yticks(places, SHAPES)
drawn = ax.tick_params(length=0, labeltop=True, labelbottom=False)

# %% tags=["remove-input"]
counts = pd.DataFrame(n_st.long().numpy(), SHAPES, TEXTURES)
plots.download(counts.rename_axis("shape").reset_index(), "counts")

# %% [markdown]
# ## What a token sees
#
# The encoders cut an image into $8 \times 8$ patches of $4 \times 4$ pixels, one token each. A patch is smaller than the
# wavelength of most textures and far smaller than an object, so either has to be put together from several tokens. The
# generator knows which pixels belong to the object; [Attention maps](../attention/maps.py) and
# [Behaviour](../components/behaviour.py) use these masks.

# %% mystnb={"image": {"classes": "pictures", "alt": "Eight generated images with the patch grid drawn over them, and the masks of their objects."}, "figure": {"caption": "Left: generated images with the patch grid, one token per patch. Right: the masks of their objects, which no encoder sees."}}
few = images.select(chosen[::13])
axes = plots.panels(["images, cut into patches", "object masks"], height=2.1)
plots.gallery(few.batch(range(8)), columns=4, ax=axes[0], patch_size=4)
masks = few.masks[:8, None].expand(-1, 3, -1, -1) * 255
drawn = plots.gallery(masks, columns=4, ax=axes[1])

# %% [markdown]
# ## Photographs
#
# The second study is CIFAR-10: 60,000 photographs of ten classes, also of $32 \times 32$ pixels. They do not come with
# this project. If they are available when the book is built, figures are computed from them; if not, figures are drawn
# from stored tables, and the panel titles say so. Training and validation images come from CIFAR-10's training set; all
# measurements use its test set.
#
# Any folder of images works as well: `study("folder:/path/to/images")`. The study `imagenet` runs the paper's public
# encoders on photographs of ImageNet or Imagenette. The environment variable `NBHELPERS_IMAGENET` names their folder;
# images are taken from its classes in turn.
#
# ## The encoders
#
# Unless a label says otherwise, CL is MoCo v3 {cite:p}`chen2021mocov3` and MIM is SimMIM {cite:p}`xie2022simmim`. All
# encoders of the book have 64 patch tokens, a class token and fixed sine-cosine position embeddings; those for generated
# images first normalise each image to mean 0 and standard deviation 1. In the paper the two also differ in architecture:
# SimMIM has relative positions in place of absolute ones, and scales its residual branches (LayerScale). Here the
# architecture is the same. The two still differ in their views of the training images, as in the published methods but
# milder, for images of 32 pixels, and without MoCo v3's blur and solarisation. CL leaves its patch embedding at its
# random weights, as MoCo v3 does:

# %% tags=["hide-input"]
lines = {}
for name, row in ((name, manifest()[name]) for name in PAIRS):
    run, size = row["recipe"], row["architecture"]
    views, options = run["augmentation"], run["options"]
    hidden = ceil(16 * options.get("mask_ratio", 0)) / 16  # squares of four patches
    lines[name] = {
        "blocks, width, heads": f"{size['depth']}, {size['width']}, {size['heads']}",
        "images seen": f"{row['images_seen']:,}",
        "batch": run["batch_size"],
        "steps": f"{row['images_seen'] // run['batch_size']:,}",
        "crops from": f"{views['crop_scale'][0]:.0%} of the area",
        "colours": {"none": "as they are"}.get(views["colour"], "changed"),
        "hidden": f"{hidden:.1%}" if hidden else "",
    }
pd.DataFrame(lines)

# %% [markdown]
# The training images of a study are 100,000 generated ones or 45,000 photographs, seen many times over. Other encoders are
# narrower or saw a different number of images; their labels say so. Those trained on a single CPU core, such as MAE and
# the supervised ones, used smaller batches and so took more steps for the same number of images. On generated images even
# the encoders of several seeds, which saw far fewer images, took no fewer steps than CL and MIM above. So where this book
# calls a training *longer*, it counts images, not steps.
#
# All encoders were trained with the optimiser Muon {cite:p}`liu2025muon` on weight matrices and AdamW on all other
# parameters, at the same peak learning rate. The published encoders were trained with AdamW alone. Muon makes every
# direction of a matrix move equally far in a step, so it may lead to other features; the book does not compare the two.

# %% [markdown]
# ## What would refute it
#
# A Cramér's V above that of labels drawn at random would refute the claim; exercise 1 draws such labels. The claim could
# also fail in a way that is not tested here: if a texture could be told from the outline, or a shape from the pattern
# alone, the two labels would not be independent for an encoder although they are for the generator. The untrained
# encoder, which the chapters draw beside the trained ones, answers a different question: what can be read without
# training.
#
# ## Takeaways
#
# - Two labels that are drawn independently can be probed one at a time. On photographs, knowing one often suffices to
#   guess the other.
# - A token covers less than one wavelength of most textures. To recognise a texture or a shape, an encoder has to combine
#   tokens.
# - Compare every number with that of the untrained encoder before reading anything into it.
#
# ## Exercises
#
# 1. **Chance.** What $V$ do you expect for two labels drawn at random for the same number of images? Shuffle one of them.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# About 3 / sqrt(n): chi^2 of independent labels is near its 81 degrees of freedom,
# and V = sqrt(81 / (9 n)).
shuffled = texture[
    torch.randperm(len(texture), generator=torch.Generator().manual_seed(SEED))
]
pairs = torch.bincount(10 * shape + shuffled, minlength=100).view(10, 10)
round(association(pairs.numpy(), method="cramer"), 3)

# %% [markdown]
# 2. **Another model.** Run any model from `timm` on these images:
#    `nbhelpers.analyse(nbhelpers.load(NAME), images.subset(500), ["nmi", "attention_distance"])`.
# 3. **An eleventh shape.** `nbhelpers.images.shapes.shape_distance` draws a silhouette from a formula. Write another one.
