# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The hybrid
#
# **Claim.** Contrastive learning and masked image modelling complement each other. With the right weight, an encoder
# trained on the plain weighted sum of both losses beats either parent (an encoder trained on one of the losses alone), in
# a linear probe and after fine-tuning {cite:p}`park2023what`. Its early blocks behave like those of a masked encoder, its
# late blocks like those of a contrastive one.
#
# One loss asks which image this is, the other what its hidden patches look like. If the two do not get in each other's
# way, one encoder can learn to answer both, each where it is needed: the patches in early blocks, the image in late ones.
# Both losses share one encoder; each has its own views and heads,
#
# $$
# L = (1 - \lambda)\, L_{\mathrm{MIM}} + \lambda\, L_{\mathrm{CL}} ,
# $$
#
# so that $\lambda = 0$ is SimMIM and $\lambda = 1$ is MoCo v3. Encoders of one study and seed start from the same weights
# and see the images in the same order. As in MoCo v3, pure CL leaves the patch embedding at its random initial weights,
# while every hybrid trains it: the step to $\lambda = 1$ changes more than the weight of a loss.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # encoders by name, hybrids among them; None: hybrids and their parents

# %% [markdown]
# All figures of this chapter are drawn from stored tables, so there is no number of images to choose.

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError

# %% tags=["hide-input"]
from nbhelpers.models import manifest
from nbhelpers.results import (
    NoTableError,
    StaleTableError,
    frozen_and_tuned,
    published,
    table,
    untrained,
)
from nbhelpers.results.summary import at_end, by_label, early, late
from nbhelpers.studies import first_seeds, label

plots.style()
ABOUT = manifest()
FAMILY = ".w64.n256000"  # the largest set of equal width and number of images seen


def weight(model):
    """Lambda of an encoder's recipe; NaN, which is not drawn, where it has none."""
    recipe = ABOUT.get(model, {}).get("recipe", {"objective": "", "options": {}})
    parent = {"mim": 0.0, "cl": 1.0}.get(recipe["objective"], float("nan"))
    return recipe["options"].get("weight", parent)


# %% tags=["hide-input"]
tuned, probed, frames, missing = {}, {}, {}, {}
for name in STUDIES:
    known = study(name).trained("mim", "cl", "hybrid", vary=["width", "images"])
    models = MODELS or [model for model in known if FAMILY in model]
    try:
        frame = table(name, "fine_tuning", models).query("share == 1")
        probes = at_end(table(name, "probes", models), "linear")
        frames[name] = table(name, "profile", models)
    except (MissingDataError, NoTableError, StaleTableError) as reason:
        missing[name] = str(reason)
        continue
    probes = probes[probes["label"] == frame["label"].iloc[0]]
    for kind, rows in ((tuned, frame), (probed, probes)):
        rows = rows.assign(parameter=rows["model"].map(weight))
        kind[name] = rows.sort_values("parameter")

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["15a", "15b", "15c"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# Both losses on eight random rows. SimMIM counts the error on masked patches only, where $m = 1$; the hybrid's loss is
# the weighted sum of the two. In the contrastive loss, a query $q_i$ of one view has to find the key $k'_i$ of the other
# view among all keys, and the other way round:
#
# $$
# \begin{gathered}
# L_{CL} = \ell(q, k') + \ell(q', k), \\[0.6em]
# \ell(q, k) = -2\tau \, \frac{1}{B} \sum_i \log \frac{e^{\cos(q_i, k_i) / \tau}}{\sum_j e^{\cos(q_i, k_j) / \tau}} ,
# \end{gathered}
# $$
#
# with MoCo v3's factor $2\tau$, which also sets the scale on which $\lambda$ weighs it.

# %%
from torch.testing import assert_close

from nbhelpers.pretrain.hybrid import combine
from nbhelpers.pretrain.moco import info_nce
from nbhelpers.pretrain.simmim import masked_l1

torch.manual_seed(0)
q, k, q_2, k_2 = torch.randn(4, 8, 32)  # B D: of one view, of the other
tau = 0.2
x, x_hat = torch.randn(8, 64, 48), torch.randn(8, 64, 48)  # B N D
m = torch.rand(8, 64) < 0.6  # B N


# %%
def one_way(q, k):
    """The contrastive loss of one view's queries."""
    cosine = torch.nn.functional.cosine_similarity(q[:, None], k[None], dim=-1)  # B B
    return -2 * tau * (cosine / tau).log_softmax(-1).diagonal().mean()


# %%
L_CL = one_way(q, k_2) + one_way(q_2, k)
L_MIM = (x_hat - x).abs().mean(-1)[m].mean()
weight_cl = 0.2  # lambda
L = (1 - weight_cl) * L_MIM + weight_cl * L_CL

library = info_nce(q, k_2, tau) + info_nce(q_2, k, tau)
assert_close(L_CL, library, atol=1e-4, rtol=1e-4)
assert_close(L_MIM, masked_l1(x_hat, x, m), atol=1e-4, rtol=1e-4)
assert_close(L, combine(L_MIM, L_CL, weight_cl), atol=1e-4, rtol=1e-4)
losses = {"L_MIM": L_MIM, "L_CL": L_CL, "L": L}
pd.DataFrame(losses, index=["random inputs"]).astype(float).round(3)

# %% [markdown]
# ## Accuracy against the weight
#
# The hybrids and parents drawn here have the same width and saw equally many images. First a linear probe of the last
# layer:

# %% tags=["hide-input"]
names = [*map(plots.title, probed.values()), *missing, "published: ViT-B/16, ImageNet"]
grey = {"color": "#999999", "lw": 1, "zorder": 0}
paper = published()
paper = paper[paper["setting"].fillna("").str.startswith("lambda=")]
lambdas = paper["setting"].str.removeprefix("lambda=").astype(float)
paper = paper.assign(parameter=lambdas).sort_values("parameter")


# %% tags=["hide-input"]
def against_weight(kind, metric, theirs):
    """A panel per study, a grey line through its means, and the published curve."""
    axes = plots.panels(names, missing=missing)
    for ax, (name, frame) in zip(axes, kind.items(), strict=False):
        ax.plot(frame.groupby("parameter")["value"].mean(), **grey)
        ax.vlines(frame["parameter"], frame["low"], frame["high"], **grey)
        floor = untrained(name, "probes" if metric == "linear" else metric)
        plots.by_parameter(frame, metric, "λ", ax, reference=floor)
    line = paper[paper["metric"] == theirs]
    look = {"color": "#222222", "marker": "v", "mfc": "white", "lw": 1}
    axes[-1].plot(line["parameter"], line["value"], **look)
    axes[-1].set(xlabel="λ", ylabel=plots.metric_label(metric))
    return plots.legend_below(axes)


# %% mystnb={"image": {"alt": "Accuracy of a linear probe against the weight of the contrastive loss, from 0 (MIM) to 1 (CL); one panel per study and one of published values, which are highest in between."}, "figure": {"caption": "Accuracy of a linear probe against the weight λ of the contrastive loss, with 95 % intervals over test images. λ = 0 is MIM and λ = 1 is CL, with several seeds where available; the grey line joins the means over seeds. Dashed: an untrained encoder, which is wider. Last panel, on a scale of its own: ViT-B/16 on ImageNet, trained for 100 epochs."}}
legend = against_weight(probed, "linear", "linear")

# %% [markdown]
# And the accuracy after [fine-tuning](../components/behaviour.py) on few labels, for little more than one epoch:

# %% mystnb={"image": {"alt": "Accuracy after fine-tuning against the weight of the contrastive loss, from 0 (MIM) to 1 (CL); one panel per study and one of published values, which are highest in between."}, "figure": {"caption": "Accuracy after fine-tuning against the weight λ. Lines and scales as above."}}
legend = against_weight(tuned, "fine_tuning", "finetune")

# %% tags=["remove-input"]
plots.download([*probed.values(), *tuned.values(), paper], "hybrid")

# %% [markdown]
# The same in numbers, with the hybrid's interval over test images and the range of each parent over its seeds. The best
# of several hybrids is best partly by luck; rows 15a and 15b widen its interval to allow for that.


# %% tags=["hide-input"]
def best_and_parents(frame):
    """The best hybrid of a frame beside its parents, in words."""
    hybrids = frame[frame["objective"] == "hybrid"].sort_values("value").tail(1)
    words = {"best λ": "none", "hybrid": ""}
    for row in hybrids.itertuples():
        value = f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
        words = {"best λ": f"{row.parameter:g}", "hybrid": value}
    for parent in ("MIM", "CL"):
        values = frame.loc[frame["objective"] == parent, "value"]
        span = f"{values.min():.3f} to {values.max():.3f}"
        words[parent] = span if len(values) else ""
    return words


# %% tags=["hide-input"]
both = {"linear probe": probed, "fine-tuned": tuned}
rows = {
    (what, name): best_and_parents(frame)
    for what, kind in both.items()
    for name, frame in kind.items()
}
none = Markdown("No hybrid or parent with stored tables is among these encoders.")
pd.DataFrame(rows).T if rows else none

# %% tags=["hide-input"]
large = {}
for name in [] if MODELS else tuned:
    of = [
        who for who in study(name).trained("hybrid", "mim", "cl") if FAMILY not in who
    ]
    *frames_of, every = frozen_and_tuned(name, of)
    pair = pd.merge(*frames_of, on="model", suffixes=("_linear", "_tuned"))
    pair = pair.set_index("model").assign(every_label=every)
    if (pair["objective_linear"] == "hybrid").any() and len(pair) > 2:
        large[name] = pair


# %% tags=["hide-input"]
def where_it_lies(pair, kind):
    """An accuracy of the first hybrid beside its parents', in words."""
    mixed = pair["objective_linear"] == "hybrid"
    own, rest = pair[mixed].iloc[0], pair.loc[~mixed, f"value_{kind}"]
    value, low = own[f"value_{kind}"], own[f"low_{kind}"]
    side = "between" if rest.min() < value < rest.max() else "below"
    side = "above" if value >= rest.max() else side
    each = " and ".join(f"{number:.3f} ({label(who)})" for who, number in rest.items())
    within = ", but above the better one by less than its interval"
    within = within if low <= rest.max() else ""
    return f"{value:.3f}, {side} {each}{within if side == 'above' else ''}"


# %% tags=["hide-input"]
text = ""
for name, pair in large.items():
    seen = {who: f"{ABOUT[who]['images_seen'] / 1e6:.1f} million" for who in pair.index}
    mixed = next(who for who in seen if "hybrid" in who)
    parent = next(number for who, number in seen.items() if who != mixed)
    its = "With every label, its" if pair["every_label"].all() else "Its"
    text += f"""Not drawn, since no parent saw equally many images: on
{study(name).title}, a hybrid of width {ABOUT[mixed]["architecture"]["width"]} with
λ = {weight(mixed):g} saw
{seen[mixed]} images, its parents {parent}. {its} linear probe reaches
{where_it_lies(pair, "linear")}; fine-tuned, it reaches {where_it_lies(pair, "tuned")}.
The scorecard takes the widest hybrid of each λ, beside parents of its width and number
of images or, where there are none, the usual ones. So its rows use this one for λ =
{weight(mixed):g} and may name a different best λ from the table."""
Markdown(text or "No encoders of another size were compared.")

# %% [markdown]
# ## Does attention change from MIM-like to CL-like with depth?
#
# If the hybrid's early layers are like MIM's and its late ones like CL's, its {term}`NMI` must fall with depth. The NMI
# of the published hybrid is highest in the middle and low in the last block; by the measure of row 15c, first third less
# last third, that hybrid passes by hardly more than the error of reading the curve.

# %% tags=["hide-input"]
PUBLISHED = ("MoCo v3", "SimMIM", "SimMIM+MoCo")


def beside_published(metric):
    """A panel per study by depth, and the published curves of hybrid and parents."""
    axes = plots.panels(names, sharey=True, missing=missing)
    for ax, frame in zip(axes, frames.values(), strict=False):
        plots.by_depth(frame, metric, ax)
    plots.published_by_depth(published(), metric, axes[-1], PUBLISHED)
    if metric == "nmi":  # of which little is near its maximum, 1
        axes[0].set_ylim(-0.02, 1.05 * max(ax.dataLim.ymax for ax in axes))
    return plots.legend_below(axes)


# %% mystnb={"image": {"alt": "NMI of query and key against depth for hybrids and their two parents, one panel per study; in the published panel the hybrid's curve begins between those of its parents and ends nearer to that of MoCo v3."}, "figure": {"caption": "NMI of query and key against depth for hybrids and their two parents. Thinner lines: further training seeds of a parent. Last panel: published curves of ViT-B/16."}}
legend = beside_published("nmi")

# %% tags=["remove-input"]
parts = [frame.query("metric == 'nmi'") for frame in frames.values()]
plots.download(parts, "nmi")

# %% [markdown]
# The table averages over the first and the last third of the blocks. The [attention entropy](../attention/collapse.py),
# as a share of its maximum, is the control: at 1, attention is flat, and its NMI is small because it selects nothing.

# %% tags=["hide-input"]
numbers = {}
for name, frame in frames.items():
    rows = {"linear probe": by_label(probed[name]), "fine-tuned": by_label(tuned[name])}
    for short, metric in (("NMI", "nmi"), ("entropy", "attention_entropy")):
        rows[f"{short}, first"] = early(frame, metric)
        rows[f"{short}, last"] = late(frame, metric)
    rows = pd.DataFrame(rows)
    short = {who: who.removesuffix(", width 64, 256,000 images") for who in rows.index}
    numbers[name] = rows.rename(short)
pd.concat(numbers).map("{:.3f}".format, na_action="ignore") if numbers else none


# %% tags=["hide-input"]
def fall(rows, who):
    """How far the NMI of an encoder falls, in words."""
    by = rows["NMI, first"][who] - rows["NMI, last"][who]
    return f"{who} {'falls' if by > 0 else 'rises'} by {abs(by):.3f}"


# %% tags=["hide-input"]
def chosen(rows):
    """The hybrid that row 15c takes, and the one that is best by a probe, in words."""
    mixed = rows[rows.index.str.startswith("hybrid")]
    most = (mixed["NMI, first"] - mixed["NMI, last"]).idxmax()
    best = mixed["linear probe"].idxmax()
    far = (rows["NMI, first"] - rows["NMI, first"][most]).abs()
    near, other = ("CL", "MIM") if far["CL"] < far["MIM"] else ("MIM", "CL")
    return f"""the NMI of {fall(rows, most)}, more than that of any other hybrid; that
of {fall(rows, "MIM")}. The NMI of {best}, the hybrid that a linear probe reads best,
{fall(rows, best).removeprefix(best).strip()}. In its first blocks, the NMI of {most} is
nearer to {near}'s than to {other}'s."""


# %% tags=["hide-input"]
said = []
for name, rows in numbers.items():
    mixed = rows.index.str.startswith("hybrid").any()
    if mixed and {"CL", "MIM"} <= {*rows.index}:
        said.append(f"On {study(name).title}, {chosen(rows)}")
care = """**Read 15c with care.** It asks whether the NMI of *any* hybrid falls; MIM's
own may fall as well, and flat attention also has a low NMI: check the entropy.\n\n"""
Markdown(
    care + "\n\n".join(said) if said else "There is no hybrid beside both parents."
)

# %% [markdown]
# ## High frequencies by depth
#
# The published hybrid begins with more high frequencies than either parent and ends close to both: it falls furthest. At
# depth 0, CL equals the untrained encoder, since its patch embedding is not trained.

# %% mystnb={"image": {"alt": "Δ log amplitude of high frequencies against depth for hybrids and their two parents, one panel per study and one of published curves."}, "figure": {"caption": "Δ log amplitude at the last frequency below Nyquist on the diagonal, against depth, for hybrids and their two parents. Lines as above."}}
legend = beside_published("delta_log_amplitude")

# %% tags=["remove-input"]
parts = [frame.query("metric == 'delta_log_amplitude'") for frame in frames.values()]
plots.download(parts, "amplitude")


# %% tags=["hide-input"]
def beside_parents(first, last):
    """How hybrids begin, fall and end compared with both parents, in words."""
    mixed = [who for who in first.index if who.startswith("hybrid")]
    low, high = sorted(last[["CL", "MIM"]])
    more = sum(first[mixed] > first[["CL", "MIM"]].max())
    between = sum(last[mixed].between(low, high))
    close = sum(last[mixed] > (low + high) / 2)
    nearer = "MIM" if last["MIM"] == high else "CL"
    return f"""{more or "none"} of {len(mixed)} hybrids begin with more high frequencies
than either parent (mean of the first third of the blocks), and {(first - last).idxmax()}
falls furthest. In the last third, {between or "none"} of {len(mixed)} lie between the
parents, and {close or "none"} are nearer to {nearer}."""


# %% tags=["hide-input"]
said = []
for name, frame in frames.items():
    thirds = [pd.Series(of(frame, "delta_log_amplitude")) for of in (early, late)]
    thirds = [rows.rename(lambda who: who.partition(",")[0]) for rows in thirds]
    mixed = thirds[0].index.str.startswith("hybrid").any()
    if mixed and {"CL", "MIM"} <= {*thirds[0].index}:
        said.append(f"On {study(name).title}, {beside_parents(*thirds)}")
Markdown("\n\n".join(said)) if said else None

# %% [markdown]
# ## What it costs
#
# A hybrid computes both losses for every image. Speed depends on the device and the precision listed in the table, and on
# other work that shared the device at times.

# %%
drawn = {model for frame in tuned.values() for model in frame["model"]}
drawn = first_seeds(sorted(drawn))  # all seeds cost the same
kinds = {"device": str, "precision": str, "images_seen": int, "wall_time_s": int}
costs = pd.DataFrame.from_dict(ABOUT, orient="index")
costs = costs.loc[costs.index.isin(drawn), list(kinds)].astype(kinds)
costs["device"] = costs["device"].str.split().str[:2].str.join(" ")
costs["images / s"] = (costs["images_seen"] / costs["wall_time_s"]).round().astype(int)
costs.drop(columns=["images_seen", "wall_time_s"]).rename(
    lambda model: model.removesuffix(FAMILY)
)

# %% [markdown]
# Runs in bfloat16 also computed their views in bfloat16, so a hybrid of that precision and its parents in float32 differ
# in more than the objective.

# %% [markdown]
# ## What would refute it
#
# No hybrid beats both parents by more than the intervals, where all encoders have seen the same images; or a hybrid that
# does beat them has no lower NMI in its late blocks than in its early ones, or a low one only because attention is flat.
#
# The [scorecard](../index.py) says:

# %% tags=["hide-input"]
scorecard.rows("hybrid/hybrid", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - What shows: only that the NMI of some hybrid falls with depth (15c), and on generated images that of MIM falls
#   further.
# - What is undecided: that a hybrid beats both parents. On generated images the best one lies above all seeds of both
#   parents, but three seeds bound a mean only loosely; on photographs none leads clearly.
# - What does not show: early blocks like MIM's in NMI, and late blocks like CL's in frequencies.
# - λ is not a share of influence. It weighs a cross-entropy against a difference of pixel values, so the best λ of one
#   recipe says little about that of another; [the next chapter](agreement.py) measures which loss pulls harder.
# - A hybrid can cost as much as its parents together. Compare it with a parent that saw as many images and, if computing
#   time is the limit, with one that was trained for as long.
#
# ## Exercises
#
# 1. **Other models.** Which hybrid is nearest to MIM in its late blocks? Set
#    `MODELS = ["shapes.mim.w64.n256000", "shapes.hybrid-0.2.w64.n256000", "shapes.hybrid-0.8.w64.n256000"]`, or train
#    another weight: `python -m nbhelpers.pretrain --study shapes --objective hybrid-0.1`.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
shown = {name: late(frame, "nmi") for name, frame in frames.items()}
late_nmi = pd.DataFrame(shown).rename_axis(columns="late NMI").sort_values([*shown])
late_nmi.map("{:.3f}".format, na_action="ignore").fillna("")

# %% [markdown]
# 2. **Another quantity.** Does the hybrid's mean attention distance also move from one parent to the other? It is in the
#    table `profile`, as is the cosine between tokens.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
thirds = {
    (name, third): of(frame, "attention_distance")
    for name, frame in frames.items()
    for third, of in (("first third", early), ("last third", late))
}
pd.DataFrame(thirds).map("{:.1f} px".format, na_action="ignore").fillna("")

# %% [markdown]
# 3. **Equal time.** How many images could a contrastive encoder see in the time that the hybrid took? Use the table of
#    costs. What should a fair comparison hold fixed?
