# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Questions that users of the paper's code asked
#
# The repositories of the paper, its predecessor and related work have public issue lists. Most questions there are about
# code that was not released, or about a model that the code does not accept. This page answers them with a few lines of
# code each. The models below are small; you can replace them by any other.

# %% tags=["parameters"]
MODELS = ["shapes.cl", "shapes.mim"]  # names, paths of weight files or Encoders
N_IMAGES = 64
SEED = 0

# %% tags=["hide-input"]
import pandas as pd
import timm
import torch
from matplotlib.patches import Rectangle

from nbhelpers import plots, study
from nbhelpers.capture import capture

plots.style()
images = study("shapes").images("test").subset(N_IMAGES, seed=SEED)
encoders = study("shapes").encoders(MODELS)

# %% [markdown]
# ## How do I average attention maps over a data set?
#
# Keep one sum per depth and add each batch to it. Nothing else is stored, so memory does not grow with the number of
# images. The mean hides what single images show and leaves what the model does with *positions*.

# %%
from nbhelpers.metrics import patch_attention


def mean_attention(encoder, images, batch=32):
    """Attention `L N N` among patches, averaged over heads and images."""
    N = encoder.grid[0] * encoder.grid[1]
    total = torch.zeros(encoder.depth, N, N)

    def add(b):
        A = patch_attention(b.query, b.key, b.prefix, b.bias, b.scale)  # B H N N
        total[b.depth - 1] += A.mean(1).sum(0).cpu()

    with capture(encoder, on_attention=add):
        for rows in torch.arange(len(images)).split(batch):
            encoder.forward(encoder.batch(images, rows))
    return total / len(images)


# %% mystnb={"image": {"classes": "pictures", "alt": "Two maps of eight by eight patches, for CL and for MIM: mean attention of one query patch in the last block but one, with the query outlined."}, "figure": {"caption": "Attention of one query in the last block but one, averaged over heads and images, a panel per model. White outline: the query."}}
axes = plots.panels([encoder.objective for encoder in encoders])
for ax, encoder in zip(axes, encoders, strict=True):
    rows, columns = encoder.grid
    query = rows // 4 * columns + columns // 4
    mean = mean_attention(encoder, images)[-2, query].reshape(rows, columns)
    ax.imshow(mean, vmin=0)
    corner = columns // 4 - 0.5, rows // 4 - 0.5
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="w"))
    drawn_on = ax.set(xticks=[], yticks=[])

# %% [markdown]
# ## What is the feature map variance, and how does it change with depth?
#
# It is the variance of an image's tokens around their mean, averaged over channels and images (asked in [how-do-vits-work
# 6](https://github.com/xxxnell/how-do-vits-work/issues/6)). It grows where a block makes tokens differ and falls where a
# block averages them. It also grows with the norm of the tokens, which rises with depth: divide by their mean squared
# norm before you compare depths.

# %%
from nbhelpers.metrics import feature_variance

rows = {}
for encoder in encoders:
    found = {}

    def measure(stream, found=found):
        found[stream.depth] = feature_variance(stream.patches).mean().item()

    with capture(encoder, on_stream=measure, places=("block",)):
        encoder.forward(encoder.batch(images, range(len(images))))
    rows[encoder.objective] = found
pd.DataFrame(rows).rename_axis("depth").T.round(2)

# %% [markdown]
# ## How do I apply the Fourier analysis to a network that is not a ViT?
#
# `feature_map_log_amplitude` takes any feature map `B C H W`: from a single convolution, a stage of a CNN or a
# hierarchical ViT. Sizes differ between stages, so frequencies are given as fractions of each map's Nyquist frequency
# (asked in how-do-vits-work [4](https://github.com/xxxnell/how-do-vits-work/issues/4) and
# [45](https://github.com/xxxnell/how-do-vits-work/issues/45), [ViT-Adapter
# 152](https://github.com/czczup/ViT-Adapter/issues/152) and [iFormer 2](https://github.com/sail-sg/iFormer/issues/2)).

# %%
from nbhelpers.metrics import feature_map_log_amplitude, half_diagonal_frequencies

torch.manual_seed(0)
cnn = timm.create_model("resnet10t", features_only=True).eval()
pictures = images.batch(range(min(16, N_IMAGES))).float() / 255
with torch.no_grad():
    stages = cnn(torch.nn.functional.interpolate(pictures, size=128))

# %% mystnb={"image": {"alt": "Relative log amplitude against spatial frequency, a line per stage of an untrained CNN; all lines fall from zero."}, "figure": {"caption": "Relative log amplitude against frequency for the stages of an untrained ResNet. The stages have grids of different sizes, so their lines have different numbers of points."}}
(ax,) = plots.panels(["ResNet, random weights"])
for number, features in enumerate(stages, 1):
    if min(features.shape[-2:]) < 3:
        continue
    line = feature_map_log_amplitude(features).mean(0)
    frequency = half_diagonal_frequencies(features.shape[-2:])
    ax.plot(frequency, line, label=f"stage {number}, {features.shape[-1]} px")
ax.set(xlabel="frequency / Nyquist", ylabel="relative log amplitude")
legend = ax.legend()

# %% [markdown]
# ## Do two losses pull my model the same way?
#
# The code for training with both losses was never released (asked in [cl-vs-mim
# 4](https://github.com/naver-ai/cl-vs-mim/issues/4)). The book's own code is in [The hybrid](../hybrid/hybrid.py), and
# [Do the losses agree?](../hybrid/agreement.py) follows the gradients. For two losses of your own, compute both gradients
# every few steps of your training loop and pass them to `block_alignment`:

# %%
from nbhelpers.pretrain.alignment import block_alignment, loss_gradients

vit = timm.create_model(
    "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=3, num_classes=10
)
batch = images.batch(range(len(images))).float() / 255 - 0.5
x, labels = batch.split(N_IMAGES // 4), images.labels["shape"].split(N_IMAGES // 4)

# %%
seen = []
for batch, y in zip(x, labels, strict=True):  # your training loop goes here
    tokens = vit.forward_features(batch)
    classify = torch.nn.functional.cross_entropy(vit.forward_head(tokens), y)
    spread = tokens[:, 1:].var(1).mean()
    seen.append(loss_gradients([classify, spread], vit.blocks))  # S L P
frame = block_alignment(torch.stack(seen))
frame = frame[frame["metric"] == "cosine"].astype({"depth": int})
frame = frame.set_index("depth").drop(columns="metric").round(3)
frame.rename_axis(index=None, columns="depth")

# %% [markdown]
# Where the whole interval lies below 0, the two losses pull that block in opposing directions. A value near 0 says little:
# a batch's gradient can be mostly noise, which draws the cosine towards 0. With enough batches, `block_alignment` also
# estimates the cosine without this noise, as `direction`, and says how well the gradients of different batches agree for
# the first loss (`mim_cosine`) and for the second (`cl_cosine`).
#
# ## Short answers to other questions
#
# | question | answer |
# | --- | --- |
# | Where is the code of the singular value spectra? ([cl-vs-mim 2](https://github.com/naver-ai/cl-vs-mim/issues/2)) | [Spectra](../representations/spectra.py) computes them from the Gram matrix, which gives the same values as a decomposition of the covariance |
# | Where is NMI computed, and with which prior? ([cl-vs-mim 5](https://github.com/naver-ai/cl-vs-mim/issues/5), [UNIP 7](https://github.com/casiatao/UNIP/issues/7)) | In [Attention collapse](../attention/collapse.py), in four lines; the prior over queries is uniform |
# | Is my Fourier curve of MoCo v3 right? ([how-do-vits-work 25](https://github.com/xxxnell/how-do-vits-work/issues/25)) | [Frequency](../representations/frequency.py) draws the published curves beside ours; their data are in `data/published.csv` |
# | Why do attention hooks collect nothing, or only empty lists? ([vit-explain 23](https://github.com/jacobgil/vit-explain/issues/23)) | Fused attention has no map to hook. `capture` observes the call itself and counts the blocks; too few are an error |
# | Why do registers break my reshape? ([dinov2 90](https://github.com/facebookresearch/dinov2/issues/90)) | They are extra tokens. An `Encoder` knows its [prefix tokens](glossary.md), and `stream.patches` holds only the patch tokens |
# | Why does one bright cell dominate the map? ([dinov2 306](https://github.com/facebookresearch/dinov2/pull/306)) | See [Registers and sinks](../beyond/sinks.py): look at token norms and at the attention to prefix tokens |
# | What if my images are not square? ([dinov2 506](https://github.com/facebookresearch/dinov2/issues/506)) | Metrics that need the grid take `grid=(rows, columns)`; patches may have any height and width |
# | Which block and which pooling does a linear probe of SimMIM need? ([SimMIM 14](https://github.com/microsoft/SimMIM/issues/14)) | [Layers](../components/layers.py) probes every depth, mean-pooled without the final norm; `norm` and `pool` are arguments |
# | Where are the weights of MAE's decoder? ([mae 8](https://github.com/facebookresearch/mae/issues/8)) | In the files called *visualize*, which `load("mae_visualize.vit_base_patch16_224")` knows |
# | Which stimuli count for the shape bias? ([texture-vs-shape 6](https://github.com/rgeirhos/texture-vs-shape/issues/6)) | Those whose two cues differ; [Shape or texture](../representations/shape_texture.py) also gives the share of them that was decided for either cue |
# | Does the book have Hessian spectra and loss landscapes? ([how-do-vits-work 11](https://github.com/xxxnell/how-do-vits-work/issues/11)) | No |
