# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Your own model
#
# **Claim.** Nothing in this book is tied to its own models. It can read any Vision Transformer whose heads each compute a
# softmax over one grid of patches. This page draws the book's curves of attention, tokens and spectra for the models that
# you give it. What needs labels or training, such as probes and fine-tuning, is left to the chapters.
#
# The figures need little from a model: the queries, keys and values of every block as the model uses them, and the
# residual stream between blocks. These are captured while the model runs, after normalisation, rotary positions and
# position bias, so the model's code need not change.

# %% [markdown] tags=["site"]
# Change one line below to see a model of your own. The two models listed there were trained on the photographs of
# CIFAR-10 and look at generated shapes here, a kind of image that they have never seen. With `IMAGES = "cifar10"` they
# look at photographs of their own kind. To use a module that you built yourself, `wrap` it and put the result into
# `MODELS`: see [Bring a model](bring.py).

# %% tags=["parameters"]
# the book's names, timm names, "hf-hub:...", files of save_encoder, or "random:..."
MODELS = ["cifar10.mim", "cifar10.cl"]
IMAGES = "shapes"  # a study, or "folder:/path/to/images"
N_IMAGES = 500  # None: all
SEED = 0
BATCH_SIZE = 64
DEVICE = None  # "cpu", "cuda"; None: a GPU when there is one
FROM_FILE = None  # local weight file, if MODELS has one entry
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
# ## What was read from the models
#
# Prefix tokens, patch grid and preprocessing are read from each model. Preprocessing is the mean and standard deviation
# of the colours, and the centre crop as a share of the resized image's side. If an entry of this table is not what you
# expect, do not trust any figure below it.

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
Markdown(f"Curves and spectra use {what}; maps and single tokens use the first image.")

# %% [markdown]
# ## Attention maps
#
# The first image as each model sees it, and beside it the attention maps of three queries at four depths. The depths are
# the same fractions of each model's number of blocks.

# %% mystnb={"image": {"classes": "pictures", "alt": "One figure per model, one row per query: the image with the query outlined, and beside it the attention maps of that query at four depths."}, "figure": {"caption": "Attention maps of the model named at the left: the image with the query outlined (left column) and the query's maps at four depths, averaged over heads. Each map has its own scale, from dark (no attention) to bright (the map's maximum)."}}
pictures = [encoder.resize(images.batch([0])) for encoder in encoders]
queries = [(0.2, 0.2), (0.5, 0.5), (0.8, 0.6)]
depths = (1 / 8, 3 / 8, 5 / 8, 1)
for name, e, image in zip(names, encoders, pictures, strict=True):
    maps = {name: (image, attention_maps(e, image)[:, 0].unflatten(-1, e.grid))}
    figure = plots.query_maps(maps, queries, depths)

# %% [markdown]
# Click any patch, or move the query with the arrow keys:

# %%
interactive.explore(pictures[0], encoders)

# %% [markdown]
# ## Curves
#
# One pass over the images per model measures everything. Lines are means over heads and images, with the 95 % interval
# over images; dots are single heads; depth 0 is the embedding.

# %%
each = [analyse(encoder, images, list(METRICS), BATCH_SIZE) for encoder in encoders]
frame = pd.concat(each, ignore_index=True).assign(source=COMPUTED)
if OUT:
    frame.to_csv(Path(OUT) / "metrics.csv", index=False)
plots.download(frame, "metrics")

# %% tags=["hide-input"]
REFERENCES = {  # metric -> what a model without structure has
    "attention_distance": "uniform attention",
    "attention_entropy": "uniform attention",
    "prefix_attention": "uniform attention",
    "query_cosine": "same map for all queries",
    "head_map_cosine": "same map for all heads",
    "common_update_share": "independent updates",
    "token_norm_peak": "all tokens alike",
}


def references(metric):
    """The values of a model without structure, one for each grid."""
    reference = METRICS[metric].reference
    return sorted({reference(e) for e in encoders}) if metric in REFERENCES else []


# %%
def curves(*metrics, heads=False):
    """A panel per metric, with a dashed line for a model without structure."""
    axes = plots.panels([""] * len(metrics))
    dashed = {"color": "#555555", "lw": 1, "ls": (0, (4, 2))}
    for ax, metric in zip(axes, metrics, strict=True):
        for value in references(metric):
            name = f"{REFERENCES[metric]}: {value:.3g}"
            ax.axhline(value, label=name, **dashed)
        plots.by_depth(frame, metric, ax, heads=heads)
    return plots.legend_below(axes)


# %% mystnb={"image": {"alt": "Attention distance in pixels against depth, a line per model."}, "figure": {"caption": "Attention distance against depth, in pixels of the model's input. Lines: mean over heads, with the 95 % interval over images; dots: single heads; dashed: uniform attention."}}
legend = curves("attention_distance", heads=True)

# %% [markdown]
# NMI is 0 if all queries have the same map, entropy is 1 if attention is uniform, and the cosine between maps, of different
# queries or of different heads, is 1 if they are all the same.

# %% mystnb={"image": {"alt": "Normalised mutual information and attention entropy against depth, a line per model."}, "figure": {"caption": "NMI of query and key, and attention entropy as a share of its maximum, against depth."}}
legend = curves("nmi", "attention_entropy", heads=True)

# %% mystnb={"image": {"alt": "Cosine between the maps of queries, between the maps of heads, and between the outputs of heads, against depth, a line per model."}, "figure": {"caption": "Cosine similarity against depth: between the maps of different queries of a head, between the maps of different heads for a query, and between the outputs of different heads."}}
legend = curves("query_cosine", "head_map_cosine", "head_cosine")

# %% [markdown]
# The next four cosines say how alike the tokens of an image are, how alike the outputs of attention for them are, and how
# little a token's direction changes across attention and across a whole block.

# %% mystnb={"image": {"alt": "Cosine between tokens, between attention outputs, across attention and across a block, against depth, a line per model."}, "figure": {"caption": "Four cosine similarities against depth: between the tokens of an image, between the outputs of attention for them, and of a token with itself before and after attention and before and after a block."}}
between = ["token_cosine", "attention_token_cosine"]
legend = curves(*between, "across_attention_cosine", "across_block_cosine")

# %% [markdown]
# The tokens of the first image before and after attention. The horizontal axis is the direction of their mean update, the
# common step; the vertical axis is the direction in which the tokens vary most apart from it. The number below each panel
# is the share of the movement that is common to all tokens; independent updates of N tokens would give 1 / N.

# %% mystnb={"image": {"alt": "Tokens of an image before and after self-attention at four depths, a row per model: each token is a line that ends in a dot."}, "figure": {"caption": "Tokens of one image in a plane: to the right, their common step; upwards, the direction in which they vary most apart from it. Each line runs from a token's place before self-attention to a dot at its place afterwards. Below each panel: the common share of the movement."}}
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

# %% mystnb={"image": {"alt": "Common share of the update, and effective rank of the tokens, against depth, a line per model."}, "figure": {"caption": "Common share of the tokens' update by self-attention (dashed: independent updates), and effective rank of an image's tokens, against depth."}}
legend = curves("common_update_share", "token_effective_rank")

# %% [markdown]
# Eigenvalue spectra over the tokens of an image and over images, and the amplitude of spatial frequencies, a line per
# depth:


# %%
def spectra(metric):
    """A panel per model, a line per depth."""
    deepest = max(encoder.depth for encoder in encoders)
    axes = plots.panels(names, sharey=True)
    for ax, (_, rows) in zip(axes, frame.groupby("model", sort=False), strict=True):
        plots.spectra(rows, metric, ax, deepest)
    axes[0].set_ylim(bottom=max(-15, axes[0].get_ylim()[0]))  # below: rounding
    return plots.depth_bar(axes, deepest)


# %% mystnb={"image": {"alt": "Token spectrum, a panel per model and a line per depth."}, "figure": {"caption": "Log eigenvalues of the covariance of an image's tokens, relative to the largest, against rank. Values below −15 are not drawn."}}
bar = spectra("token_spectrum")

# %% mystnb={"image": {"alt": "Image spectrum, a panel per model and a line per depth."}, "figure": {"caption": "Log eigenvalues of the covariance of the images' mean tokens, relative to the largest, against rank."}}
bar = spectra("image_spectrum")

# %% mystnb={"image": {"alt": "Log amplitude against spatial frequency, a panel per model and a line per depth."}, "figure": {"caption": "Log amplitude of the tokens on their grid against spatial frequency, relative to frequency 0."}}
bar = spectra("fourier_radial")

# %% mystnb={"image": {"alt": "Delta log amplitude against depth, a line per model."}, "figure": {"caption": "Log amplitude at the highest frequency below Nyquist, relative to frequency 0, against depth."}}
legend = curves("delta_log_amplitude")

# %% [markdown]
# Four quantities show attention sinks: the norm of the patch tokens, the largest norm in an image relative to the median,
# the share of tokens with more than three times the median norm, and the attention that patches pay to prefix tokens.

# %% mystnb={"image": {"alt": "Token norm, its peak, the share of outlier tokens and attention to prefix tokens, against depth, a line per model."}, "figure": {"caption": "Norm of patch tokens, largest norm in an image relative to the median, share of tokens with more than three times the median norm, and attention of patches to prefix tokens, against depth."}}
legend = curves("token_norm", "token_norm_peak", "outlier_tokens", "prefix_attention")

# %% [markdown]
# ## At which depths do two models differ?
#
# With exactly two models, such as two checkpoints of one run, a model before and after fine-tuning, two objectives or two
# sizes, this section draws the first minus the second, depth by depth. If their numbers of blocks differ, the depths are
# those of the first, and the second is read at the same fraction of its own depth. The intervals treat the two models as
# independent although both saw the same images, which makes them wider than necessary: a difference marked with a dot is
# hardly an accident of the images. Whether other training runs would repeat it, one run of each cannot say.

# %% mystnb={"image": {"alt": "Difference between the two models against depth with its interval, a panel per metric; dots mark the depths at which they differ."}, "figure": {"caption": "The first model minus the second, against depth. Bands: 95 % interval over images; dots: depths at which an interval that holds for all depths together excludes 0."}}
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
    display(where.rename_axis(f"{names[0]} − {names[1]}", axis=1))
else:
    print("With exactly two models, this section shows their differences.")

# %% [markdown] tags=["site"]
# ## From a shell
#
# The same analysis from the command line, as a folder with a page, its figures and the numbers behind them:
#
# ```bash
# python -m nbhelpers.analyse vit_small_patch16_224.dino \
#     --images /path/to/images --out report
# ```
#
# To compare two models, give both on the command line, as names or as files that `save_encoder` wrote:
# `python -m nbhelpers.analyse vit_base_patch16_224.mae vit_base_patch16_224.dino --images ... --out report`.

# %% [markdown] tags=["site"]
# ## Try it yourself
#
# 1. Set `MODELS` to names that `timm` knows, such as `"vit_base_patch16_224.mae"`.
# 2. Set `IMAGES` to a folder of your own photographs.
# 3. Fine-tune a model and put it beside the one you started from: which figures change most?
