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
# Ask a patch of sky and a patch of wing where they look. Where attention is local, each looks around itself. In a late
# block of a contrastive encoder both may look at the bird, and the map of the one can stand for the map of the other.
# The paper calls this *attention collapse* and measures it by how much the query tells about the key.
#
# Let $A_{qk}$ be the attention of query $q$ to key $k$ among the $N$ patch tokens; rows sum to one. Draw a query at
# random, $p(q) = 1/N$. Then a key is attended with $p(k) = \frac{1}{N} \sum_q A_{qk}$, and knowing the query removes
#
# $$
# \begin{gathered}
# I(q; k) = H(k) - \frac{1}{N} \sum_q H(A_{q\cdot}), \\[0.6em]
# H(p) = -\sum_i p_i \log p_i
# \end{gathered}
# $$
#
# of the uncertainty about the key. Relative to the two entropies this is the *normalised mutual information*
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
from nbhelpers.results import difference_to_published, gather, late, published, table
from nbhelpers.results.published import PUBLISHED
from nbhelpers.results.summary import last_third, whole_layers
from nbhelpers.scorecard.evidence import highest_less_last
from nbhelpers.scorecard.page import figures
from nbhelpers.studies import at_hand, label

plots.style()
METRICS = ["nmi", "attention_entropy"]
DRAWN = [*METRICS, "head_map_cosine"]
frames, missing = gather(STUDIES, DRAWN, MODELS, N_IMAGES, SEED)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["2", "3a", "3b", "3c"], STUDIES, MODELS)

# %% [markdown]
# Row 3a asks only whether a curve ends below its highest point. Under *What would refute it*, other encoders are asked the
# same. Row 3b asks whether that of CL falls further than that of MIM, and 3c whether its heads share a map. Both were added
# when the curves had been seen.

# %% [markdown]
# ## The quantity
#
# Eight images through one encoder. `capture` hands over the queries and keys of each block as the model uses them; the
# softmax over the patch tokens gives $A$, and the formula is four lines.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import mean_pairwise_cosine, nmi, patch_attention

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
# The same over all images, for every block and head. Where a curve falls towards 0 at the right, the maps of the late
# blocks have become one map, or flat; the next section tells which.

# %% mystnb={"image": {"alt": "NMI of query and key against depth, from 0 to 1: a line per model and a dot per head, in one panel per study; a last panel holds the published curves, in which MoCo v3 falls towards 0 in the late blocks and SimMIM rises."}, "figure": {"caption": "NMI of query and key against depth. Lines: mean over heads, with the 95 % interval over images; dots: single heads. Uniform attention has an NMI of 0. Last panel: published curves of larger encoders (ViT-B/16 on ImageNet), read off the paper; the error of reading is within the marks."}}
titles = [*map(plots.title, frames.values()), *missing, "published"]
axes = plots.panels(titles, sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "nmi", ax, heads=True)
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=False):
    plots.note(ax, reason)
plots.published_by_depth(published(), "nmi", axes[-1])
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
every = pd.concat([pd.DataFrame(), *frames.values()])
plots.download(every, "nmi")

# %% [markdown]
# With `"imagenet"` among `STUDIES`, a table follows: how far the paper's own models lie from their published curves (root
# mean square), beside the error of reading these.

# %% tags=["remove-input"]
gaps = difference_to_published(every, "nmi")
gaps.round(3) if len(gaps) else None

# %% [markdown]
# ## Flat, or the same object for all?
#
# Two quite different heads have an NMI of 0. One looks at the same object from everywhere; the other looks everywhere
# and selects nothing. The **attention entropy**, $H(A_{q\cdot}) / \log N$ averaged over queries, tells them apart: it
# is 1 for the flat map alone.

# %% mystnb={"image": {"alt": "Attention entropy against depth, from 0 to 1: a line per model and a dot per head, in one panel per study; uniform attention is a dashed line at 1."}, "figure": {"caption": "Attention entropy against depth, as a share of its maximum. Lines, dots and bands as above; dashed: uniform attention."}}
titles = [*map(plots.title, frames.values()), *missing]
axes = plots.panels(titles, sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "attention_entropy", ax, True, (1, "uniform attention"))
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% [markdown]
# A curve that is low in the first figure and clearly below the dashed line in the second has collapsed: it selects, and
# selects the same for all. A curve at the dashed line has not collapsed. It does not select; an untrained encoder lies
# there at every depth.
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
# No head has an NMI above 1 less its entropy, so the last line is NMI as a share of the largest that the entropy
# allows. Where it is lower in CL, flatter maps alone do not explain CL's lower NMI; they explain the rest of the gap:

# %% tags=["hide-input"]
said = []
for title in dict.fromkeys(title for title, _ in rows):
    values, entropy, used = (rows[title, what] for what in each)
    if {"CL", "MIM"} <= used.keys() and values["MIM"] > values["CL"]:
        flatter = (entropy["CL"] - entropy["MIM"]) / (values["MIM"] - values["CL"])
        part = sorted(flatter * used[who] for who in ("CL", "MIM"))
        said += [f"{part[0]:.0%} to {part[1]:.0%} of it on {title}"]
text = f"Flatter maps explain {' and '.join(said)}, depending on whether the last line "
text += "is held at that of CL or of MIM."
Markdown(text) if said else None

# %% [markdown]
# ## Do the heads share a map?
#
# Collapse is said to befall all queries *and all heads*. NMI compares the maps of the queries within a head. Between the
# $H$ heads of a block, compare the maps that they have for one query,
#
# $$
# \frac{1}{N H (H - 1)} \sum_q \sum_{g \ne h}
# \frac{A_{gq} \cdot A_{hq}}{\lVert A_{gq} \rVert \, \lVert A_{hq} \rVert} .
# $$
#
# It is 1 when all heads look at the same places, and 0 when no two of them share a key.

# %% mystnb={"image": {"alt": "Mean cosine between the attention maps of two heads for a query against depth, from 0 to 1, a line per model in one panel per study; uniform attention is a dashed line at 1, on which the untrained encoder lies."}, "figure": {"caption": "Cosine between the attention maps that two heads of a block have for a query, mean over queries and pairs of heads. Lines and bands as above; dashed: uniform attention."}}
axes = plots.panels(titles, sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "head_map_cosine", ax, reference=(1, "uniform attention"))
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% [markdown]
# Flat maps are alike for a dull reason: both are nearly uniform. What two heads *select* is their maps less the uniform
# map, $A_{hq} - 1/N$. The same cosine of these, of up to 64 images, is 0 for heads that select independently:


# %% tags=["hide-input"]
def between_heads(encoder, number):
    """Cosine between maps of heads, as they are and less the uniform map, late."""
    found = []

    def add(b):
        A = patch_attention(b.query, b.key, b.prefix, b.bias, b.scale)  # B H N N
        pair = (A, A - 1 / A.shape[-1])
        pair = [mean_pairwise_cosine(each.transpose(1, 2)).mean() for each in pair]
        found.append([b.depth, *map(float, pair)])

    with capture(encoder, on_attention=add):
        encoder.forward(encoder.batch(images, range(number)))
    rows = pd.DataFrame(found, columns=["depth", "maps", "less the uniform map"])
    return rows[last_third(rows["depth"])].drop(columns="depth").mean()


# %% tags=["hide-input"]
rows = {}
for name in frames:
    images = study(name).images("test")
    number = min(64, N_IMAGES, len(images))
    for each in study(name).encoders(MODELS):
        if each.heads > 1:
            title = study(name).title, label(each.name)
            rows[title] = between_heads(each, number)
pd.DataFrame(rows).T.round(2) if rows else None

# %% [markdown]
# Where CL and MIM are apart in the first column and alike in the second, CL's heads share no more of what they select; they
# merely select less.
#
# ## One method, or a kind of method?
#
# MoCo v3 pushes each image away from all others. DINO does not, but it too asks for one representation of two
# views. {term}`MAE` hides patches as SimMIM does, but its encoder never sees a mask token. Supervised training, too, asks
# for one answer per image: the label. If collapse comes with *one answer per image*, DINO and supervision should fall
# with CL, and MAE should stay with MIM.

# %% tags=["hide-input"]
KINDS = ["cl", "dino", "mim", "mae", "supervised"]
draw = {"n_images": N_IMAGES, "seed": SEED}
others, absent = gather(STUDIES, METRICS, MODELS, **draw, objectives=KINDS)

# %% mystnb={"image": {"alt": "NMI of query and key against depth, from 0 to 1, a line per training objective: contrastive, DINO, masked image modelling, MAE and supervised; one panel per study and one for the published curves."}, "figure": {"caption": "NMI by depth for five training objectives. Where a label names width or images, that encoder is smaller or was trained for less time than CL and MIM; the second table below compares it with a CL and a MIM of its size. Last panel: ViT-B/16, MoCo v3, SimMIM and MAE read off the paper, DINO off a third party's run of the official code on 59 images."}}
titles = [*map(plots.title, others.values()), *absent, "published"]
axes = plots.panels(titles, sharey=True)
for ax, frame in zip(axes, others.values(), strict=False):
    plots.by_depth(frame, "nmi", ax)
for ax, reason in zip(axes[len(others) :], absent.values(), strict=False):
    plots.note(ax, reason)
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
# Read both columns. An NMI near 0 with an entropy near 1 is flatness: that encoder has not learnt to select, and says
# nothing about collapse. Here an entropy above 0.95 counts as flat. Any other encoder is nearer to the NMI of CL or to
# that of MIM. Some are smaller than CL and MIM, or were trained for less time. So each objective is also compared with a
# CL and a MIM of the same width and images, whose late NMI stands beside its own. Where that CL has an NMI near 0 in part
# since it is flat, as on generated images, being nearer to MIM is weak evidence:

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
    verdict = "against it" if wanted not in both else "undecided"
    verdict = "as expected" if both == {wanted} else verdict
    verdict = "flat, hence no evidence" if "flat" in both else verdict
    verdicts.setdefault(verdict, []).append(f"{who} on {study(name).title}")
said = (f"*{verdict}*: {', '.join(who)}" for verdict, who in sorted(verdicts.items()))
said = f"Both comparisons together. {'; '.join(said)}." if verdicts else ""
Markdown(said or "There is nothing to compare with CL and MIM.")

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose late NMI is not below that of a masked encoder of the same architecture, trained on the
# same images; or one whose NMI does not fall again after its peak, or falls no further than that of the masked one. These
# are rows of the [scorecard](../index.py), which also gave the result above:

# %% tags=["hide-input"]
scorecard.rows("attention/collapse", STUDIES, MODELS)

# %% [markdown]
# The measure of row 3a, for every encoder of this page and the published ones; ✓ where the whole interval lies above zero:


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
    text += (
        "So a ✓ alone tells little, and nothing about contrast: for that see row 3b."
    )
Markdown(text)

# %% tags=["hide-input"]
said = []
for name, frame in frames.items():
    curve = whole_layers(frame[frame["metric"] == "nmi"])
    curve = curve[curve["model"].map(label) == "CL"].groupby("depth")["value"].mean()
    if len(curve) and (low := curve[curve.idxmax() :].idxmin()) < curve.index.max():
        rise = curve.iloc[-1] - curve[low]
        where = f"On {study(name).title}, CL's NMI is lowest after its peak in block"
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
# - CL's late maps depend less on the query than MIM's in both studies. They are also flatter; the numbers above say how
#   much of it that can explain; the rest is a weaker dependence on the query, as CL's NMI is still more than half of what
#   its entropy allows. On photographs supervision goes with CL; on generated images that is undecided, and DINO too flat
#   to tell. MAE stays with MIM on photographs; on generated images its NMI lies between the two.
# - CL's heads have more alike maps than MIM's in both studies. On photographs that is flatness; on generated images a part
#   is left when the uniform map is subtracted.
# - Some narrow encoders of CL have collapsed further than the wide one: an NMI near 0, with an entropy that is clearly
#   below 1.
# - That NMI falls towards the last block is no mark of CL alone: on photographs the NMI of the wide CL falls further than
#   that of the wide MIM, on generated images it is the other way round, and so it is for most narrower pairs of both.
# - NMI asks whether *where I am* matters for *where I look*. At 0 the answer is no.
# - A low NMI alone is no collapse. Read it beside the entropy, and beside an untrained encoder.
# - A collapsed map still says *what* in the image matters, which is enough to tell images apart, and nothing about *this*
#   patch. Whether that harms dense prediction is [another question](../components/behaviour.py).
#
# ## Exercises
#
# 1. **Another model.** Which NMI and which entropy do you expect of an untrained ViT with twelve blocks, at 224 px? Check
#    with `MODELS = ["random:vit_tiny_patch16_224"]`, or in the hidden cell below, on a few images.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Small random weights give nearly equal logits: entropy near 1, and with flat maps
# an NMI near 0.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
pd.DataFrame({short[m]: late(tiny["shapes"], m) for m in METRICS}).round(3)

# %% [markdown]
# 2. **One by one, or together?** Does each head of a block collapse? Compare the largest with the smallest NMI among the
#    heads of each block.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
heads = pd.concat([tiny["shapes"][:0], *frames.values()])
heads = heads.query("metric == 'nmi' and head >= 0")
by_block = heads.groupby(["model", "depth"], sort=False)["value"]
ends = {end: by_block.agg(end).unstack() for end in ("min", "max")}
pd.concat(ends).round(2)

# %% [markdown]
# 3. **A map that is neither.** Write down an attention matrix of four tokens with an NMI of 0 and an entropy of ½, and
#    check both with `nbhelpers.metrics`.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
from nbhelpers.metrics import attention_entropy

# All queries share two of four keys.
same = torch.tensor([0.5, 0.5, 0, 0]).expand(1, 1, 4, 4)
nmi(same), attention_entropy(same)
