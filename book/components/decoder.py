# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The decoder
#
# **Claim.** A masked model must turn its representation back into pixels somewhere. SimMIM has a single linear layer for
# that, so the last blocks of its encoder do the work. {term}`MAE` has a transformer decoder of its own, and its encoder
# is spared: it keeps high frequencies to its end, while the decoder is where the mutual information of query and key is
# high and where high frequencies are low {cite:p}`park2023what`.
#
# MAE {cite:p}`he2022mae` shows its encoder only the patches $V$ that are left visible, a quarter of them. The decoder $g$
# gets the encoder's tokens and a {term}`mask token` $m$ at every hidden place $i \in H$, and predicts normalised pixels,
#
# $$
# L = \frac{1}{|H|} \sum_{i \in H} \frac{1}{D} \bigl\lVert g\bigl(f(x_V), m\bigr)_i - \tilde x_i \bigr\rVert^2 ,
# \qquad \tilde x_i = \frac{x_i - \bar x_i}{s_i} .
# $$ (eq-mae)
#
# Below, encoder and decoder are looked at as the paper does: at {term}`mask ratio` 0, so that both see every patch.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # encoders by name, the first with a decoder; None: MAE and SimMIM of each study
IMAGES = 8  # how many images to hide and to reconstruct
MASK_RATIO = 0.75

# %% [markdown]
# ## What the decoder makes of a quarter of an image
#
# Above: the patches that the encoder sees. Middle: these, and the decoder's prediction of the others, with mean
# and deviation of each hidden patch borrowed from the image, since the model is not asked for them. Below: the image.

# %%
import torch

from nbhelpers import load, plots, study
from nbhelpers.pretrain.mae import reconstruct

plots.style()
names = {name: MODELS or study(name).trained("mim", "mae") for name in STUDIES}
autoencoder = MODELS[0] if MODELS else f"{STUDIES[0]}.mae"
images = study(STUDIES[0]).images("test").batch(range(IMAGES))
shown, filled = reconstruct(load(autoencoder), images, MASK_RATIO)
(ax,) = plots.panels([autoencoder], height=3)
plots.gallery(torch.cat([shown, filled, images]), IMAGES, ax)
plots.show(
    ax, "Three rows of images: a quarter of the patches visible; the hidden ones predicted; the original."
)

# %% [markdown]
# Where a visible patch tells what stands beside it, the prediction goes on with it; elsewhere it is a smooth guess. A
# decoder judged by squared error answers doubt with the mean of what could be there, and a mean is blurred.

# %% [markdown]
# ## Attention of encoder and decoder
#
# Depth counts on from the encoder into the decoder, whose blocks are drawn dotted. The panel on the right is published.

# %%
from nbhelpers.results import published, table

frames = [table(name, "profile", models) for name, models in names.items()]
continued = [plots.behind_encoder(frame) for frame in frames]
axes = plots.beside_published(continued, "nmi", published(), models=("SimMIM", "MAE"), decoder=True)
plots.show(
    axes,
    "NMI of query and key against depth for SimMIM, MAE's encoder and MAE's decoder, with published curves.",
)

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results import at_end, by_label, highest

for name, frame in zip(STUDIES, frames, strict=True):
    rows = frame[(frame["metric"] == "nmi") & (frame["head"] < 0)]
    for who, value in by_label(rows).items():
        key = who.replace("'s ", "-")  # no apostrophe in the name of a glued value
        glue(f"{name}-{key}-nmi", value, display=False)
rows = published().query("metric == 'nmi' and model == 'MAE'")
for part, value in rows.groupby("part")["value"].mean().items():
    glue(f"published-{part}", float(value), display=False)

# %% [markdown]
# The mean NMI over blocks is {glue:text}`shapes-MAE-nmi:.3f` in MAE's encoder and
# {glue:text}`shapes-MAE-decoder-nmi:.3f` in its decoder on `shapes` (SimMIM {glue:text}`shapes-MIM-nmi:.3f`),
# {glue:text}`cifar10-MAE-nmi:.3f` and {glue:text}`cifar10-MAE-decoder-nmi:.3f` on CIFAR-10 (SimMIM
# {glue:text}`cifar10-MIM-nmi:.3f`). In the published curves it is {glue:text}`published-encoder:.2f` in MAE's encoder
# and {glue:text}`published-decoder:.2f` in its decoder.

# %% [markdown]
# ## Frequencies of encoder and decoder
#
# The [log amplitude](../representations/frequency.py) of the highest frequency on the diagonal, against that of the
# constant part. The first dot of the decoder is its input, after the encoder's tokens were brought to its width.

# %%
axes = plots.beside_published(
    continued, "delta_log_amplitude", published(), models=("SimMIM", "MAE"), decoder=True
)
plots.show(
    axes, "Relative log amplitude of high frequencies against depth for SimMIM, MAE's encoder and decoder."
)

# %% tags=["remove-cell"]
for name, frame in zip(STUDIES, frames, strict=True):
    peaks = highest(frame, "delta_log_amplitude")
    for who, value in by_label(at_end(frame, "delta_log_amplitude")).items():
        key = f"{name}-" + who.replace("'s ", "-")
        glue(f"{key}-end", value, display=False)
        glue(f"{key}-fall", peaks[who] - value, display=False)

# %% [markdown]
# At the end of the encoder, high frequencies lie {glue:text}`shapes-MAE-fall:.2f` below their highest point in MAE and
# {glue:text}`shapes-MIM-fall:.2f` in SimMIM on `shapes`, {glue:text}`cifar10-MAE-fall:.2f` and
# {glue:text}`cifar10-MIM-fall:.2f` on CIFAR-10. MAE's decoder ends at {glue:text}`shapes-MAE-decoder-end:.2f` and
# {glue:text}`cifar10-MAE-decoder-end:.2f`, its encoder at {glue:text}`shapes-MAE-end:.2f` and
# {glue:text}`cifar10-MAE-end:.2f`.

# %% [markdown]
# ## What would refute it
#
# An MAE whose decoder has no higher NMI than its encoder, or whose encoder lowers high frequencies in its last blocks as
# much as SimMIM's does; by more than the interval over images, and with the same images seen in training.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("components/decoder", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put `["mae_visualize.vit_base_patch16_224"]` into `MODELS`: the published ViT-B/16 with its decoder (a download), or
#    an MAE of your own.
# 2. Hide more: at which `MASK_RATIO` does the reconstruction stop to show an object?
# 3. Reconstruct with everything visible (`MASK_RATIO = 0.02`). What does the decoder do with patches that it was never
#    judged on?
