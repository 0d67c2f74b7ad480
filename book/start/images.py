# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The images
#
# **Question.** The book asks whether an encoder relies on shape or on texture, looks near or far, tells images or
# tokens apart. On photographs such questions are hard to pose, because shape, texture and class come together. So
# every figure is drawn twice: for `shapes`, images that are generated so that shape and texture are independent,
# and for CIFAR-10, photographs.
#
# An image of `shapes` is $32 \times 32$ pixels and holds one object. Its pixels are
#
# $$
# x = c \odot \bigl(a + t \odot (b - a)\bigr) + (1 - c) \odot g + \varepsilon ,
# $$
#
# where $c$ is how much of a pixel the silhouette covers, $t$ a texture between the two colours $a$ and $b$, $g$ a calm
# coloured background with a $1/f$ spectrum and $\varepsilon$ the noise of a sensor. Silhouette and texture are drawn
# independently, ten of each; place, size, aspect, angle, wavelength and colours are random.

# %% tags=["parameters"]
SPLIT = "test"
SEED = 0

# %% [markdown]
# ## Every shape with every texture
#
# A row per shape, a column per texture. The labels of an image are its row and its column.

# %% mystnb={"image": {"alt": "A ten by ten table of generated images: each row is one silhouette, each column one texture."}, "figure": {"caption": "A ten by ten table of generated images: each row is one silhouette, each column one texture."}}
import torch

from nbhelpers import plots, study
from nbhelpers.images.shapes import SHAPES, TEXTURES

plots.style()
images = study("shapes").images(SPLIT).subset(4_000, seed=SEED)
shape, texture = images.labels["shape"], images.labels["texture"]
table = [[(shape == s) & (texture == t) for t in range(10)] for s in range(10)]
chosen = [int(cell.nonzero()[0]) for row in table for cell in row]
ax = plots.gallery(images.batch(chosen), columns=10)
drawn_on = plots.grid_labels(ax, rows=SHAPES, columns=TEXTURES)

# %% tags=["hide-input"]
from IPython.display import Markdown
from scipy.stats.contingency import association

counts = torch.tensor([[int(cell.sum()) for cell in row] for row in table])
v = float(association(counts.numpy(), method="cramer"))
Markdown(
    f"Among {len(images)} images of the split every pair occurs at least {counts.min()} "
    "times, and knowing the shape says next to nothing about the texture: Cramér's V is "
    f"{v:.3f} on a scale from 0 to 1. On average "
    f"{100 * float(images.masks.float().mean()):.0f} % of an image's pixels belong to the "
    "object."
)

# %% [markdown]
# ## What a token sees
#
# The encoders cut an image into $8 \times 8$ patches of $4 \times 4$ pixels, one token each. A patch is smaller than
# the wavelength of most textures, and far smaller than an object: both have to be put together from several
# tokens. The generator knows which pixels belong to the object, which the chapters on dense prediction use.

# %% mystnb={"image": {"alt": "Eight generated images with the patch grid drawn over them, and the masks of their objects."}, "figure": {"caption": "Eight generated images with the patch grid drawn over them, and the masks of their objects."}}
few = images.select(chosen[::13])
axes = plots.panels(["images, cut into patches", "object masks"], height=1.6)
plots.gallery(few.batch(range(8)), columns=4, ax=axes[0], patch_size=4)
drawn_on = plots.gallery(few.masks[:8, None].expand(-1, 3, -1, -1) * 255, columns=4, ax=axes[1])

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

# %% [markdown]
# ## What would make the comparison unfair
#
# If a texture could be told from the outline, or a shape from the pattern alone, the two labels would not be
# independent for an encoder although they are for the generator. The chapters therefore draw the untrained encoder
# beside the trained ones: what it can read, the images give away for free.
#
# ## Try it yourself
#
# 1. Show these images to a model of yours, or to any that `timm` knows:
#    `nbhelpers.analyse(nbhelpers.load(NAME), images.subset(500), ["nmi", "attention_distance"])`.
# 2. `nbhelpers.images.shapes.shape_distance` draws a silhouette from a formula. Write an eleventh one.
# 3. Which two textures would you confuse at this size? The chapter on probes has the answer of the encoders.
