# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Attention collapse
#
# **Claim.** In the late blocks of a contrastive encoder all query tokens attend to nearly the same places: the map no
# longer depends on where the query is {cite:p}`park2023what`.
#
# In a photograph of a bird, take one query on a patch of sky and another on a patch of wing. If attention is local, each
# looks around itself. In a late block of a contrastive encoder both may look at the bird, so that their maps are
# interchangeable. The paper calls this *attention collapse* and measures it by how much the query tells about the key.
#
# Let $A_{qk}$ be the attention of query $q$ to key $k$ among the $N$ patch tokens, with rows that sum to one. If the
# query is drawn at random, $p(q) = 1/N$, key $k$ is attended to with probability $p(k) = \frac{1}{N} \sum_q A_{qk}$.
# Knowing the query then reduces the uncertainty about the key by
#
# $$
# \begin{gathered}
# I(q; k) = H(k) - \frac{1}{N} \sum_q H(A_{q\cdot}), \\[0.6em]
# H(p) = -\sum_i p_i \log p_i .
# \end{gathered}
# $$
#
# Divided by the geometric mean of the two entropies, this is the *normalised mutual information*
#
# $$
# \begin{gathered}
# \mathrm{NMI} = \frac{I(q; k)}{\sqrt{H(q)\,H(k)}}, \\[0.6em]
# H(q) = \log N .
# \end{gathered}
# $$
#
# {term}`NMI` is 0 if all queries share one map, and 1 if each query attends to one key of its own.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000
SEED = 0

# %% tags=["hide-input"]
import math
from contextlib import suppress

import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

# %% tags=["hide-input"]
from nbhelpers import load, plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.results import (
    difference_to_published,
    gather,
    late,
    published,
    rows_of,
    table,
)
from nbhelpers.results.published import PUBLISHED
from nbhelpers.results.summary import whole_layers
from nbhelpers.scorecard.evidence import highest_less_last
from nbhelpers.scorecard.page import figures
from nbhelpers.studies import at_hand, label

# %% tags=["hide-input"]
plots.style()
METRICS = ["nmi", "attention_entropy"]
BETWEEN = ["head_map_cosine", "centred_head_map_cosine"]
frames, missing = gather(STUDIES, METRICS + BETWEEN, MODELS, N_IMAGES, SEED)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["2", "3a", "3b", "3c"], STUDIES, MODELS)

# %% [markdown]
# Row 3a asks only whether CL's curve ends below its highest point; *What would refute it* asks the same of other
# encoders. Row 3b asks whether CL's curve falls further than MIM's, and row 3c whether CL's heads have more similar maps.
# Both were added after the curves had been seen.

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder. `capture` collects the queries and keys of each block as the model uses them; a
# softmax over the patch tokens gives $A$, and the formula takes four lines.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import nmi, patch_attention

here = at_hand(STUDIES)
encoder, images = load((MODELS or here.models)[0]), here.images("test")
blocks = []
with capture(encoder, on_attention=blocks.append):
    encoder.forward(encoder.batch(images, range(len(images))[:8]))
b = blocks[-2]
A = patch_attention(b.query, b.key, b.prefix, b.bias, b.scale)  # B H N N


# %%
def H(p):
    return torch.special.entr(p).sum(-1)  # entr(p) = -p log p, and 0 at p = 0


N = A.shape[-1]
p_k = A.mean(-2)  # B H N: mean over queries
I = H(p_k) - H(A).mean(-1)
NMI = I / (math.log(N) * H(p_k)).sqrt()  # B H

assert_close(NMI, nmi(A), atol=1e-4, rtol=1e-4)
by_head = pd.DataFrame({"NMI": NMI.mean(0).cpu()}).rename_axis("head")
by_head.T.map("{:.3f}".format)

# %% [markdown]
# ## NMI by depth
#
# The same quantity over all images, for every block and head. Where a curve falls towards 0 at the right, the maps of the
# late blocks either have become one map or are flat; the next section tells which.

# %% mystnb={"image": {"alt": "NMI of query and key against depth, from 0 to 1, one panel per study: a line per model and a dot per head. The last panel shows the published curves: in the late blocks MoCo v3 falls towards 0 and SimMIM rises."}, "figure": {"caption": "NMI of query and key against depth. Lines: mean over heads, with the 95 % interval over images; dots: single heads. Uniform attention has an NMI of 0. Last panel: published curves of larger encoders (ViT-B/16 on ImageNet), read off the paper; the reading error is smaller than the markers."}}
titles = [*map(plots.title, frames.values()), *missing, "published"]
axes = plots.panels(titles, sharey=True, missing=missing)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "nmi", ax, heads=True)
plots.published_by_depth(published(), "nmi", axes[-1])
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
every = pd.concat([pd.DataFrame(), *frames.values()])
plots.download(every, "nmi")

# %% [markdown]
# If `STUDIES` contains `"imagenet"`, a table follows with the root-mean-square deviation of the paper's own models from
# their published curves, beside the reading error.

# %% tags=["remove-input"]
gaps = difference_to_published(every, "nmi")
gaps.round(3) if len(gaps) else None

# %% [markdown]
# ## One map for all queries, or a flat one?
#
# Two quite different heads have an NMI of 0: one looks at the same object for every query, the other looks everywhere and
# selects nothing. The **attention entropy**, $H(A_{q\cdot}) / \log N$ averaged over queries, tells them apart: it is 1
# only for the flat map.

# %% mystnb={"image": {"alt": "Attention entropy against depth, from 0 to 1, one panel per study: a line per model, a dot per head, and a dashed line at 1 for uniform attention."}, "figure": {"caption": "Attention entropy against depth, as a share of its maximum. Lines, dots and bands as above; dashed: uniform attention."}}
titles = [*map(plots.title, frames.values()), *missing]
axes = plots.panels(titles, sharey=True, missing=missing)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "attention_entropy", ax, True, (1, "uniform attention"))
legend = plots.legend_below(axes)

# %% [markdown]
# Attention has collapsed where its curve is low in the first figure and clearly below the dashed line in the second: it
# selects, and selects the same keys for all queries. At the dashed line, attention has not collapsed but selects nothing;
# an untrained encoder lies there at every depth.
#
# In numbers, averaged over the last third of the blocks:

# %% tags=["hide-input"]
rows = {}
for name, frame in frames.items():
    values, entropy = late(frame, "nmi"), late(frame, "attention_entropy")
    most = {who: 1 - entropy[who] for who in values}
    used = {who: values[who] / most[who] for who in values if most[who] > 0.01}
    each = {"NMI": values, "entropy": entropy, "NMI / (1 − entropy)": used}
    rows |= {(study(name).title, what): of for what, of in each.items()}
pd.DataFrame(rows).T.map("{:.3f}".format, na_action="ignore").fillna("")

# %% [markdown]
# A head's NMI is at most 1 minus its entropy, so the last line gives NMI as a share of the largest value that the entropy
# allows. Where this share is lower in CL, flatter maps do not explain the whole gap in NMI between CL and MIM:

# %% tags=["hide-input"]
said = []
for title in dict.fromkeys(title for title, _ in rows):
    values, entropy, used = (rows[title, what] for what in each)
    if {"CL", "MIM"} <= used.keys() and values["MIM"] > values["CL"]:
        flatter = (entropy["CL"] - entropy["MIM"]) / (values["MIM"] - values["CL"])
        part = sorted(flatter * used[who] for who in ("CL", "MIM"))
        said += [f"{part[0]:.0%} to {part[1]:.0%} of the gap on {title}"]
text = f"Flatter maps explain {' and '.join(said)}, depending on whether the share in "
text += "the last line is held at CL's value or at MIM's."
Markdown(text) if said else None

# %% [markdown]
# ## Do the heads of a block share a map?
#
# According to the paper, the map is the same for all queries *and all heads*. NMI compares the maps of different queries
# within a head. To compare the $H$ heads of a block, take the mean cosine between their maps for the same query,
#
# $$
# \frac{1}{N H (H - 1)} \sum_q \sum_{g \ne h}
# \frac{A_{gq} \cdot A_{hq}}{\lVert A_{gq} \rVert \, \lVert A_{hq} \rVert} .
# $$
#
# It is 1 if all heads have the same map, and 0 if no two of them share a key.

# %% mystnb={"image": {"alt": "Mean cosine between two heads' attention maps for the same query against depth, from 0 to 1, one panel per study: a line per model, and a dashed line at 1 for uniform attention, on which the untrained encoder lies."}, "figure": {"caption": "Cosine between the attention maps of two heads of a block for the same query, averaged over queries and pairs of heads. Lines and bands as above; dashed: uniform attention."}}
axes = plots.panels(titles, sharey=True, missing=missing)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "head_map_cosine", ax, reference=(1, "uniform attention"))
legend = plots.legend_below(axes)

# %% [markdown]
# Flat maps are alike for a trivial reason: all are nearly uniform. What a head *selects* is its map minus the uniform
# map, $A_{hq} - 1/N$. The same cosine between these differences is 0 for heads that select independently. Both cosines,
# averaged over the last third of the blocks:

# %% tags=["hide-input"]
rows = {
    (study(name).title, what): late(frame, metric)
    for name, frame in frames.items()
    for metric, what in zip(BETWEEN, ("maps", "minus the uniform map"), strict=True)
}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Where CL and MIM differ in the first line but not in the second, CL's heads do not agree more on what they select;
# they merely select less.
#
# ## Which training objectives collapse?
#
# MoCo v3 pushes each image away from the others of its batch. DINO does not, but it also asks for the same representation
# of two views. Supervised training asks for one answer per image as well: the label. {term}`MAE` hides patches as SimMIM
# does, but its encoder never sees a mask token. If collapse comes with *one answer per image*, NMI should be low for DINO
# and supervised training, as for CL, and MAE should stay near MIM.

# %% tags=["hide-input"]
KINDS = ["cl", "dino", "mim", "mae", "supervised"]
draw = {"n_images": N_IMAGES, "seed": SEED}
others, absent = gather(STUDIES, METRICS, MODELS, **draw, objectives=KINDS)

# %% mystnb={"image": {"alt": "NMI of query and key against depth, from 0 to 1, one panel per study and one for published curves: a line for each training objective (contrastive, DINO, masked image modelling, MAE and supervised)."}, "figure": {"caption": "NMI against depth for five training objectives. If a label names a width or a number of images, that encoder is smaller than CL and MIM or saw fewer images, not always in fewer steps; the second table below compares at equal size. Last panel: ViT-B/16; MoCo v3, SimMIM and MAE are read off the paper, DINO off a third party's run of the official code on 59 images."}}
titles = [*map(plots.title, others.values()), *absent, "published"]
axes = plots.panels(titles, sharey=True, missing=absent)
for ax, frame in zip(axes, others.values(), strict=False):
    plots.by_depth(frame, "nmi", ax)
four = "MoCo v3", "DINO", "SimMIM", "MAE"
plots.published_by_depth(published(), "nmi", axes[-1], four)
legend = plots.legend_below(axes)

# %% tags=["hide-input"]
short = {"nmi": "NMI", "attention_entropy": "entropy"}
rows = {
    (name, short[metric]): late(frame, metric)
    for name, frame in others.items()
    for metric in METRICS
}
pd.DataFrame(rows).map("{:.3f}".format, na_action="ignore").fillna("")

# %% [markdown]
# Read both columns together. An NMI near 0 with an entropy near 1 means flat maps: that encoder has not learnt to select,
# and says nothing about collapse. Here an entropy above 0.95 counts as flat; any other encoder is classed by whether its
# NMI is nearer to CL's or to MIM's. Each objective is also compared with a CL and a MIM of its own width and number of
# images; the last columns give the late NMI of all three. Where that CL has an NMI near 0 partly because it is flat, as
# on generated images, being nearer to MIM is weak evidence:

# %% tags=["hide-input"]
EXPECTED = {"DINO": "CL", "supervised": "CL", "MAE": "MIM"}


def nearer(frame):
    """By objective: nearer to CL or MIM in late NMI, or flat; the NMI of all three."""
    nmi, entropy = (
        {who.split(", ")[0]: value for who, value in late(frame, metric).items()}
        for metric in METRICS
    )
    found = {}
    for who in nmi.keys() & EXPECTED if {"CL", "MIM"} <= nmi.keys() else ():
        cl, own, mim = nmi["CL"], nmi[who], nmi["MIM"]
        side = "CL" if abs(own - cl) < abs(own - mim) else "MIM"
        found[who] = "flat" if entropy[who] > 0.95 else side, cl, own, mim
    return found


# %% tags=["hide-input"]
rows = {}
for name, frame in others.items():
    for who, (side, *_) in sorted(nearer(frame).items()):
        equal = (None, None, None, None)
        with suppress(LookupError, MissingDataError):
            names = MODELS or study(name).alike("cl", "mim", who.lower())
            equal = nearer(table(name, "profile", names, metrics=METRICS, **draw))[who]
        rows[name, who] = [EXPECTED[who], side, *equal]
columns = ["expected", "nearer to", "same size: nearer to", "CL", "itself", "MIM"]
if rows:
    shown = pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows), columns)
shown.round(3) if rows else None

# %% tags=["hide-input"]
verdicts = {}
for (name, who), (wanted, side, equal, *_) in rows.items():
    both = {side, equal or side}
    verdict = "against the expectation" if wanted not in both else "undecided"
    verdict = "as expected" if both == {wanted} else verdict
    verdict = "flat, hence no evidence" if "flat" in both else verdict
    verdicts.setdefault(verdict, []).append(f"{who} on {study(name).title}")
said = (f"*{verdict}*: {', '.join(who)}" for verdict, who in sorted(verdicts.items()))
said = f"Both comparisons together: {'; '.join(said)}." if verdicts else ""
Markdown(said or "There is nothing to compare with CL and MIM.")

# %% [markdown]
# ## Complete collapse where few images were seen
#
# CL and MIM above are single encoders. The same late means for encoders that were trained on fewer images from several
# seeds, of the same width and of half of it, with a number per seed. (The loss of {term}`latent MIM` predicts features
# instead of pixels.)

# %% tags=["hide-input"]
rows = {}
for name in () if MODELS else STUDIES:
    with suppress(LookupError):
        pairs = study(name).alike("cl", "mim", seeds=2)
        narrow = study(name).alike("cl", "mim", "latent")
        every = rows_of(name, "profile", [*dict.fromkeys((*pairs, *narrow))])
        for who, own in every.groupby(every["model"].map(label), sort=False):
            each = [seed for _, seed in own.groupby("model")]
            rows[study(name).title, who] = {
                short[metric]: ", ".join(f"{late(e, metric)[who]:.3f}" for e in each)
                for metric in METRICS
            }
pd.DataFrame(rows).T if rows else None

# %% [markdown]
# An NMI of 0 with an entropy clearly below 1 is complete collapse: all queries select the same keys. Where MIM's NMI is far
# above 0 at the same width and after as many images, the objective makes the difference.
#
# ## What would refute it
#
# A contrastive encoder whose late NMI is not below that of a masked encoder of the same architecture, trained on the same
# images; or one whose NMI does not fall again after its peak, or falls no further than that of the masked one, or whose
# heads have maps no more alike. These are the rows of the [scorecard](../index.py) that gave the result above:

# %% tags=["hide-input"]
scorecard.rows("attention/collapse", STUDIES, MODELS)

# %% [markdown]
# Row 3a measured for every encoder on this page and for the published ones; ✓ marks those whose whole interval lies above
# zero:


# %% tags=["hide-input"]
def falls(frame):
    """By label, the highest NMI before the last block less that of the last."""
    curves = whole_layers(frame[frame["metric"] == "nmi"])
    return scorecard.read_labels(curves, highest_less_last)


# %% tags=["hide-input"]
paper = published().dropna(subset="depth")
paper = paper[(paper["part"] == "encoder") & paper["model"].isin(four)]
paper = paper.assign(model=paper["model"].map(PUBLISHED))  # called as ours
fall = {
    name: falls(frames[name]) | falls(others.get(name, frames[name])) for name in frames
}
fall["published"] = falls(paper)
shown = {
    name: {who: figures(x.value)[0] + " ✓" * (x.low > 0) for who, x in each.items()}
    for name, each in fall.items()
}
pd.DataFrame(shown).fillna("")

# %% tags=["hide-input"]
named = [(who.split(", ")[0], x) for each in fall.values() for who, x in each.items()]
others_too = [x.low > 0 for who, x in named if who in ("MIM", "MAE")]
others_too += [x.low > 0 for who, x in named if who.startswith("random")]
text = f"Of {len(others_too)} masked or untrained encoders, {sum(others_too)} pass row 3a. "
if any(others_too):
    text += "So a ✓ alone tells little, and nothing about CL in particular: see row 3b."
Markdown(text)

# %% tags=["hide-input"]
said = []
for name, frame in frames.items():
    curve = whole_layers(frame[frame["metric"] == "nmi"])
    curve = curve[curve["model"].map(label) == "CL"].groupby("depth")["value"].mean()
    if len(curve) and (low := curve[curve.idxmax() :].idxmin()) < curve.index.max():
        rise = curve.iloc[-1] - curve[low]
        where = f"On {study(name).title}, CL's NMI after its peak is lowest in block"
        said += [f"{where} {low} and rises by {rise:.3f} from there to the end."]
    cl, mim = (
        fall[name][who].value if who in fall[name] else 0 for who in ("CL", "MIM")
    )
    if cl and mim > cl:
        where = f"On {study(name).title}, the fall is larger in MIM ({mim:.3f}) than in"
        said += [f"{where} CL ({cl:.3f})."]
Markdown(" ".join(said)) if said else None

# %% [markdown]
# ## Takeaways
#
# - CL's late maps depend less on the query than MIM's in both studies. Part of the difference is that they are flatter;
#   the numbers above say how much. The rest is a weaker dependence on the query rather than full collapse: CL's NMI is
#   still more than half of what its entropy allows.
# - On photographs, supervised training goes with CL and MAE with MIM. On generated images, supervised training is
#   undecided, DINO is too flat to tell, and MAE's NMI lies between CL's and MIM's.
# - The heads of a block have more similar maps in CL than in MIM in both studies. On photographs this is flatness; on
#   generated images part of it remains after the uniform map is subtracted.
# - CL encoders that saw fewer images have collapsed further than those above: their NMI is near 0, while the entropy of
#   most is clearly below 1. A wide CL that saw as few images has done so, too
#   ([When do the findings appear?](../beyond/moments.py)), so it is not a matter of width. The number of images and the
#   size of the batches differ together; either may be the cause.
# - An NMI that falls towards the last block is not peculiar to CL. On photographs the wide CL's falls further than the
#   wide MIM's; on generated images, and for most pairs that saw fewer images in both studies, it is the other way
#   round.
# - NMI asks whether where a query *is* matters for where it *looks*. At 0 it does not.
# - A low NMI alone does not mean collapse. Read it beside the entropy and beside an untrained encoder.
# - A collapsed map still says *what* in the image matters, which can help to tell images apart, but nothing about the
#   individual patch. Whether that harms dense prediction is [a separate question](../components/behaviour.py).
#
# ## Exercises
#
# 1. **Another model.** What NMI and entropy do you expect of an untrained ViT with twelve blocks at 224 px? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or on a few images in the hidden cell below.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Small random weights give nearly equal logits: the maps are flat, with an entropy
# near 1 and an NMI near 0.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
pd.DataFrame({short[m]: late(tiny["shapes"], m) for m in METRICS}).round(3)

# %% [markdown]
# 2. **Every head, or only some?** Do all heads of a block collapse? Compare the largest with the smallest NMI among the
#    heads of each block.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
heads = pd.concat([tiny["shapes"][:0], *frames.values()])
heads = heads.query("metric == 'nmi' and head >= 0")
by_block = heads.groupby(["model", "depth"], sort=False)["value"]
ends = {end: by_block.agg(end).unstack() for end in ("min", "max")}
pd.concat(ends).round(2)

# %% [markdown]
# 3. **The same for all, but not flat.** Write down an attention matrix of four tokens with an NMI of 0 and an entropy of
#    ½, and check both with `nbhelpers.metrics`.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
from nbhelpers.metrics import attention_entropy

# All queries share two of four keys.
same = torch.tensor([0.5, 0.5, 0, 0]).expand(1, 1, 4, 4)
nmi(same), attention_entropy(same)
