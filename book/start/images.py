# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The images
#
# **Claim.** In the generated images of this book, knowing the shape says next to nothing about the texture, so whoever
# names one of them has not read it off the other.
#
# The book asks whether an encoder relies on shape or on texture, looks near or far, tells images or tokens apart. On
# photographs such questions are hard to pose, because shape, texture and class come together: what looks like fur is
# nearly always shaped like an animal. So most figures are drawn twice: for `shapes`, images that are generated so that
# shape and texture are independent, and for CIFAR-10, photographs.
#
# An image of `shapes` is $32 \times 32$ pixels and holds one object. Its pixels are
#
# $$
# x = c \,\bigl(a + t\,(b - a)\bigr) + (1 - c)\, g + \varepsilon ,
# $$
#
# where $c$ is how much of the pixel the silhouette covers, $t$ a texture between the two colours $a$ and $b$, $g$ a calm
# coloured background with a $1/f$ spectrum and $\varepsilon$ the noise of a sensor. Silhouette and texture are drawn
# independently, ten of each; place, size, aspect, angle, wavelength and colours are random.

# %% tags=["parameters"]
SPLIT = "test"
N_IMAGES = 4000
SEED = 0

# %% tags=["hide-input"]
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
# Cramér's $V$ measures how much two labels tell about each other, from 0 for nothing to 1 for all. With $n_{st}$ images of
# shape $s$ and texture $t$ among $n$, and $\chi^2$ their distance from what independence would give,
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
verdict = "shows" if V < limit else "does not show"
Markdown(
    f"The claim **{verdict}**: Cramér's V is {V:.3f}, "
    f"and labels drawn at random stay below {limit:.3f} in nineteen cases of twenty. "
    f"Among {len(images):,} images every pair occurs at least {int(n_st.min())} times. "
    f"On average {100 * float(images.masks.float().mean()):.0f} % of an image's pixels "
    "belong to its object."
)

# %% [markdown]
# ## Every shape with every texture
#
# A row per shape, a column per texture. The labels of an image are its row and its column.

# %% mystnb={"image": {"alt": "A ten by ten table of generated images: each row is one silhouette, each column one texture, with their names beside and above."}, "figure": {"caption": "Generated images: a row for each silhouette, a column for each texture. Place, size, angle, wavelength and colours are random."}}
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
# The encoders cut an image into $8 \times 8$ patches of $4 \times 4$ pixels, one token each. A patch is smaller than
# the wavelength of most textures, and far smaller than an object: both have to be put together from several
# tokens. The generator knows which pixels belong to the object; [Attention maps](../attention/maps.py) and
# [Behaviour](../components/behaviour.py) use that.

# %% mystnb={"image": {"classes": "pictures", "alt": "Eight generated images with the patch grid drawn over them, and the masks of their objects."}, "figure": {"caption": "Left: generated images with the grid of patches, one token each. Right: the masks of their objects, which no encoder sees."}}
few = images.select(chosen[::13])
axes = plots.panels(["images, cut into patches", "object masks"], height=2.1)
plots.gallery(few.batch(range(8)), columns=4, ax=axes[0], patch_size=4)
masks = few.masks[:8, None].expand(-1, 3, -1, -1) * 255
drawn = plots.gallery(masks, columns=4, ax=axes[1])

# %% [markdown]
# ## Photographs
#
# The second study is CIFAR-10: 60,000 photographs of ten classes, also of $32 \times 32$ pixels. They are not part of
# this project. Where they are at hand when the book is built, its figures are computed from them; where not, they
# are drawn from stored tables, and the title of the panel says so. Training and validation images come from CIFAR's
# training set, all measurements are made on its test set.
#
# Any folder of images works as well: `study("folder:/path/to/images")`. The study `imagenet` reads photographs of
# ImageNet or Imagenette with the public encoders of the paper; the environment variable `NBHELPERS_IMAGENET` names
# their folder, and classes take turns in what is drawn from it.
#
# ## The encoders
#
# CL is MoCo v3 {cite:p}`chen2021mocov3`, and MIM is SimMIM {cite:p}`xie2022simmim`, where a label does not say otherwise.
# All encoders of the book have 64 patch tokens and a class token, and fixed positions made of sines and cosines; those of
# generated images first set each image to mean 0 and deviation 1. In the paper the two also differ in architecture, as
# SimMIM has relative positions in place of absolute ones, and scaled residuals. Here they do not, but their views still
# differ as published:

# %% tags=["hide-input"]
rows = {name: row for name, row in manifest().items() if name in PAIRS}
lines = {}
for name, row in rows.items():
    run, size = row["recipe"], row["architecture"]
    views, options = run["augmentation"], run["options"]
    lines[name] = {
        "blocks, width, heads": f"{size['depth']}, {size['width']}, {size['heads']}",
        "images seen": f"{row['images_seen']:,}",
        "batch": run["batch_size"],
        "crops from": f"{views['crop_scale'][0]:.0%} of the area",
        "colours": {"none": "as they are"}.get(views["colour"], "changed"),
        "hidden": f"{options['mask_ratio']:.0%}" if "mask_ratio" in options else "",
    }
pd.DataFrame(lines)

# %% [markdown]
# Others are narrower, or saw another number of images; their labels say so. Those that were trained on one core of a
# processor, such as MAE and the supervised ones, took smaller batches, and so more steps for as many images.

# %% [markdown]
# ## What would refute it
#
# A Cramér's V beyond that of labels drawn at random would refute the claim; exercise 1 draws such labels. There is a
# second way, which is not tested here: if a texture could be told from the outline, or a shape from the pattern alone, the
# two labels would not be independent for an encoder although they are for the generator. The untrained encoder, which the
# chapters draw beside the trained ones, answers another question: what can be read without training.
#
# ## Takeaways
#
# - Two labels that are drawn independently can be asked for one by one. On photographs, who knows one of them can often
#   guess the other.
# - A token sees less than the wavelength of most textures. To name these, or a shape, an encoder has to combine tokens.
# - Compare every number with that of the untrained encoder before reading anything into it.
#
# ## Exercises
#
# 1. **Chance.** Which $V$ do you expect of two labels that are drawn at random for as many images? Shuffle one of them.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# About 3 / sqrt(n): chi^2 of independent labels is near its 81 degrees of freedom,
# and V = sqrt(81 / (9 n)).
shuffled = texture[
    torch.randperm(len(texture), generator=torch.Generator().manual_seed(SEED))
]
pairs = torch.bincount(10 * shape + shuffled, minlength=100).view(10, 10)
round(association(pairs.numpy(), method="cramer"), 3)

# %% [markdown]
# 2. **Another model.** Show these images to any model that `timm` knows:
#    `nbhelpers.analyse(nbhelpers.load(NAME), images.subset(500), ["nmi", "attention_distance"])`.
# 3. **An eleventh shape.** `nbhelpers.images.shapes.shape_distance` draws a silhouette from a formula. Write another one.
