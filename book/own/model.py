# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Your own model
#
# **Claim.** Nothing in this book is tied to its models. It can read any Vision Transformer whose heads each compute a
# softmax over one grid of patches. This page draws the book's curves of attention, tokens and spectra for the models that
# it is given. What needs labels or training, such as probes and fine-tuning, stays in the book's chapters.
#
# The figures need little of a model: the queries, keys and values of every block as the model uses them, and the residual
# stream between blocks. They are taken from the running model, after normalisation, rotary positions and position bias, so
# no code of the model has to change.

# %% [markdown] tags=["site"]
# Change one line below to see a model of yours. The two that stand there were trained on photographs, CIFAR-10, and look at
# generated shapes here: images of a kind that they never saw. With `IMAGES = "cifar10"` they look at their own. A module
# that you built yourself goes into `MODELS` after one call of `wrap`: see [Bring a model](bring.py).

# %% tags=["parameters"]
# the book's names, timm names, "hf-hub:...", files of save_encoder, or "random:..."
MODELS = ["cifar10.mim", "cifar10.cl"]
IMAGES = "shapes"  # a study, or "folder:/path/to/images"
N_IMAGES = 500  # None: all
SEED = 0
BATCH_SIZE = 64
DEVICE = None  # "cpu", "cuda"; None: a GPU when there is one
FROM_FILE = None  # local copy of the weights of a single model
OUT = None  # a folder for metrics.csv

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

from nbhelpers import analyse, interactive, load, plots, study
from nbhelpers.capture import capture
from nbhelpers.measure import attention_maps
from nbhelpers.metrics import METRICS
from nbhelpers.results import COMPUTED, difference_by_depth
from nbhelpers.studies import distinct_labels

plots.style()

# %% [markdown]
# ## What was read off the models
#
# Prefix tokens, patch grid and preprocessing come from the model: mean and deviation of the colours, and the share of a
# resized image's side that is cut out of its middle. If an entry of this table is not what you expect, no figure further
# down can be trusted.

# %%
encoders = [load(model, device=DEVICE, from_file=FROM_FILE) for model in MODELS]
known = [encoder.name for encoder in encoders]
for i, name in enumerate(known):
    if name in known[:i]:  # two checkpoints of one model
        encoders[i] = replace(encoders[i], name=f"{name} ({i + 1})")
names = distinct_labels(encoder.name for encoder in encoders)
images = study(IMAGES).images("test")
if N_IMAGES:
    images = images.at_most(N_IMAGES, seed=SEED)

# %%
rows = {}
for e in encoders:
    rows[e.name] = {"blocks": e.depth, "width": e.width, "heads": e.heads}
    rows[e.name] |= {"prefix tokens": e.prefix, "patch grid": "{} x {}".format(*e.grid)}
    for what, numbers in (("mean", e.mean), ("std", e.std), ("crop", [e.crop])):
        rows[e.name][what] = ", ".join(f"{number:.3g}" for number in numbers)
    uniform = METRICS["attention_distance"].reference(e)
    rows[e.name]["uniform distance (px)"] = round(uniform, 1)
pd.DataFrame(rows).T

# %% tags=["hide-input"]
what = f"{len(images):,} images of {images.name}"
Markdown(f"Curves and spectra are of {what}; maps and single tokens are of the first.")

# %% [markdown]
# ## Attention maps
#
# The first of the images, as each model sees it, and beside it the maps of three queries at four depths, which are the same
# shares of each model's blocks.

# %% mystnb={"image": {"classes": "pictures", "alt": "The image with one of three queries outlined, and beside it the attention maps of that query at four depths of one model, a row per query; a figure for each model."}, "figure": {"caption": "Attention maps of the model named at the left: the queries (left column) and their maps at four depths, means over heads, each on its own scale: dark nothing, bright the map's maximum."}}
pictures = [encoder.resize(images.batch([0])) for encoder in encoders]
queries = [(0.2, 0.2), (0.5, 0.5), (0.8, 0.6)]
depths = (1 / 8, 3 / 8, 5 / 8, 1)
for name, e, image in zip(names, encoders, pictures, strict=True):
    maps = {name: (image, attention_maps(e, image)[:, 0].unflatten(-1, e.grid))}
    figure = plots.query_maps(maps, queries, depths)

# %% [markdown]
# Click any patch, or move the query by the arrow keys:

# %%
interactive.explore(pictures[0], encoders)

# %% [markdown]
# ## Curves
#
# One pass over the images per model measures everything. Lines are means over heads and images with the 95 % interval
# over images, dots single heads; depth 0 is the embedding.

# %%
each = [analyse(encoder, images, list(METRICS), BATCH_SIZE) for encoder in encoders]
frame = pd.concat(each, ignore_index=True).assign(source=COMPUTED)
if OUT:
    frame.to_csv(Path(OUT) / "metrics.csv", index=False)
plots.download(frame, "metrics")

# %% tags=["hide-input"]
REFERENCES = {  # what a model of no structure is, by the metric that sees it
    "attention_distance": "uniform attention",
    "attention_entropy": "uniform attention",
    "prefix_attention": "uniform attention",
    "query_cosine": "same map for all queries",
    "common_update_share": "independent updates",
    "token_norm_peak": "all tokens alike",
}


def references(metric):
    """The values that such a model has, one for each grid."""
    reference = METRICS[metric].reference
    return sorted({reference(e) for e in encoders}) if metric in REFERENCES else []


# %%
def curves(*metrics, heads=False):
    """Panels of some metrics, dashed where a model of no structure lies."""
    axes = plots.panels([""] * len(metrics))
    dashed = {"color": "#555555", "lw": 1, "ls": (0, (4, 2))}
    for ax, metric in zip(axes, metrics, strict=True):
        for value in references(metric):
            name = f"{REFERENCES[metric]}: {value:.3g}"
            ax.axhline(value, label=name, **dashed)
        plots.by_depth(frame, metric, ax, heads=heads)
    return plots.legend_below(axes)


# %% mystnb={"image": {"alt": "attention distance in pixels against depth, a line per model."}, "figure": {"caption": "Attention distance against depth, in pixels of the model's input. Lines: mean over heads, with the 95 % interval over images; dots: single heads; dashed: uniform attention."}}
legend = curves("attention_distance", heads=True)

# %% [markdown]
# NMI is 0 where all queries have the same map, entropy 1 where attention is uniform, and the cosine between the maps of
# different queries 1 where all are the same.

# %% mystnb={"image": {"alt": "normalised mutual information and attention entropy against depth, a line per model."}, "figure": {"caption": "NMI of query and key, and attention entropy as a share of its maximum, against depth."}}
legend = curves("nmi", "attention_entropy", heads=True)

# %% mystnb={"image": {"alt": "cosine between the maps of queries and cosine between heads against depth, a line per model."}, "figure": {"caption": "Cosine similarity between the maps of different queries, and between the outputs of different heads."}}
legend = curves("query_cosine", "head_cosine")

# %% [markdown]
# Cosines: how alike the tokens of an image are, how alike their updates by attention, and how little attention and a whole
# block turn a token.

# %% mystnb={"image": {"alt": "cosine between tokens, between attention outputs, across attention and across a block against depth, a line per model."}, "figure": {"caption": "Four cosine similarities against depth: between tokens of an image, between their attention outputs, and of a token with itself across attention and across a block."}}
between = ["token_cosine", "attention_token_cosine"]
legend = curves(*between, "across_attention_cosine", "across_block_cosine")

# %% [markdown]
# The first image's tokens before and after attention: to the right along the step that is common to them, upwards in the
# direction in which they vary most beside it. Below: the share of that movement that is common to all tokens; independent
# updates of N tokens would give 1 / N.

# %% mystnb={"image": {"alt": "Tokens of an image before and after self-attention at four depths, along their common step, a row per model: a line for each token."}, "figure": {"caption": "Tokens of one image along the step that is common to them (to the right) and in the direction in which they vary most beside it (upwards): a line from where a token was before self-attention to a dot where it is afterwards. Below each panel, the common share of that movement."}}
steps, colours = {}, {}
looks = plots.line_styles([(encoder.name, encoder.objective) for encoder in encoders])
for name, encoder, image in zip(names, encoders, pictures, strict=True):
    stream = []  # block 0, after attention 1, block 1, after attention 2, ...
    with capture(encoder, on_stream=stream.append):
        encoder.forward(image)
    places = [record.patches[0].cpu() for record in stream]
    steps[name] = list(zip(places[0::2], places[1::2], strict=False))
    colours[name] = looks[encoder.name]["color"]
figure = plots.token_steps(steps, (1 / 8, 3 / 8, 5 / 8, 1), colours)

# %% mystnb={"image": {"alt": "common share of the update and effective rank of the tokens against depth, a line per model."}, "figure": {"caption": "Common share of the tokens' update by self-attention (dashed: independent updates), and effective rank of an image's tokens."}}
legend = curves("common_update_share", "token_effective_rank")

# %% [markdown]
# Spectra of the tokens of an image and of the images, and the amplitude of frequencies, a line per depth:


# %%
def spectra(metric):
    """A panel per model, a line per depth."""
    deepest = max(encoder.depth for encoder in encoders)
    axes = plots.panels(names, sharey=True)
    for ax, (_, rows) in zip(axes, frame.groupby("model", sort=False), strict=True):
        plots.spectra(rows, metric, ax, deepest)
    axes[0].set_ylim(bottom=max(-15, axes[0].get_ylim()[0]))  # below: rounding
    return plots.depth_bar(axes, deepest)


# %% mystnb={"image": {"alt": "token spectrum, a panel per model and a line per depth."}, "figure": {"caption": "Log eigenvalues of the covariance of an image's tokens, relative to the largest, against rank. What lies below −15 is not drawn."}}
bar = spectra("token_spectrum")

# %% mystnb={"image": {"alt": "image spectrum, a panel per model and a line per depth."}, "figure": {"caption": "Log eigenvalues of the covariance of the images' mean tokens, relative to the largest, against rank."}}
bar = spectra("image_spectrum")

# %% mystnb={"image": {"alt": "log amplitude against spatial frequency, a panel per model and a line per depth."}, "figure": {"caption": "Log amplitude of spatial frequencies of the tokens on their grid, relative to the constant part."}}
bar = spectra("fourier_radial")

# %% mystnb={"image": {"alt": "delta log amplitude against depth, a line per model."}, "figure": {"caption": "Log amplitude at the highest frequency below Nyquist, relative to the constant part, against depth."}}
legend = curves("delta_log_amplitude")

# %% [markdown]
# Sinks: the norm of patch tokens, the largest of an image against the median, and the attention that they pay to prefix
# tokens.

# %% mystnb={"image": {"alt": "token norm, its peak, the share of outlier tokens and attention to prefix tokens against depth, a line per model."}, "figure": {"caption": "Norm of patch tokens, largest norm of an image against its median, share of tokens above three medians, and attention that patches pay to prefix tokens."}}
legend = curves("token_norm", "token_norm_peak", "outlier_tokens", "prefix_attention")

# %% [markdown]
# ## Where do two models part?
#
# Two checkpoints of one run, before and after fine-tuning, two objectives, two sizes: with exactly two models, the first
# less the second, depth by depth. Where they have different numbers of blocks, the depths are the first one's, and the
# second is read at the same share of its own. The intervals treat the two as independent although both saw the same images,
# which makes them wider than necessary: a marked difference is
# not an accident of the images. Whether another training would repeat it, one run of each cannot say.

# %% mystnb={"image": {"alt": "Difference of the two models against depth with its interval, a panel per metric; dots mark depths at which they differ."}, "figure": {"caption": "The first model less the second. Bands: 95 % interval over images; dots: depths at which an interval that holds for all depths together leaves out 0."}}
SIDES = ["attention_distance", "nmi", "head_cosine", "token_cosine"]
SIDES += ["token_effective_rank", "delta_log_amplitude"]
two = len(encoders) == 2
if two:
    sides = frame[frame["metric"].isin(SIDES)]
    gaps = difference_by_depth(sides, *(encoder.name for encoder in encoders))
    axes = plots.panels([*map(plots.metric_label, SIDES)])
    for ax, metric in zip(axes, SIDES, strict=True):
        rows = gaps[gaps["metric"] == metric]
        ax.axhline(0, color="#555555", lw=1, ls=(0, (4, 2)))
        ax.fill_between(rows["depth"], rows["low"], rows["high"], alpha=0.3, lw=0)
        ax.plot(rows["depth"], rows["value"])
        ax.plot(*rows[rows["apart"]][["depth", "value"]].to_numpy().T, "o", color="C0")
        drawn_on = ax.set(xlabel="depth", ylabel=f"{names[0]} − {names[1]}")

# %%
if two:
    apart = gaps[gaps["apart"]].groupby("metric", sort=False)
    where = apart["depth"].agg(["min", "count"])
    where = where.set_axis(["first depth apart", "depths apart"], axis=1)
    where = where.reindex(SIDES).fillna({"depths apart": 0})
    where = where.rename(plots.metric_label).rename_axis(None)
    display(where.rename_axis(f"{names[0]} less {names[1]}", axis=1))
else:
    print("with two models, this is where their differences are drawn")

# %% [markdown] tags=["site"]
# ## From a shell
#
# The same, as a folder with a page, its figures and the numbers behind them:
#
# ```bash
# python -m nbhelpers.analyse vit_small_patch16_224.dino \
#     --images /path/to/images --out report
# ```
#
# Two models on one line are compared, by names or files that `save_encoder` wrote:
# `python -m nbhelpers.analyse vit_base_patch16_224.mae vit_base_patch16_224.dino --images ... --out report`.

# %% [markdown] tags=["site"]
# ## Try it yourself
#
# 1. Set `MODELS` to names that `timm` knows, such as `"vit_base_patch16_224.mae"`.
# 2. Set `IMAGES` to a folder of your own photographs.
# 3. Fine-tune a model and put it beside the one you started from: which figures move most?
