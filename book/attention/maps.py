# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Attention maps
#
# **Claim.** In the late blocks of a contrastive encoder, different query tokens of an image have the same attention map,
# often the outline of the object; in a masked image model each query looks around itself {cite:p}`park2023what`.
#
# An attention map is easy to look at, and easy to read too much into. This chapter first shows maps and then measures
# what they seem to show: how alike the maps of two queries are, and whether they lie on the object.
#
# The map of query $q$ is its row of the attention matrix among the patch tokens. Two maps are compared by their cosine:
#
# $$
# \begin{gathered}
# A_{qk} = \frac{\exp(q_q \cdot k_k / \sqrt{d})}{\sum_{k'} \exp(q_q \cdot k_{k'} / \sqrt{d})}, \\[0.6em]
# c = \frac{1}{N (N - 1)} \sum_{q \neq q'} \cos(A_{q\cdot}, A_{q'\cdot}) .
# \end{gathered}
# $$
#
# The cosine is 0 if two queries share no key, and 1 if they have the same map.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000
SEED = 0
IMAGE = 2  # which generated test image
QUERIES = [(0.2, 0.2), (0.5, 0.5), (0.8, 0.6)]  # shares of the image's height and width

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import load, plots, scorecard, study
from nbhelpers.images import photographs
from nbhelpers.measure import attention_maps, object_attention_by_depth
from nbhelpers.results import at_end, by_label, gather, late, published_maps, table
from nbhelpers.scorecard.evidence import READINGS
from nbhelpers.studies import OWN, at_hand, distinct_labels, label

plots.style()
frames, missing = gather(STUDIES, ["query_cosine"], MODELS, N_IMAGES, SEED)
pairs = {name: MODELS or [f"{name}.cl", f"{name}.mim"] for name in OWN}

# %% [markdown]
# ## Three queries on one image
#
# Each row shows the image as the model sees it, followed by the maps of one query at three depths. Compare the three rows
# of a model in the last column.

# %% tags=["hide-input"]
DEPTHS = (1 / 8, 1 / 2, 1)  # as shares of each model's own


def maps(encoders, image):
    """By label, the image as the encoder sees it, and its attention L H N R C."""
    found, names = {}, distinct_labels(e.name for e in encoders)
    for name, e in zip(names, encoders, strict=True):
        seen = e.resize(image)
        found[name] = seen, attention_maps(e, seen)[:, 0].unflatten(-1, e.grid)
    return found


# %% mystnb={"image": {"classes": "pictures", "alt": "Attention maps of three query patches on a generated image at three depths: one row per model and query, with the image first and then the maps, the query patch outlined in each."}, "figure": {"caption": "Attention maps of three query patches on a generated image, averaged over heads, each on its own scale from dark (zero) to bright (the map's maximum). Columns: the image with the query outlined, then an early, a middle and the last block. If a model's rows are alike in the last column, all three queries have the same map."}}
image = study("shapes").images("test").batch([IMAGE])
looking = maps(study("shapes").encoders(pairs["shapes"]), image)
figure = plots.query_maps(looking, QUERIES, DEPTHS)

# %% [markdown]
# The same for a photograph that comes with scikit-image. Unless `MODELS` names others, the encoders are those trained on
# CIFAR-10:

# %% mystnb={"image": {"classes": "pictures", "alt": "Attention maps of three query patches on a photograph of a cup of coffee at three depths: one row per model and query, with the photograph first and then the maps, the query patch outlined in each."}, "figure": {"caption": "As above, for a photograph of a cup of coffee, which is not in CIFAR-10 and shows none of its ten classes."}}
encoders = study("cifar10").encoders(pairs["cifar10"])
size = max(max(e.image_size) for e in encoders)
photograph_maps = maps(encoders, photographs(size).batch([3]))
figure = plots.query_maps(photograph_maps, QUERIES, DEPTHS)

# %% [markdown]
# ## Result
#
# Whether the map depends on the query is judged by the mutual information of query and key (see [Attention
# collapse](collapse.py)):

# %% tags=["hide-input"]
scorecard.result(["2"], STUDIES, MODELS)

# %% [markdown]
# Whether the map lies on the object is a second question. The answer depends on the kind of query and on the reference.
# The rows below were fixed after their curves had been seen. Their reference is the same map on the objects of other
# images; the first one was the object's area, which a map exceeds by always looking at the middle, where objects lie:

# %% tags=["hide-input"]
scorecard.result(["21a", "21b", "21c"], ["shapes"], MODELS)

# %% [markdown]
# ## Any query, at any depth, in any head
#
# On [Your own picture](../own/picture.py) you can click a patch, or move the query with the arrow keys, and see its map
# at any depth and in any head, on generated images, photographs and your own pictures. [Your own model](../own/model.py)
# does the same for any encoder. Look at the last blocks, where the two kinds of training differ most visibly, and compare
# the attention distance below each map with that of uniform attention, which reaches further from a corner than from the
# middle.

# %% [markdown]
# ## The quantity
#
# Three queries on one image prove nothing, so eight images pass through one encoder. `capture` collects the queries and
# keys of each block as the model uses them, and `patch_attention` is the softmax in the formula above.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import mean_pairwise_cosine, patch_attention

here = at_hand(STUDIES)
encoder, images = load((MODELS or here.models)[0]), here.images("test")
blocks = []
with capture(encoder, on_attention=blocks.append):
    encoder.forward(encoder.batch(images, range(len(images))[:8]))
b = blocks[-1]
A = patch_attention(b.query, b.key, b.prefix, b.bias, b.scale)  # B H N N

# %%
unit = A / A.norm(dim=-1, keepdim=True)  # B H N N: maps of length one
cosines = unit @ unit.mT  # B H N N: every query with every other
N = A.shape[-1]
c = (cosines.sum((-2, -1)) - N) / (N * (N - 1))  # B H; without the N pairs q = q'

assert_close(c, mean_pairwise_cosine(A), atol=1e-4, rtol=1e-4)
values = c.mean(0)[None].cpu().numpy()
pd.DataFrame(values, index=["cosine"]).rename_axis(columns="head").round(3)

# %% [markdown]
# ## How alike are the maps of different queries?
#
# The same cosine over all images, for every block and head:

# %% mystnb={"image": {"alt": "Mean cosine between the attention maps of different queries against depth, from 0 to 1, one panel per study: a line per model and a dot per head."}, "figure": {"caption": "Mean cosine between the attention maps of different queries of an image, against depth. Lines: mean over heads, with the 95 % interval over images; dots: single heads; dashed: the same map for all queries, as flat maps also give."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, frames.values(), strict=False):
    same = (1, "same map for all queries")
    plots.by_depth(frame, "query_cosine", ax, heads=True, reference=same)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(frames.values(), "query_cosine")

# %% [markdown]
# The cosine averaged over the last third of the blocks. The row *published* compares the two maps in the paper's figure 2
# (one image and two queries, read off the poster, block and head unknown). Each of those maps is scaled to its own range,
# which lowers their cosine, so compare the order alone:

# %% tags=["hide-input"]
paper = published_maps().set_index(["objective", "query"])["value"]
theirs = {}
for kind in ("CL", "MIM"):
    one, two = (torch.tensor(paper[kind, query].to_numpy()) for query in (1, 2))
    theirs[kind] = torch.cosine_similarity(one, two, dim=0).item()
rows = {name: late(frame, "query_cosine") for name, frame in frames.items()}
both = pd.DataFrame(rows | {"published": theirs}).T
both.map("{:.2f}".format, na_action="ignore").fillna("")

# %% [markdown]
# A cosine near 1 has two possible causes: all queries look at the same places, or all look everywhere equally, as in an
# untrained encoder. The entropy in [Attention collapse](collapse.py) tells them apart, and so does the next section.

# %% [markdown]
# ## Does attention follow the object?
#
# In the images of `shapes`, the object's pixels are known, so the question can be answered by a number: the share of a
# query's attention that falls on patches of the object,
#
# $$
# m_q = \sum_{k \in \mathrm{object}} A_{qk} .
# $$
#
# Here $A$ is the softmax over *all* tokens, since the class token is one of the queries. A query that looks everywhere
# equally has a share equal to the object's area $a$; one that looks only at the object has a share of 1. The kind of
# query matters: the class token, a patch of the object (which finds the object by looking next to itself), or a patch of
# the background (which has to look for it).
#
# Objects lie near the middle, so a map that always looks there has a share above the area without having found anything.
# The same map is therefore also laid over the objects of *other* images,
#
# $$
# \bar m_q = a + \sum_{k} A_{qk} \, \langle o'_k - a' \rangle ,
# $$
#
# where $o'_k$ is 1 if key $k$ lies on another image's object and 0 otherwise, and $a'$ is that object's area, subtracted
# so that sizes do not count. The mean is over images in which the query is of the same kind: a patch of the object is
# compared with objects that also cover it, any other query with objects that do not. Only the excess of $m_q$ over
# $\bar m_q$ was found in the image itself.

# %%
from nbhelpers.measure import BEYOND_PLACE, OTHER_IMAGES
from nbhelpers.metrics import (
    object_attention,
    object_prior,
    object_tokens,
    queries_by_kind,
)

encoder, images = load((MODELS or ["shapes.cl"])[0]), study("shapes").images("test")
blocks = []
with capture(encoder, on_attention=blocks.append):
    encoder.forward(images.batch(range(8)))
b = blocks[-1]

# %%
on = object_tokens(encoder, images.masks[:8])  # B N: the keys of the sum
A = patch_attention(b.query, b.key, 0, b.bias, b.scale)  # B H N N, now over all tokens
m = (A * on[:, None, None]).sum(-1)  # B H N: a share for each query

assert_close(m, object_attention(A, on), atol=1e-5, rtol=1e-4)

# %%
o = object_tokens(encoder, images.masks).float()  # M N: of all images
others = (o - o.mean(1, keepdim=True))[1:].mean(0)  # N: mean without the first
a = on[0].float().mean()
m_bar = (A[0, :, 0] * (a + others)).sum(-1)  # H: class token, first image

p = object_prior(on, o.bool())  # B N N: the same for every query and image
assert_close(m_bar, (A[0, :, 0] * p[0, 0]).sum(-1), atol=1e-4, rtol=1e-3)

# %%
of_kind, m_bar = {}, (A * p[:, None]).sum(-1)  # B H N
for kind, chosen in queries_by_kind(encoder, on).items():  # B N: the queries
    for where, share in (("", m), (OTHER_IMAGES, m_bar)):
        own = share.masked_fill(~chosen[:, None], torch.nan)
        of_kind[kind + where] = own.nanmean((0, 2)).tolist()
pd.DataFrame(of_kind).rename_axis(index="head").T.round(3)

# %% [markdown]
# The same for every block, over all images:

# %% tags=["hide-input"]
shares = table("shapes", "objects", MODELS, n_images=N_IMAGES, seed=SEED)
whole = shares[shares["head"] < 0]
of = {kind: rows for kind, rows in whole.groupby("label", sort=False)}
areas = of.pop("uniform attention").groupby("model")["value"].mean()
kinds = [kind for kind in of if not kind.endswith((OTHER_IMAGES, BEYOND_PLACE))]

# %% mystnb={"image": {"alt": "Share of attention on the object against depth, from 0 to 1, one panel per kind of query (class token, object patches, background patches): a solid line per model, a dotted one for the same maps on the objects of other images, and a dashed line for the object's area."}, "figure": {"caption": "Share of attention that falls on the object, on generated images, by kind of query; mean over heads, with the 95 % interval over images. Dotted, in the same colour: the share of the same maps on the objects of other images. Dashed: the object's share of all tokens, which is also its share of uniform attention. The maximum is 1."}}
axes = plots.panels(kinds, sharey=True)
looks = plots.line_styles(zip(whole["model"], whole["objective"], strict=True))
for ax, kind in zip(axes, kinds, strict=True):
    plots.by_depth(of[kind], "object_attention", ax)
    for model, rows in of[kind + OTHER_IMAGES].groupby("model"):
        ax.plot(rows["depth"], rows["value"], ":", color=looks[model]["color"])
    ax.plot([], [], ":", color="#555555", label="objects of other images")
    for area in areas.round(2).unique():
        ax.axhline(area, color="#555555", lw=1, ls="--", label="area of the object")
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(shares, "object_attention")

# %% [markdown]
# The share in the last block and, in brackets, that of the same maps on the objects of other images:


# %% tags=["hide-input"]
def on_both(kind, read):
    """What is read off the curves on the object, and on the objects of other images."""
    return [read(of[each]) for each in (kind, kind + OTHER_IMAGES)]


def at_last(rows):
    return by_label(at_end(rows, "object_attention"))


columns = {}
for kind in kinds:
    here, there = on_both(kind, at_last)
    columns[kind] = {who: f"{here[who]:.2f} ({there[who]:.2f})" for who in here}
columns["area"] = areas.rename(label).map("{:.2f}".format).to_dict()
pd.DataFrame(columns)

# %% [markdown]
# "Attention follows the object" would be true of an encoder if all three kinds of query looked at the object more than
# its position explains. The background patches are the real test, since they have to look for it. The class token is a
# test only where training has used it: MIM's loss does not read the class token, so a low share there says nothing about
# masked image modelling.


# %% tags=["hide-input"]
def found(kind):
    """Labels of encoders whose last maps lie on the object beyond its position."""
    beyond = scorecard.read_labels(of[kind + BEYOND_PLACE], READINGS["last"])
    return {who for who, part in beyond.items() if part.low > 0.005}


# %% tags=["hide-input"]
names = {kind: " and ".join(sorted(found(kind))) or "no encoder" for kind in kinds}
said = "; ".join(f"from the {kind} in {those}" for kind, those in names.items())
Markdown(f"""In the last block, the object gets clearly more attention (by half a
percentage point or more) than its position explains {said}.""")

# %% [markdown]
# How far the share of the background patches lies above the dotted line in each block, in percentage points:

# %% tags=["hide-input"]
beyond = of["background patches" + BEYOND_PLACE]
beyond = beyond.pivot(index="model", columns="depth", values="value")
points = (100 * beyond).rename(index=label)
points.rename_axis(index=None, columns="block").map("{:+.1f}".format).replace(
    "-", "−", regex=True
)

# %% [markdown]
# ## What would refute it
#
# If the late maps of a contrastive encoder depended on the query as much as those of a masked encoder, row 2 of
# [Attention collapse](collapse.py) would not show. If the late curve of a kind of query lay at its dotted line or below
# it, that kind would not follow the object, and row 21a (class token) or 21b (background patches) would not show.

# %% tags=["hide-input"]
scorecard.rows("attention/maps", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - The late maps of different queries are more alike in CL than in MIM, but not equal.
# - On generated images CL's class token finds the object, though most of its excess over the object's area is due to
#   where objects lie. CL's background patches hardly find it: their share is a little above what position explains after
#   one late block and a little below after the last two, so its mean is just above zero. MIM's background patches find it
#   in the middle blocks, but no longer in the last.
# - Compare a map with the right reference. Where objects lie in the middle, a share above their area proves nothing; lay
#   the same map over other images.
# - Look at several queries before you believe a map: one map cannot show whether it depends on the query.
# - A high cosine says that all queries have the same map, not that this map picks anything out. Only a reference, here
#   the known object, shows that.
# - The clear maps that made DINO known are those of the class token {cite:p}`caron2021dino`. Maps of patches can look
#   different.
#
# ## Exercises
#
# 1. **Another model.** Where does an untrained ViT with twelve blocks look at 224 px? Run the chapter with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or the hidden cell below on eight images.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Nowhere in particular: each kind of query gives the object a share close to its
# area in these eight images.
(tiny,) = study("shapes").encoders(["random:vit_tiny_patch16_224"])
rows = object_attention_by_depth(tiny, images.select(range(8))).query("head < 0")
at_end(rows, "object_attention").set_index("label")[["value"]].round(2)

# %% [markdown]
# 2. **One head at a time.** An average over heads can hide that each head looks somewhere else. Draw every head of the
#    last block for the second query.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution", "image": {"classes": "pictures", "alt": "The photograph with one query outlined, and the attention maps of that query in every head of the last block, a row per model."}}
figure = plots.head_maps(photograph_maps, QUERIES[1], depth=1)

# %% [markdown]
# 3. **A fairer class token.** No loss trains MIM's class token. Take the mean map of all patches in its place, and
#    compare its share on the object with that on the objects of other images.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# The mean map's share is the mean of the patches' shares; approximately here, since
# both the shares and the area are already means over images.
curves = whole.pivot_table("value", ["model", "depth"], "label", sort=False)
area, both = curves["uniform attention"], {}
for place, where in (("its object", ""), ("other objects", OTHER_IMAGES)):
    kinds_here = (f"{kind} patches{where}" for kind in ("object", "background"))
    inside, outside = (curves[kind] for kind in kinds_here)
    both[place] = area * inside + (1 - area) * outside
shares_of_both = pd.concat(both).unstack("depth").rename(index=label)
shares_of_both.rename_axis(index=[None, None], columns="block").round(2)
