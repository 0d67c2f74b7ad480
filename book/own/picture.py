# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Your own picture
#
# **Invitation.** Drop a photograph on this page and see where contrastive and
# masked encoders look in it. The encoders run in your browser; the picture does not leave it.

# %% tags=["parameters", "hide-input"]
MODELS = {
    "cifar10": ["cifar10.cl", "cifar10.mim"],
    "shapes": ["shapes.cl", "shapes.mim"],
}
FOLDER = "../_static/own_picture"  # where the weights are written, beside this page

# %% [markdown]
# ## Look
#
# Choose one of the six pictures or one of your own. Click a patch to make it the query, or
# move the outlined patch with the arrow keys once it has the focus. There are three views.
# The first is each encoder's attention map of the query, each on its own scale. The second
# is the cosine between the query's token and every other token after the chosen block. The
# third shows the first three principal components of each token as red, green and blue:
# patches of one colour are alike to the encoder. Choose a picture with one large object in
# the middle, as in CIFAR-10: these encoders were not trained on scenes such as a whole street.

# %% tags=["hide-input"]
import pandas as pd

from nbhelpers import load, own_picture, study
from nbhelpers.images import photographs
from nbhelpers.own_picture import Group, Picture
from nbhelpers.results import late, table

LOOK_FOR = {
    "nmi": "NMI",
    "attention_distance": "attention distance (px)",
    "token_cosine": "cosine between tokens",
}
frames = {
    name: table(name, "profile", models, metrics=[*LOOK_FOR])
    for name, models in MODELS.items()
}

# %% tags=["hide-input"]
groups = [
    Group(study(name).title, [load(model) for model in models], frames[name])
    for name, models in MODELS.items()
]
photos, generated = photographs(96), study("shapes").images("test")
pictures = [Picture(photos.classes["class"][i], photos[i]) for i in (0, 2, 3, 4)]
last = len(groups) - 1  # the encoders of generated images
pictures += [Picture(f"generated image {i}", generated[i], last) for i in (7, 8)]
own_picture.page(groups, pictures, FOLDER)

# %% [markdown]
# ## What to look for
#
# - **Dependence on the query.** Move the query. Does the map follow it? NMI is 0 if it never does.
# - **Reach.** How far away does a patch look, on a picture of 32 × 32 pixels?
# - **Similarity.** How alike are the tokens of one picture?
#
# These are quantities that the paper compares {cite:p}`park2023what`. The table gives
# their values on the book's test images, averaged over the last third of the blocks:

# %% tags=["hide-input"]
rows = {
    (study(name).title, who): {
        label: late(frame, metric)[who] for metric, label in LOOK_FOR.items()
    }
    for name, frame in frames.items()
    for who in late(frame, "nmi")
}
pd.DataFrame(rows).T.map("{:.2f}".format)

# %% [markdown]
# ## How it is done
#
# - **Weights.** Each encoder's half-precision weights are stored as base64 in a script
#   beside this page. The script is loaded only when you choose a picture, and nothing is sent.
# - **Pictures.** The central square is reduced to the resolution of the training images,
#   32 pixels a side, by area averaging: each pixel is the mean colour of an equal part of
#   your picture. Then each encoder normalises it with its own mean and standard deviation;
#   the encoders of `shapes` also standardise every picture.
# - **Encoder.** Eight blocks of width 128 with four heads over 65 tokens, computed with plain
#   typed arrays in a Worker, so that the page stays responsive. Tests require its maps to
#   agree with PyTorch's within 0.001 at every depth and in every head.
# - **Numbers.** Attention is the softmax over patch tokens, as in most chapters. Solid
#   lines show this picture, dashed lines the mean over the test images.
#
# ## Try it yourself
#
# 1. Put other encoders into `MODELS`, such as `"cifar10.random"`, and run the page
#    again: what does an untrained model look like?
# 2. Look at a photograph with the encoders of generated images. Which differences between
#    the two encoders remain?
# 3. Find a picture whose NMI lies far from the dashed line, and explain why.
