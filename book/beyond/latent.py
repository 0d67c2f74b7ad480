# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Pixels or masking?
#
# **Claim.** What sets masked image modelling apart from contrastive learning is that it predicts *pixels*, not that it
# *masks*. A masked model that predicts features attends farther and with less regard to where the query is, keeps fewer
# high frequencies, relies more on shape, and more often has nearest neighbours of the same class.
#
# The paper compares contrastive encoders with SimMIM and MAE, and calls masked image modelling local and
# texture-oriented. Both of these fill in pixels. Later models also hide much of the image but fill in something else:
# data2vec the features of a teacher {cite:p}`baevski2022data2vec`, BEiT v2 distilled tokens, CAPI cluster assignments
# {cite:p}`darcet2025cluster`. It is the difference between asking for the letters of a hidden word and asking for its
# meaning. The nearest neighbours of BEiT v2 on ImageNet are about as good as those of contrastive models (table of
# published encoders below).
#
# To separate the effect of masking from that of the pixels, little besides the target may change. *Latent MIM* is
# SimMIM with its masks, its views and its linear decoder; only the pixels are replaced, by the features of a teacher that
# sees the whole image. The teacher is a moving average of the student. With $x_{kbnd}$ the output of its block $k$ for
# image $b$, patch $n$ and channel $d$, the target is the mean of the last $K$ blocks, each standardised over the images
# and patches of the batch,
#
# $$
# \begin{gathered}
# t_{bnd} = \frac{1}{K} \sum_{k} \frac{x_{kbnd} - \mu_{kd}}{\sigma_{kd}}, \\[0.6em]
# L = \operatorname{mean}_{\,b,\,n \in M_b,\,d} \; h\bigl(\hat t_{bnd} - t_{bnd}\bigr) ,
# \end{gathered}
# $$
#
# with $M_b$ the hidden patches and $h$ the smooth absolute error: $e^2/2$ for errors below 1, $|e| - 1/2$ above.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000
SEED = 0

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.metrics import patch_distances
from nbhelpers.results import StaleTableError, gather, published_triples, table
from nbhelpers.results.summary import at_end, late
from nbhelpers.studies import OWN

plots.style()

# %% tags=["hide-input"]
METRICS = ["attention_distance", "nmi", "attention_entropy", "delta_log_amplitude"]
frames, missing, probes, unread = {}, {}, {}, {}
for name in STUDIES:
    alike = MODELS or study(name).alike("cl", "mim", "latent")
    models = MODELS or [*alike, study(name).models[-1]]  # the last is untrained
    found, lacking = gather([name], METRICS, models, N_IMAGES, SEED)
    frames, missing = frames | found, missing | lacking
    try:
        draw = {"n_images": N_IMAGES, "seed": SEED}
        probes[name] = table(name, "probes", models, **draw)
    except (MissingDataError, StaleTableError, ValueError) as reason:
        unread[name] = str(reason)  # such as too few images to learn from

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["17a", "17b", "17c", "17d", "17e"], STUDIES, MODELS)

# %% [markdown]
# Within a study, the encoders have the same width and saw as many images as the latent one did; the legends say so where
# that is fewer than elsewhere in the book. Only the untrained encoder (random) has the usual width. After so few images
# CL does not yet have all of its traits ([When do the findings appear?](moments.py)), and on generated images MIM's late
# attention reaches nearly as far as uniform attention would, so row 17a has little room there.
#
# ## The quantity
#
# What a student would have to predict for some images if the latent encoder were its teacher: the formula above, for the
# encoder's last four blocks. The loss is that of a student that has learnt nothing and predicts 0 everywhere.

# %%
from torch.nn.functional import interpolate

from nbhelpers.capture import capture
from nbhelpers.pretrain.latent import masked_smooth_l1, standardised_mean
from nbhelpers.pretrain.simmim import block_mask, patches

teacher = study("shapes").encoders((MODELS or study("shapes").alike("latent"))[:1])[0]
images, streams, few = study("shapes").images("test"), [], min(64, N_IMAGES)
with capture(teacher, on_stream=streams.append, places=("block",)):
    teacher.forward(teacher.batch(images, torch.arange(few)))
x = torch.stack([s.patches.cpu() for s in streams[-4:]])  # K B N D

# %%
mu = x.mean((1, 2), keepdim=True)
sigma = x.var((1, 2), correction=0, keepdim=True).sqrt()
t = ((x - mu) / (sigma**2 + 1e-5).sqrt()).mean(0)  # B N D
unit = 1 if any(n % 2 for n in teacher.grid) else 2  # squares have to tile the grid
M = block_mask(few, teacher.grid, unit, 0.6, torch.Generator().manual_seed(SEED))
e = t[M.flatten(1)].abs()  # a prediction of 0 is off by the target itself
L = torch.where(e < 1, e**2 / 2, e - 0.5).mean()

assert_close(t, standardised_mean(list(x)), atol=1e-4, rtol=1e-4)
assert_close(L, masked_smooth_l1(0 * t, t, M.flatten(1)), atol=1e-4, rtol=1e-4)
pd.DataFrame({"loss L": float(L)}, index=["predicting 0"]).round(3)

# %% [markdown]
# The figure shows the image, what the student sees of it, and what it has to predict. Patches of similar colour have
# similar targets. In most images the colours change from left to right: much of the target says where a patch is, not
# what it shows.

# %% mystnb={"image": {"classes": "pictures", "alt": "Six generated images in three rows: the image, the image with ten of each sixteen patches grey, and its grid of patches coloured by the first three principal components of the target."}, "figure": {"caption": "What is predicted. Top: images. Middle: what the student sees of them. Bottom: the target, each patch coloured by its first three principal components over all images of this section. SimMIM would predict the hidden patches of the top row."}}
flat = t.flatten(0, 1)
colours = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].T  # B*N 3
low, high = colours.quantile(torch.tensor([0.02, 0.98]), dim=0)
colours = ((colours - low) / (high - low)).clamp(0, 1).view(few, *teacher.grid, 3)
side = 4  # pixels of a patch, as drawn
six = teacher.resize(images.batch(range(min(6, few)))).float()
shown = interpolate(six, [side * n for n in teacher.grid]).to(torch.uint8)
hidden = M[: len(six)].repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
target = (255 * colours[: len(six)].permute(0, 3, 1, 2)).to(torch.uint8)
target = target.repeat_interleave(side, 2).repeat_interleave(side, 3)
rows = [shown, torch.where(hidden, 160, shown).to(torch.uint8), target]
ax = plots.gallery(torch.cat(rows), len(six))

# %% [markdown]
# ## How far does attention reach, and does it depend on the query?
#
# The measures of [Attention distance](../attention/distance.py) and [Attention collapse](../attention/collapse.py),
# applied to the three encoders.


# %% tags=["hide-input"]
dashed = {"color": "#555555", "lw": 1, "ls": "--"}


def draw(metric, uniform=None, chosen=frames, lacking=missing):
    """A panel per study, over depth; `uniform` gives an encoder's reference line."""
    axes = plots.panels(
        [*map(plots.title, chosen.values()), *lacking], sharey=True, missing=lacking
    )
    for ax, (name, frame) in zip(axes, chosen.items(), strict=False):
        plots.by_depth(frame, metric, ax)
        grids = {(e.grid, e.patch_size) for e in study(name).encoders(MODELS)}
        for grid in sorted(grids) if uniform else ():
            ax.axhline(float(uniform(*grid)), **dashed, label="uniform attention")
    return axes


# %% mystnb={"image": {"alt": "Attention distance in pixels against depth for CL, MIM, latent MIM and an untrained encoder, one panel per study, uniform attention dashed."}, "figure": {"caption": "Attention distance against depth, for encoders of one width and one number of images seen. Bands: 95 % interval over images; thinner lines: further training seeds; dotted: an untrained encoder of the book's usual width; dashed: uniform attention."}}
axes = draw("attention_distance", lambda *grid: patch_distances(*grid).mean())
legend = plots.legend_below(axes)

# %% mystnb={"image": {"alt": "Normalised mutual information between queries and keys against depth for CL, MIM, latent MIM and an untrained encoder, one panel per study."}, "figure": {"caption": "Normalised mutual information against depth, as above. It is 0 for uniform attention, and 1 for attention that differs completely from query to query."}}
axes = draw("nmi")
legend = plots.legend_below(axes)

# %% [markdown]
# ## How many high frequencies are left?
#
# The lower a curve, the smoother the tokens are over the grid ([Frequencies](../representations/frequency.py)).

# %% mystnb={"image": {"alt": "Δ log amplitude of high frequencies against depth for CL, MIM, latent MIM and an untrained encoder, one panel per study."}, "figure": {"caption": "Δ log amplitude of the tokens at the last frequency below Nyquist on the diagonal, against depth; lines as above."}}
axes = draw("delta_log_amplitude")
legend = plots.legend_below(axes)

# %% [markdown]
# ## Are the nearest neighbours of the same class?
#
# k-NN has nothing but distances, so it shows how much the class weighs in them ([Behaviour](../components/behaviour.py)).

# %% mystnb={"image": {"alt": "Accuracy of nearest neighbours against depth for CL, MIM, latent MIM and an untrained encoder, one panel per study; guessing is dashed at a tenth."}, "figure": {"caption": "Accuracy of k-NN against depth: shape on generated images, class on photographs. Dashed: guessing among ten classes."}}
own = {}
for name, rows in probes.items():
    wanted = "shape" if "shape" in set(rows["label"]) else rows["label"].iloc[0]
    own[name] = rows[rows["label"] == wanted]
axes = draw("knn", chosen=own, lacking=unread)
for ax, name in zip(axes, own, strict=False):
    if name in OWN:  # a folder may have any number of classes
        ax.axhline(0.1, **dashed, label="guessing")
legend = plots.legend_below(axes) if own else None

# %% tags=["remove-input"]
plots.download([*frames.values(), *own.values()], "latent")

# %% [markdown]
# ## Is latent MIM more like pixel MIM or like CL?
#
# The last column says, for each quantity, how far latent MIM has gone from pixel MIM to CL: 0 is pixel MIM, 1 is CL, and
# a number outside this range lies beyond one of the two. Attention and frequencies are means over the last third of the
# blocks, accuracies are those of the last block. Where CL and MIM differ by less than a tenth of the larger value, the
# number would mean nothing and is left out.

# %% tags=["hide-input"]
lines = {}
for name, frame in frames.items():
    sides = {metric: late(frame, metric) for metric in METRICS}
    if name in own:
        sides |= {m: late(at_end(own[name], m), m) for m in ("knn", "linear")}
    for metric, of in sides.items():
        kinds = {who.split(", ")[0]: value for who, value in of.items()}
        if {"CL", "MIM", "latent MIM"} <= kinds.keys():
            cl, mim, latent = (kinds[who] for who in ("CL", "MIM", "latent MIM"))
            apart = abs(cl - mim) > 0.1 * max(abs(cl), abs(mim))
            way = (latent - mim) / (cl - mim) if apart else float("nan")
            row = study(name).title, plots.metric_label(metric)
            lines[row] = kinds | {"way to CL": way}

# %% tags=["hide-input"]
none = Markdown("Drawn for the study's own models alone.")
ways = pd.DataFrame(lines).T.round(2) + 0.0  # no -0.00
ways = ways.map("{:.2f}".format, na_action="ignore").fillna("")
ways if lines else none

# %% [markdown]
# The two MIMs differ in target and error function alone. Each is the mean of three runs that differ among themselves, so
# a small difference may be chance. Attention can become wide without the features becoming better: the average over an
# image is easy to predict for a student that sees six of sixteen patches. Whether neighbours improve may depend on what the
# teacher has learnt, and ours had little time. The published encoders
# {cite:p}`psomas2026attention` were trained on ImageNet for hundreds of epochs, and differ in much else too:

# %% tags=["hide-input"]
names = {"SimMIM": "pixels", "MAE": "pixels", "MaskFeat": "gradient histograms"}
names |= {
    "BEiTv2": "tokens of CLIP",
    "MoCo v3": "the other view",
    "DINO": "the other view",
}
known = published_triples().query("size == 'ViT-B/16' and model in @names.keys()")
wide = known.pivot(index="model", columns="metric", values="value").reindex(names)
wide.insert(0, "target", wide.index.map(names))
wide = wide.rename(columns={"knn": "k-NN"}).rename_axis(None).rename_axis(None, axis=1)
wide.rename({"BEiTv2": "BEiT v2"})[["target", "k-NN", "linear", "attentive"]]

# %% [markdown]
# There the best masked encoder, BEiT v2, has a target that comes from a teacher's features. But its teacher is CLIP, from
# which the tokenizer of BEiT v2 is distilled ([arXiv 2208.06366](https://arxiv.org/abs/2208.06366)). CLIP is itself
# contrastive and learnt from far more images, with captions, so the good neighbours may be CLIP's own. And MAE, which
# predicts pixels, is ahead of MaskFeat, which does not.
#
# ## What would refute it
#
# A latent encoder that stays at pixel MIM where CL does not: on generated images that may be so for NMI (17b is
# undecided). If it were so everywhere, masking itself would make attention local, whatever is predicted. All five rows
# were fixed before the encoders were trained, and compare encoders of one width and one number of images seen.

# %% tags=["hide-input"]
scorecard.rows("beyond/latent", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - What shows: on photographs, latent MIM's attention reaches further and depends less on the query than MIM's. The
#   entropies above say that this is in large part because its maps are flatter, flatter even than CL's. On generated
#   images attention is undecided. In both studies Δ log amplitude has moved towards CL's. CL of this size has a low Δ log
#   amplitude because its tokens are nearly equal, and those of latent MIM are not: the number moves towards CL's, but the
#   property need not.
# - In nearly all lines of the table, latent MIM lies between MIM and the untrained encoder, too, and a linear probe reads
#   it hardly better than that one, which is wider. So rows 17a to 17c cannot tell a model that predicts features from one
#   that has learnt less.
# - What is undecided in both studies: whether shape bias and nearest neighbours follow.
# - Three seeds are few: the [front page](../index.py) says which of these verdicts would be lost if all rows of the
#   scorecard were corrected together.
# - "Masked image modelling" says that part of the image is hidden, not what has to be predicted there. Ask about both.
# - A comparison of two families of models compares everything that differs between them. Change one thing, and train
#   again.
# - A teacher that is an average of its student has seen nothing but what the student has. It can be better than the
#   student, as DINO reports; while it is poor, its target is easy to predict. So a low loss does not say that training
#   goes well.
#
# ## Exercises
#
# 1. **Another model.** What would a student have to learn from an untrained teacher? Set
#    `MODELS = ["random:vit_tiny_patch16_224"]` and `N_IMAGES = 200`, and look at its target.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Random features of a patch are partly its pixels: a linear map of them explains
# less than half.
untrained = study("shapes").encoders([(MODELS or ["shapes.random"])[0]])[0]
streams = []
with capture(untrained, on_stream=streams.append, places=("block",)):
    untrained.forward(untrained.batch(images, torch.arange(few)))
t0 = standardised_mean([s.patches.cpu() for s in streams[-4:]]).flatten(0, 1)
pixels = untrained.resize(images.batch(range(few))).float() / 255
pixels = interpolate(pixels, [side * n for n in untrained.grid])
cut = patches(pixels, side).flatten(0, 1)  # B*N D
first = torch.cat([cut, torch.ones(len(cut), 1)], 1)
left = t0 - first @ torch.linalg.lstsq(first, t0).solution
share = 1 - (left.var() / t0.var()).item()
told = {"share of the target that a linear map of pixels explains": share}
pd.DataFrame(told, index=[untrained.name]).round(2)

# %% [markdown]
# 2. **How deep a teacher?** `python -m nbhelpers.pretrain --objective latent` trains on the mean of four blocks
#    (`averaged_blocks` in `nbhelpers/pretrain/recipes.py`). With 1, the target is the last block alone. Which of the two
#    would you expect to collapse, and which number would you watch?
# 3. **Public encoders.** `data2vec.beit_base_patch16_224` and `ijepa.vit_huge_patch14_gap_224` predict features. With
#    `STUDIES = ["imagenet"]` and `MODELS` naming one of them, `mocov3.vit_base_patch16_224` and
#    `simmim.vit_base_patch16_224`, this page draws them, provided that the photographs and a connection are available.
