# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Attention distance
#
# **Claim.** Contrastive encoders look further: their self-attention reaches over a longer distance than that of masked
# image models, above all in the late blocks {cite:p}`park2023what`.
#
# A convolution sees as far as its kernel. A Vision Transformer can look across the whole image from its first block on;
# how far it looks is learnt. One would expect neighbours to be the best guide for filling in a hidden patch, whereas no
# single neighbourhood is enough to tell one image from all others.
#
# The *attention distance* of a head is the distance in pixels between a query patch and the patches it attends to,
# weighted by attention and averaged over the $N$ queries:
#
# $$
# \begin{gathered}
# D = \frac{1}{N} \sum_{q} \sum_{k} A_{qk}\, d_{qk}, \\[0.6em]
# d_{qk} = \lVert x_q - x_k \rVert ,
# \end{gathered}
# $$
#
# where $x$ are the centres of the patches and $A$ is the attention among patch tokens, with rows that sum to one. Uniform
# attention has a distance too: the mean of $d$ over all pairs, 116.5 px on a grid of $14 \times 14$ patches of 16 px. A
# distance can be interpreted only beside that value.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000
SEED = 0

# %% tags=["hide-input"]
import math

import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import load, plots, scorecard, study
from nbhelpers.metrics import patch_distances
from nbhelpers.results import difference_to_published, gather, late, published
from nbhelpers.studies import at_hand, labels

plots.style()
METRICS = ["attention_distance", "attention_entropy"]
frames, missing = gather(STUDIES, METRICS, MODELS, N_IMAGES, SEED)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["1"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder. `capture` collects the queries and keys of each block as the model uses them; a
# softmax over the patch tokens gives $A$, and the line that begins with `D =` is the formula.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import attention_distance, patch_attention

here = at_hand(STUDIES)
encoder, images = load((MODELS or here.models)[0]), here.images("test")
blocks = []
with capture(encoder, on_attention=blocks.append):
    encoder.forward(encoder.batch(images, range(len(images))[:8]))
b = blocks[-2]
A = patch_attention(b.query, b.key, b.prefix, b.bias, b.scale)  # B H N N

# %%
(rows, columns), (height, width) = b.grid, b.patch_size
places = torch.arange(rows) * height, torch.arange(columns) * width
x = torch.cartesian_prod(*places).to(A)  # N 2: centres of the patches, px
d = (x[:, None] - x[None]).norm(dim=-1)  # N N
D = (A * d).sum(-1).mean(-1)  # B H, px

assert_close(D, attention_distance(A, b.grid, b.patch_size), atol=1e-3, rtol=1e-4)
line = {"this block": D.mean().item(), "uniform attention": d.mean().item()}
pd.DataFrame(line, index=["D, px"]).round(2)

# %% [markdown]
# ## Distance by depth
#
# The same quantity over all images, for every block and head. The dashed line is the distance of uniform attention on the
# panel's patch grid; compare pixels only between panels with the same line.


# %% tags=["hide-input"]
def uniform(grid, patch_size):
    """The distance of attention that is uniform, px."""
    return float(patch_distances(grid, patch_size).mean())


reach = {}  # by study and label
for name in frames:
    encoders = study(name).encoders(MODELS)
    called = labels(e.name for e in encoders)
    reach[name] = {called[e.name]: uniform(e.grid, e.patch_size) for e in encoders}


# %% tags=["hide-input"]
def dashed(ax, px):
    """The distance of attention that is uniform."""
    line = {"color": "#555555", "lw": 1, "ls": "--"}
    ax.axhline(px, label=f"uniform attention, {px:.1f} px", **line)


def same_height(drawn):
    """Give panels with the same dashed lines the same height, to compare by eye."""
    for name, ax in drawn.items():
        lines = {*reach[name].values()}
        alike = [drawn[other] for other in drawn if {*reach[other].values()} == lines]
        ax.set_ylim(0, 1.05 * max(each.dataLim.ymax for each in alike))


# %% mystnb={"image": {"alt": "Attention distance in pixels against depth, one panel per study: a line per model, a dot per head, and a dashed line for uniform attention. The last panel shows public ViT-B/16 on 59 images: in the late blocks MoCo v3 rises almost to uniform attention and SimMIM falls."}, "figure": {"caption": "Attention distance against depth. Lines: mean over heads, with the 95 % interval over images; dots: single heads; dashed: uniform attention. Last panel: public ViT-B/16 on 59 images of Imagenette, read off the output of the official notebook (MoCo v3) and of a third party's run of the official code and weights (SimMIM); the reading error is smaller than the markers."}}
titles = [*map(plots.title, frames.values()), *missing, "published"]
axes = plots.panels(titles, missing=missing)
for ax, (name, frame) in zip(axes, frames.items(), strict=False):
    plots.by_depth(frame, "attention_distance", ax, heads=True)
    for px in {*reach[name].values()}:
        dashed(ax, px)
same_height(dict(zip(frames, axes, strict=False)))
plots.published_by_depth(published(), "attention_distance", axes[-1])
dashed(axes[-1], uniform((14, 14), 16))
axes[-1].set(title="public ViT-B/16, 59 images", ylim=(0, 1.05 * axes[-1].dataLim.ymax))
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
every = pd.concat([pd.DataFrame(), *frames.values()])
plots.download(every, "attention_distance")

# %% [markdown]
# If `STUDIES` contains `"imagenet"`, a table follows with the root-mean-square deviation of the paper's own models from
# these curves, beside the reading error.

# %% tags=["remove-input"]
gaps = difference_to_published(every, "attention_distance")
gaps.round(1) if len(gaps) else None

# %% [markdown]
# Attention distance in pixels, averaged over the last third of the blocks, and that of uniform attention on each model's
# grid:

# %% tags=["hide-input"]
rows = {}
for name, frame in frames.items():
    each = {"attention": late(frame, METRICS[0]), "uniform attention": reach[name]}
    rows |= {(study(name).title, what): of for what, of in each.items()}
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# ## Does a head look far, or everywhere?
#
# A distance at the dashed line can come from a map that follows a large object or from a flat map. The **attention
# entropy** of a head tells the two apart: it is 1 only for the flat map ([Attention collapse](collapse.py) gives its
# formula).


# %% tags=["hide-input"]
def by_head(frame):
    """A row per head, a column per metric."""
    keys = ["model", "objective", "depth", "head"]
    heads = frame[frame["head"] >= 0]
    return heads.pivot(index=keys, columns="metric", values="value")


def half_spread(encoder):
    """The entropy of attention that is even over half of the patches."""
    patches = math.prod(encoder.grid)
    return math.log(patches / 2, patches)


# %% tags=["hide-input"]
def dots(frame, ax):
    """A dot per head: its distance against its entropy."""
    models = by_head(frame).groupby(["model", "objective"], sort=False)
    looks, called = plots.line_styles(list(models.groups)), labels(frame["model"])
    for (who, _), points in models:
        look = looks[who] | {"linestyle": "none", "alpha": 0.6}
        ax.plot(points[METRICS[1]], points[METRICS[0]], label=called[who], **look)
    y, x = map(plots.metric_label, METRICS)
    ax.set(xlabel=x, ylabel=y, xlim=(0, 1.02))


# %% mystnb={"image": {"alt": "Attention distance against attention entropy, one panel per study, a dot for each head of every block. A dashed line marks the distance of uniform attention, a dotted line the entropy below which a head counts as selective."}, "figure": {"caption": "Attention distance against attention entropy, a dot for each head of every block. Upper left: heads that look far and select. Lower left: heads that look near. Right end of the dashed line: nearly uniform heads, whose distance comes from the grid and not from anything in the image. Dotted: the entropy of attention spread evenly over half of the patches; the table below counts heads below it as selective."}}
axes = plots.panels([*map(plots.title, frames.values()), *missing], missing=missing)
for ax, (name, frame) in zip(axes, frames.items(), strict=False):
    dots(frame, ax)
    for px in {*reach[name].values()}:
        dashed(ax, px)
    for half in {half_spread(e) for e in study(name).encoders(MODELS)}:
        ax.axvline(
            half, color="#555555", lw=1, ls=":", label="even over half of the patches"
        )
same_height(dict(zip(frames, axes, strict=False)))
legend = plots.legend_below(axes)

# %% [markdown]
# If an encoder's far heads lie at the right end, its long distance comes from selecting little. Only heads in the upper
# left look far and choose what they look at.
#
# To count them, call a head *far* if it reaches at least as far as uniform attention, and *selective* if its entropy is
# below $\log (N / 2) / \log N$, that of attention spread evenly over half of the patches. The test is strict: a head that
# looks at an object in the middle tends to fail it, because that object is nearer to most queries than the average patch.


# %% tags=["hide-input"]
def far_heads(name):
    """By label: the far heads, how many of these are selective, and late entropy."""
    found, entropy = {}, late(frames[name], METRICS[1])
    encoders = study(name).encoders(MODELS)
    for e, who in zip(encoders, labels(e.name for e in encoders).values(), strict=True):
        points = by_head(frames[name]).query("model == @e.name")
        far = points.loc[points[METRICS[0]] >= reach[name][who], METRICS[1]]
        some = int((far < half_spread(e)).sum())
        found[who] = [len(far), some, round(entropy[who], 2)]
    return found


# %% tags=["hide-input"]
counts = {name: far_heads(name) for name in frames}
rows = {(name, who): row for name in counts for who, row in counts[name].items()}
columns = ["far heads", "of these select", "late entropy"]
if rows:
    shown = pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows), columns)
shown if rows else None

# %% tags=["hide-input"]
cl = {study(k).title: each["CL"] for k, each in counts.items() if "CL" in each}
without = [name for name, (_, some, _) in cl.items() if not some]
said = "Some far heads of CL are also selective."
if without:
    said = f"A far head need not be selective: on {' and '.join(without)} no far "
    said += "head of CL is, and CL's late entropy there is "
    said += " and ".join(f"{cl[name][2]:.2f}" for name in without) + "."
Markdown(said if cl else "CL is not among these encoders.")

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose distance in the last third of its blocks does not exceed that of a masked encoder of the
# same architecture, trained on the same images, by more than the 95 % interval. The row of the [scorecard](../index.py)
# that gave the result above tests this:

# %% tags=["hide-input"]
scorecard.rows("attention/distance", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - CL's late attention reaches further than MIM's. On photographs, several seeds that were trained more briefly repeat
#   this. On generated images they do not decide it: the last block of each of their MIMs attends almost uniformly, which
#   counts as far.
# - CL's late maps are also flatter: their entropy is higher. By the test above, no far head of CL is selective at any
#   depth, so its long reach is no evidence that it looks *at* something distant.
# - Attention distance is the counterpart of a convolution's receptive field, except that it is learnt.
# - A distance means nothing without the value of uniform attention: looking nowhere in particular counts as looking far.
# - To look at something distant, a head must be both far and selective. Count such heads in the upper left of the second
#   figure; neither a mean over heads nor a distance alone shows them.
#
# ## Exercises
#
# 1. **Another model.** What distance do you expect of an untrained ViT with twelve blocks at 224 px? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or on a few images in the hidden cell below.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Small random weights give nearly uniform attention: 116.49 px on this grid.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
pd.DataFrame({plots.metric_label(m): late(tiny["shapes"], m) for m in METRICS}).round(2)

# %% [markdown]
# 2. **Specialists.** Which three heads of each model look furthest, and at which depth?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
heads = pd.concat([tiny["shapes"][:0], *frames.values()])
heads = heads.query("metric == 'attention_distance' and head >= 0")
furthest = heads.sort_values("value", ascending=False).groupby("model").head(3)
furthest = furthest.sort_values(["model", "depth"]).set_index(
    ["model", "depth", "head"]
)
furthest[["value"]].rename(columns={"value": "px"}).round(1)

# %% [markdown]
# 3. **One neighbour.** What is the distance of a head that attends only to the patch on its right? Build its $A$ and
#    check.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
right = torch.eye(4).roll(1, dims=1).expand(1, 1, 4, 4)  # patch 4 looks back at patch 1
attention_distance(right, grid=(1, 4), patch_size=16)  # (16 + 16 + 16 + 48) / 4 = 24
