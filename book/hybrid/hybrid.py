# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # The hybrid
#
# **Claim.** Contrastive learning and masked image modelling complement each other. An encoder trained on the plain weighted
# sum of both losses beats either parent, in a linear probe and after fine-tuning, for the right weight
# {cite:p}`park2023what`. Its early blocks behave like those of a masked encoder, its late blocks like those of a
# contrastive one.
#
# Both losses share one encoder; each has its own views and heads,
#
# $$
# L = (1 - \lambda)\, L_{\mathrm{MIM}} + \lambda\, L_{\mathrm{CL}} ,
# $$ (eq-hybrid)
#
# so that $\lambda = 0$ is SimMIM and $\lambda = 1$ is MoCo v3. Encoders of one study share
# order and initialisation, but not always the number of images: where a label names images, compare it with labels that
# name the same. The newer hybrid on CIFAR-10 saw 3 million images and its parents 5 million, which favours the parents.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # encoders by name, hybrids among them; None: all hybrids of the study and their two parents

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
from nbhelpers import scorecard

scorecard.result(["15a", "15b", "15c"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# Both losses on eight random rows. A query $q_i$ of one view has to find the key $k_i$ of the other among all keys;
# SimMIM's error is counted on masked patches only, $m = 1$; the hybrid's loss is their weighted sum.

# %%
import torch
from torch.testing import assert_close

from nbhelpers.pretrain.hybrid import combine
from nbhelpers.pretrain.moco import info_nce
from nbhelpers.pretrain.simmim import masked_l1

torch.manual_seed(0)
q, k, T = torch.randn(8, 32), torch.randn(8, 32), 0.2  # B D
x, x_hat = torch.randn(8, 64, 48), torch.randn(8, 64, 48)  # B N D
m = torch.rand(8, 64) < 0.6  # B N

# %%
cosine = torch.nn.functional.cosine_similarity(q[:, None], k[None], dim=-1)  # B B
L_CL = -2 * T * (cosine / T).log_softmax(-1).diagonal().mean()
L_MIM = (x_hat - x).abs().mean(-1)[m].mean()
weight_cl = 0.2  # lambda
L = (1 - weight_cl) * L_MIM + weight_cl * L_CL

assert_close(L_CL, info_nce(q, k, T), atol=1e-4, rtol=1e-4)
assert_close(L_MIM, masked_l1(x_hat, x, m), atol=1e-4, rtol=1e-4)
assert_close(L, combine(L_MIM, L_CL, weight_cl), atol=1e-4, rtol=1e-4)

# %% [markdown]
# ## Accuracy against the weight
#
# Hybrids and parents of width 64, all of which saw 256,000 images; a newer hybrid of photographs, which saw fewer than its
# parents, is in the scorecard's rows below. Above a linear probe of the last layer, below the accuracy after fine-tuning (a
# [stored table](../components/behaviour.py)); a grey line joins the encoders of one study. In the published figure, ViT-B/16
# was trained for 100 epochs.

# %% tags=["hide-input"]
import pandas as pd

from nbhelpers import plots, study
from nbhelpers.models import manifest
from nbhelpers.results import at_end, published, table

plots.style()
FAMILY = ".w64.n256000"  # of one width, and all saw as many images: the largest such set
models = {}
for name in STUDIES:
    known = study(name).trained("mim", "hybrid", "cl", vary=["width", "images"])
    models[name] = MODELS or [model for model in known if FAMILY in model]
tuned = {name: table(name, "fine_tuning", models[name]).query("share == 1") for name in STUDIES}
probed = {name: at_end(table(name, "probes", models[name]), "linear") for name in STUDIES}


# %% tags=["hide-input"]
def weight(model: str) -> float:
    """Lambda of the recipe that an encoder was trained by; NaN, which is not drawn, where it has none."""
    recipe = manifest().get(model, {}).get("recipe", {"objective": "none", "options": {}})
    return recipe["options"].get("weight", {"mim": 0.0, "cl": 1.0}.get(recipe["objective"], float("nan")))


for name in STUDIES:
    asked = tuned[name]["label"].iloc[0]
    probed[name] = probed[name][probed[name]["label"] == asked]
    for frames in (tuned, probed):
        frames[name] = (
            frames[name].assign(parameter=frames[name]["model"].map(weight)).sort_values("parameter")
        )

# %% mystnb={"image": {"alt": "Accuracy of linear probe and of fine-tuning against the weight of the contrastive loss."}, "figure": {"caption": "Accuracy of linear probe and of fine-tuning against the weight of the contrastive loss."}}
columns = len(STUDIES) + 1
titles = [*map(plots.title, probed.values()), "published", *map(plots.title, tuned.values()), "published"]
axes = plots.panels(titles, columns=columns, sharex=True)
for row, frames, metric in ((axes[:columns], probed, "linear"), (axes[columns:], tuned, "fine_tuning")):
    for ax, frame in zip(row, frames.values(), strict=False):
        ax.plot(frame.groupby("parameter")["value"].mean(), color="#999999", lw=1, zorder=0)
        plots.by_parameter(frame, metric, "λ", ax)
    paper = published().query(f"metric == '{metric.replace('fine_tuning', 'finetune')}'")
    paper = paper[paper["setting"].fillna("").str.startswith("lambda=")].sort_values("setting")
    lambdas = paper["setting"].str.removeprefix("lambda=").astype(float)
    row[-1].plot(lambdas, paper["value"], color="#222222", marker="v", mfc="white", lw=1)
    row[-1].set(xlabel="λ", ylabel=plots.LABELS[metric])
legend = plots.legend_below(axes)

# %% tags=["hide-input"]
from IPython.display import Markdown


def ends(frame: pd.DataFrame) -> str:
    """The best hybrid of a frame beside its parents, in words."""
    best = frame[frame["objective"] == "hybrid"].sort_values("value").tail(1)
    parents = {row.model: f"{row.value:.3f}" for row in frame.itertuples() if row.objective != "hybrid"}
    hybrid = [
        f"λ = {row.parameter:g} {row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
        for row in best.itertuples()
    ]
    return "; ".join(
        [*(hybrid or ["no hybrid yet"]), *(f"{name} {value}" for name, value in parents.items())]
    )


# %% tags=["hide-input"]
Markdown(
    "\n".join(
        f"- {kind} on `{name}`: {ends(frames[name])}."
        for kind, frames in (("linear probe", probed), ("fine-tuned", tuned))
        for name in STUDIES
    )
)

# %% [markdown]
# The interval in brackets is that of the best hybrid, over test images.

# %% [markdown]
# ## Attention, from one parent to the other?
#
# If the hybrid takes its early layers from MIM and its late ones from CL, its {term}`NMI` must fall with depth.

# %% mystnb={"image": {"alt": "NMI of query and key against depth for the hybrid and its two parents; a panel per study."}, "figure": {"caption": "NMI of query and key against depth for the hybrid and its two parents; a panel per study."}}
frames = [table(name, "profile", models[name]) for name in STUDIES]
PUBLISHED = ("MoCo v3", "SimMIM", "SimMIM+MoCo")
axes = plots.beside_published(frames, "nmi", published(), PUBLISHED)

# %% tags=["hide-input"]
from nbhelpers.results import early, late

Markdown(
    "\n".join(
        f"- {who} on `{name}`: NMI {value:.3f} in the first third of the blocks, {late(frame, 'nmi')[who]:.3f} in the last."
        for name, frame in zip(STUDIES, frames, strict=True)
        for who, value in early(frame, "nmi").items()
    )
)

# %% [markdown]
# ## Frequencies

# %% mystnb={"image": {"alt": "Relative log amplitude of high frequencies against depth for the hybrid and its two parents."}, "figure": {"caption": "Relative log amplitude of high frequencies against depth for the hybrid and its two parents."}}
axes = plots.beside_published(frames, "delta_log_amplitude", published(), PUBLISHED)

# %% [markdown]
# The paper's hybrid carries more of the high frequencies than either parent at first and fewer at the end; compare the
# green lines.

# %% [markdown]
# ## What it costs
#
# A hybrid computes both losses for every image. Speed is that of the device named, which other work shared at times.

# %%
drawn = [model for names in models.values() for model in names]
kinds = {"device": str, "precision": str, "images_seen": int, "wall_time_s": int, "val_loss": float}
costs = pd.DataFrame.from_dict(manifest(), orient="index")
costs = costs.loc[costs.index.isin(drawn), list(kinds)].astype(kinds)
costs["images per second"] = (costs["images_seen"] / costs["wall_time_s"]).round()
shown = {"images_seen": "images seen", "wall_time_s": "seconds", "val_loss": "validation loss"}
costs.rename(columns=shown)

# %% [markdown]
# Validation losses are sums of different terms, and can be compared between encoders of one objective only. Runs in
# bfloat16 drew their views in bfloat16 too: a hybrid of that precision and parents in float32 differ in more than the
# objective.

# %% [markdown]
# ## What would refute it
#
# Hybrids none of which beats both parents by more than the intervals, with all encoders having seen the same images; or a
# hybrid that beats them and has no lower NMI in its late blocks than in its early ones.
#
# What the [scorecard](../index.py) says:

# %% tags=["hide-input"]
scorecard.rows("hybrid/hybrid", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Put other encoders into `MODELS`, or train another weight: `python -m nbhelpers.pretrain --objective hybrid-0.1`.
# 2. Draw `"attention_distance"` or `"token_cosine"` instead of `"nmi"`; the table `profile` has both.
# 3. Is a hybrid better than a contrastive encoder that was trained for as many seconds? What would a fair comparison hold
#    fixed?
