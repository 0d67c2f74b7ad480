# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Behaviour
#
# **Claim.** Which of the two is better depends on what is asked: contrastive encoders win when they stay frozen and a
# linear layer reads them, masked encoders when all weights are trained on, when every part of the image has to be named,
# and when the model is large {cite:p}`park2023what`.
#
# Four ways of asking, from the laziest to the most demanding. **k-NN** lets the nearest images vote. A **linear probe** may
# stretch directions before it decides. An {term}`attentive probe` may also choose which tokens to read.
# {term}`Fine-tuning <fine-tuning>` trains all weights, the lower layers more slowly: the learning rate of layer $\ell$ of
# $L$ is $\eta\,\gamma^{L - \ell}$ with a {term}`layer decay` $\gamma < 1$. What an encoder gains from one step to the next says
# how hidden its knowledge is. Dense prediction asks a linear layer on every single token what its patch shows, and counts
# by the mean {term}`intersection over union` of classes,
#
# $$
# \mathrm{mIoU} = \frac{1}{C} \sum_{c} \frac{|P_c \cap T_c|}{|P_c \cup T_c|} ,
# $$
#
# with $P_c$ the patches that are predicted to show class $c$ and $T_c$ those that do.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # encoders by name, of which `make results` has stored tables; None: the study's own

# %% tags=["hide-input"]
from contextlib import suppress

import pandas as pd
import torch
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.models import manifest
from nbhelpers.results import already, at_end, late, published, published_triples
from nbhelpers.results import table as computed
from nbhelpers.studies import label

plots.style()
KINDS = ["cl", "dino", "mim", "mae", "supervised", "hybrid-0.2"]
ABOUT = manifest()

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["14a", "14c", "14b", "14e", "14f"], STUDIES, MODELS)

# %% [markdown]
# The tables of this chapter take too long for a build of the book. They are computed once and stored with what they were
# made from; `make results STUDY=shapes` makes them again. An encoder without a row is left out of a figure.


# %% tags=["hide-input"]
def stored(name, kind, models=None):
    """Stored rows of those models of a study that have some, or of the models of this chapter."""
    chosen = models or MODELS or [*study(name).trained(*KINDS), f"{name}.random"]
    if kind in ("profile", "probes"):  # quick enough to be computed where the images are
        with suppress(MissingDataError):
            return computed(name, kind, chosen)
    frames, _ = already(name, kind, chosen)
    return pd.concat(frames, ignore_index=True) if frames else None


def own_label(frame):
    """Rows of the label that was fine-tuned on: the shape, or the class of a photograph."""
    wanted = "shape" if "shape" in set(frame["label"]) else "class"
    return frame[frame["label"] == wanted]


# %% [markdown]
# ## The quantity
#
# The formula on two small images of four patches: one patch of the object is missed, one of the ground is taken for it.

# %%
from nbhelpers.probes import mean_iou

T = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])  # what the patches show, B N
P = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]])  # what is predicted
classes = range(2)
both = torch.stack([((P == c) & (T == c)).sum() for c in classes])
either = torch.stack([((P == c) | (T == c)).sum() for c in classes])
mIoU = (both / either).mean()
assert_close(float(mIoU), mean_iou(P, T)[0])
print(f"{mIoU:.3f}")

# %% [markdown]
# ## A linear layer on top, or all weights
#
# A dot per encoder: across, a linear probe of its last layer; upwards, the same encoder fine-tuned on 10,000 labelled images
# for 200 steps, which is short. The published panel shows ViT-B/16 on ImageNet.

# %% tags=["hide-input"]
points = {}
for name in STUDIES:
    probes, tuned = stored(name, "probes"), stored(name, "fine_tuning")
    if probes is not None and tuned is not None:
        points[name] = own_label(at_end(probes, "linear")), tuned.query("share == 1")
paper = published().query("source.str.endswith('figure 1a')", engine="python")
paper = paper.assign(low=paper["value"] - paper["error"], high=paper["value"] + paper["error"])

# %% mystnb={"image": {"alt": "Accuracy after fine-tuning against accuracy of a linear probe, a dot per encoder; a panel per study and one published."}, "figure": {"caption": "Fine-tuned accuracy against a linear probe of the last layer, with 95 % intervals over test images. Labels say where an encoder has another width or saw other images than CL and MIM."}}
titles = [plots.title(probed) for probed, _ in points.values()]
axes = plots.panels([*titles, "published"], height=3.2)
for ax, (probed, tuned) in zip(axes, points.values(), strict=False):
    plots.trade_off(probed, tuned, ("linear probe, last layer", "fine-tuned"), ax)
linear, tuned = (paper[paper["metric"] == metric] for metric in ("linear", "finetune"))
plots.trade_off(linear, tuned, ("linear probe, last layer", "fine-tuned"), axes[len(points)])
legend = plots.legend_below(axes)
# %% tags=["hide-input"]
plots.download(pd.concat([rows for pair in points.values() for rows in pair]), "behaviour")

# %% [markdown]
# Far to the right and low: easy to read, little to gain. Far to the left and high: the knowledge is there, in a form that
# only training brings out.
#
# ## k-NN, linear, attentive
#
# The same three questions to every encoder, at its last block. The number of images that each probe learnt from is given
# beside it: an attentive probe that learns from fewer images than the linear one may lie below it for that reason.

# %% tags=["hide-input"]
parts = []
for name in STUDIES:
    for kind, metrics in {"probes": ["knn", "linear"], "tokens": ["attentive"]}.items():
        frame = stored(name, kind)
        if frame is not None:
            last = own_label(frame[frame["metric"].isin(metrics)])
            parts += [at_end(last, metric) for metric in metrics]
rows = pd.concat(parts, ignore_index=True)
who = [label(*each) for each in zip(rows["model"], rows["objective"], strict=True)]
triple = rows.assign(encoder=who).pivot_table(
    index=["study", "encoder"], columns="metric", values="value", sort=False
)
triple.reindex(columns=["knn", "linear", "attentive"]).round(2)

# %% tags=["hide-input"]
theirs = published_triples().query("size == 'ViT-B/16'")
theirs.pivot(index="model", columns="metric", values="value")[["knn", "linear", "attentive"]]

# %% [markdown]
# The second table is published: public ViT-B/16 on ImageNet-1k, with all of its labels. There a masked pixel model
# (SimMIM, MAE) gains most with each step: what it knows lies in directions and tokens that hardly weigh in a distance.
# Here the k-NN and linear probes learn from 3,000 images and the attentive one from 1,000.
#
# ## What every token knows
#
# Generated images come with the mask of their object, so a linear layer on single tokens can be asked, per patch, for
# object or background, and for the texture of the object.

# %% tags=["hide-input"]
tokens = stored("shapes", "tokens")
dense = {what: tokens[tokens["label"] == what] for what in ("mask", "texture")}

# %% mystnb={"image": {"alt": "Mean IoU of a linear layer on single tokens against depth, one panel for the object's mask and one for its texture, a line per encoder."}, "figure": {"caption": "Mean IoU of a linear layer on single tokens, by depth, on generated images."}}
axes = plots.panels([f"{what}\n{plots.title(rows)}" for what, rows in dense.items()], sharey=True)
for ax, rows in zip(axes, dense.values(), strict=True):
    plots.by_depth(rows, "miou", ax)
legend = plots.legend_below(axes)
# %% tags=["hide-input"]
plots.download(tokens, "dense")

# %% [markdown]
# The [cosine between tokens](../representations/diversity.py) says how much tokens share, not whether the rest can be read:
# a linear layer can stretch a direction in which they hardly differ.
#
# ## Small models and large ones
#
# CL and MIM were trained on generated images at three widths by the same recipe, each on the same number of images. From
# ViT-Ti to ViT-B the paper's width grows by the same factor of four.

# %% tags=["hide-input"]
family = study("shapes").trained("cl", "mim", vary=["width", "images"])
SEEN = 256_000
same = [name for name in family if ABOUT[name]["images_seen"] == SEEN]
sized = stored("shapes", "fine_tuning", same).query("share == 1 and seed == 0")
widths = [ABOUT[name]["architecture"]["width"] for name in sized["model"]]
sized = sized.assign(parameter=widths, model="shapes." + sized["objective"].str.lower())
where = "source.str.endswith('figure 1b') and setting.str.contains('100 epochs')"
sizes = published().query(where, engine="python")

# %% mystnb={"image": {"alt": "Accuracy after fine-tuning against the width of the encoder for CL and MIM, here and published."}, "figure": {"caption": "Fine-tuned accuracy by width of the encoder (256,000 images seen each, one seed), and as published for ViT-Ti, S and B after 100 epochs."}}
axes = plots.panels([plots.title(sized), "published: ImageNet"])
plots.by_parameter(sized, "fine_tuning", "width", axes[0]).set_xticks(sorted(set(widths)))
for model, rows in sizes.groupby("model"):
    look = plots.line_style(model, rows["objective"].iloc[0])
    axes[1].plot(rows["size"], rows["value"], label=rows["objective"].iloc[0], **look)
legend = plots.legend_below(axes)
# %% [markdown]
# In the published panel the lines cross between the second and the third size: with more weights, SimMIM gains more.
#
# ## Trained for longer
#
# What only a short training makes should fade with a longer one. The rows are CL and MIM from the shortest to the longest
# training; the longest are also twice as wide, so the last step is not of length alone. Validation losses of the newest
# encoders were not recorded.

# %% tags=["hide-input"]
table = {}
for name in STUDIES:
    for encoder in study(name).trained("cl", "mim", vary=["width", "images"]):
        about = ABOUT[encoder]
        if about["architecture"]["width"] < 64 or about["seed"]:
            continue
        row = {"validation loss": about.get("val_loss")}
        profile = stored(name, "profile", [encoder])
        if profile is not None:
            row |= {what: next(iter(late(profile, what).values())) for what in ("nmi", "attention_distance")}
        probed = stored(name, "probes", [encoder])
        if probed is not None:
            row["linear"] = float(own_label(at_end(probed, "linear"))["value"].iloc[0])
        key = (name, about["objective"], about["images_seen"], about["architecture"]["width"])
        table[key] = row
lengths = pd.DataFrame(table).T.rename_axis(["study", "objective", "images", "width"])
names = {"nmi": "late NMI", "attention_distance": "late distance (px)", "linear": "linear, last block"}
lengths.rename(columns=names).sort_index().astype(float).round(3)

# %% [markdown]
# ## What would refute it
#
# A masked encoder that a linear probe reads better than a contrastive one of the same architecture, trained on the same
# images; or one that gains less from fine-tuning or attention over its tokens. What the [scorecard](../index.py) says:

# %% tags=["hide-input"]
scorecard.rows("components/behaviour", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - There is no single number for a representation. k-NN, linear, attentive and fine-tuned accuracy ask for ever more of
#   the encoder, and rank encoders differently.
# - Short fine-tuning, few labels and small encoders favour what is already easy to read. Compare numbers only where the
#   labels say the same width and images.
# - Dense prediction is about what single tokens know; the mean over tokens can know more than any of them.
#
# ## Exercises
#
# 1. **Other models.** Which of the older encoders of width 64 are read best by a linear probe?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
older = [name for name in family if ".w64." in name]
frame = stored("shapes", "fine_tuning", older).query("share == 1")
frame.set_index("model")["value"].sort_values().round(3)

# %% [markdown]
# 2. **A predictor that knows nothing.** What is the mIoU of an object mask if every patch is called background?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# The background is right where it is, the object never: half of the background's share.
mean_iou(torch.zeros_like(T), T)[0], float((T == 0).float().mean() / 2)
