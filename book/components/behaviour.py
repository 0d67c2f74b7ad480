# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Behaviour
#
# **Claim.** Which of the two is better depends on what is asked. Contrastive encoders win when the encoder stays as it is
# and a linear layer reads it, and when the model is small. Masked encoders win when all weights are trained on, when
# every part of the image has to be named, and when the model is large {cite:p}`park2023what`.
#
# {term}`Fine-tuning <fine-tuning>` starts from the encoder's weights and trains all of them on labels, the lower layers more slowly: the
# learning rate of layer $\ell$ of $L$ is $\eta \, \gamma^{L - \ell}$ with a {term}`layer decay` $\gamma < 1$. Dense
# prediction asks a linear layer on every single token what its patch shows, and counts by the mean
# {term}`intersection over union` of classes,
#
# $$
# \mathrm{mIoU} = \frac{1}{C} \sum_{c} \frac{|P_c \cap T_c|}{|P_c \cup T_c|} ,
# $$ (eq-miou)
#
# with $P_c$ the patches that are predicted to show class $c$ and $T_c$ those that do.
#
# Fine-tuning is too slow for a build of the book. These tables are computed once and stored with what they were made
# from; `make results STUDY=shapes` and `make results STUDY=cifar10` make them again.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # encoders by name, of which `make results` has stored tables; None: the study's own

# %% [markdown]
# ## A linear layer on top, or all weights
#
# A dot per encoder: across, a linear probe of its last layer; upwards, the same encoder fine-tuned on
# {glue:text}`labelled:,.0f` labelled images by the same short recipe. The published panel shows ViT-B/16 on ImageNet.

# %% tags=["hide-input"]
from nbhelpers import plots, study
from nbhelpers.results import at_end, by_label, published, table

plots.style()
kinds = ["cl", "dino", "mim", "mae", "supervised", "hybrid-0.2"]
models = {name: MODELS or [*study(name).trained(*kinds), f"{name}.random"] for name in STUDIES}
tuned = {name: table(name, "fine_tuning", models[name]) for name in STUDIES}
linear = {name: at_end(table(name, "probes", models[name]), "linear") for name in STUDIES}

# %%
axes = plots.panels([plots.title(frame) for frame in tuned.values()] + ["published"])
for ax, name in zip(axes, STUDIES, strict=False):
    whole = tuned[name].query("share == 1")
    probed = linear[name][linear[name]["label"] == whole["label"].iloc[0]]
    plots.trade_off(probed, whole, ("linear probe, last layer", f"fine-tuned, {whole['label'].iloc[0]}"), ax)
paper = published().query("source.str.endswith('figure 1a')", engine="python")
paper = paper.assign(low=paper["value"] - paper["error"], high=paper["value"] + paper["error"])
points = [paper[paper["metric"] == metric] for metric in ("linear", "finetune")]
plots.trade_off(*points, ("linear probe, last layer", "fine-tuned"), axes[-1])
plots.legend_below(axes[:-1])
axes[-1].legend()
plots.show(
    axes,
    "Accuracy after fine-tuning against accuracy of a linear probe, a dot per encoder; a panel per study.",
)

# %% tags=["remove-cell"]
from myst_nb import glue

from nbhelpers.results.tables import LABELLED

glue("labelled", LABELLED, display=False)
glue("fewest", float(LABELLED * tuned[STUDIES[0]]["share"].min()), display=False)
for name in STUDIES:
    for share, rows in tuned[name].groupby("share"):
        for who, value in by_label(rows).items():
            glue(f"{name}-{who}-{share:g}", value, display=False)
    label = tuned[name]["label"].iloc[0]
    for who, value in by_label(linear[name][linear[name]["label"] == label]).items():
        glue(f"{name}-{who}-linear", value, display=False)

# %% [markdown]
# On `shapes`, CL goes from {glue:text}`shapes-CL-linear:.2f` to {glue:text}`shapes-CL-1:.2f` and MIM from
# {glue:text}`shapes-MIM-linear:.2f` to {glue:text}`shapes-MIM-1:.2f`; on CIFAR-10, CL from
# {glue:text}`cifar10-CL-linear:.2f` to {glue:text}`cifar10-CL-1:.2f` and MIM from
# {glue:text}`cifar10-MIM-linear:.2f` to {glue:text}`cifar10-MIM-1:.2f`. MAE reaches
# {glue:text}`shapes-MAE-1:.2f` and {glue:text}`cifar10-MAE-1:.2f`, an encoder that starts untrained
# {glue:text}`shapes-random-1:.2f` and {glue:text}`cifar10-random-1:.2f`. DINO, trained on `shapes` only, goes from
# {glue:text}`shapes-DINO-linear:.2f` to {glue:text}`shapes-DINO-1:.2f`.

# %% [markdown]
# ## Few labels
#
# The same recipe on a hundredth, a tenth and all of the {glue:text}`labelled:,.0f` labels, with as many steps each time.

# %%
axes = plots.panels([plots.title(frame) for frame in tuned.values()])
for ax, frame in zip(axes, tuned.values(), strict=True):
    frame = frame.assign(parameter=frame["share"] * 100)
    plots.by_parameter(frame, "fine_tuning", "share of the labels (%)", ax, reference=(0.1, "chance"))
    ax.set_xscale("log")
plots.legend_below(axes)
plots.show(
    axes,
    "Accuracy after fine-tuning against the share of labels used, a line per encoder; a panel per study.",
)

# %% [markdown]
# With {glue:text}`fewest:.0f` labels, CL reaches {glue:text}`shapes-CL-0.01:.2f`, MIM {glue:text}`shapes-MIM-0.01:.2f` and the untrained
# encoder {glue:text}`shapes-random-0.01:.2f` on `shapes`; on CIFAR-10 they reach {glue:text}`cifar10-CL-0.01:.2f`,
# {glue:text}`cifar10-MIM-0.01:.2f` and {glue:text}`cifar10-random-0.01:.2f`.

# %% [markdown]
# ## What every token knows
#
# Generated images come with the mask of their object, so a linear layer on single tokens can be asked, per patch, for
# object or background, and for the texture of the object.

# %%
tokens = table("shapes", "tokens", models.get("shapes"))
labels = ["mask", "texture"]
axes = plots.panels([f"{label}, {plots.title(tokens)}" for label in labels])
for ax, label in zip(axes, labels, strict=True):
    plots.by_depth(tokens[tokens["label"] == label], "miou", ax)
plots.legend_below(axes)
plots.show(
    axes, "Mean IoU of a linear layer on single tokens against depth, for the object's mask and its texture."
)

# %% tags=["remove-cell"]
from nbhelpers.results import peak

for label in labels:
    rows = tokens[(tokens["label"] == label) & (tokens["metric"] == "miou")]
    for who, value in by_label(at_end(rows, "miou")).items():
        glue(f"{label}-{who}", value, display=False)
    for who, depth in peak(rows, "miou").items():
        glue(f"{label}-{who}-peak", depth, display=False)

# %% [markdown]
# In the last layer, the mean IoU of the mask is {glue:text}`mask-CL:.2f` for CL, {glue:text}`mask-MIM:.2f` for MIM and
# {glue:text}`mask-MAE:.2f` for MAE, that of the texture {glue:text}`texture-CL:.2f`, {glue:text}`texture-MIM:.2f` and
# {glue:text}`texture-MAE:.2f`. CL is best at depths {glue:text}`mask-CL-peak` and {glue:text}`texture-CL-peak`, MIM
# at {glue:text}`mask-MIM-peak` and {glue:text}`texture-MIM-peak`. The [cosine between tokens](../representations/diversity.py)
# says how much they share, not whether the rest can be read: a linear layer can stretch a direction in which tokens hardly
# differ.

# %% [markdown]
# ## Let the probe choose its tokens
#
# Mean pooling is not kind to encoders that keep what they know in a few tokens. An {term}`attentive probe` learns queries
# that choose which tokens to read.

# %%
frames = {name: table(name, "tokens", models[name]) for name in STUDIES}
parts = {
    (name, label): rows for name, f in frames.items() for label, rows in f.groupby("label") if label != "mask"
}
axes = plots.panels([f"{label}, {plots.title(rows)}" for (_, label), rows in parts.items()])
for ax, rows in zip(axes, parts.values(), strict=True):
    plots.by_depth(rows, "attentive", ax, reference=(0.1, "chance"))
plots.legend_below(axes)
plots.show(
    axes, "Accuracy of an attentive probe against depth, a line per encoder; a panel per label and study."
)

# %% [markdown]
# ## Small models and large ones
#
# On `shapes`, CL and MIM were trained at three widths by the same recipe, a head for every 16 channels. From ViT-Ti to
# ViT-B the paper's width grows by the same factor of four; its panel (figure 1b) shows MoCo v3 and SimMIM after 100 epochs
# on ImageNet.

# %% tags=["hide-input"]
from nbhelpers.models import manifest
from nbhelpers.studies import first_seeds

about = manifest()
names = first_seeds(study("shapes").trained("cl", "mim", vary=["width"]))
sized = table("shapes", "fine_tuning", names).query("share == 1")
sized = sized.assign(parameter=[about[name]["architecture"]["width"] for name in sized["model"]])
sizes = published().query(
    "source.str.endswith('figure 1b') and setting.str.contains('100 epochs')", engine="python"
)

# %%
axes = plots.panels([plots.title(sized), "published: ImageNet"])
lines = sized.assign(model="shapes." + sized["objective"].str.lower())
plots.by_parameter(lines, "fine_tuning", "width", axes[0]).set_xticks(sorted(set(sized["parameter"])))
for model, rows in sizes.groupby("model"):
    look = plots.line_style(model, rows["objective"].iloc[0])
    axes[1].plot(rows["size"], rows["value"], label=f"{rows['objective'].iloc[0]}: {model}", **look)
for ax in axes:
    ax.legend()
plots.show(
    axes, "Accuracy after fine-tuning against the width of the encoder for CL and MIM; here and published."
)

# %% tags=["remove-cell"]
for row in sized.itertuples():
    glue(f"width-{row.objective}-{row.parameter}", row.value, display=False)

# %% [markdown]
# From the narrowest to the widest encoder, CL goes from {glue:text}`width-CL-16:.2f` over {glue:text}`width-CL-32:.2f` to
# {glue:text}`width-CL-64:.2f`, MIM from {glue:text}`width-MIM-16:.2f` over {glue:text}`width-MIM-32:.2f` to
# {glue:text}`width-MIM-64:.2f`. In the published panel the lines cross between the second and the third size: with more
# weights, SimMIM gains more.

# %% [markdown]
# ## Trained for longer
#
# The encoders of this book are trained far less than the paper's. CL and MIM were trained once more, on
# {glue:text}`longer:,.0f` images instead of {glue:text}`usual:,.0f`; the schedules of the learning rate and of the momentum
# encoder stretch with them. What only a short training makes should fade. Thin lines are further runs of the usual length.

# %%
lengths = {name: study(name).trained("cl", "mim", vary=["images"]) for name in STUDIES}
shown = {}
for name, encoders in lengths.items():
    profile, probes = (table(name, kind, [*encoders, f"{name}.random"]) for kind in ("profile", "probes"))
    probes = probes[probes["label"] == tuned[name]["label"].iloc[0]]
    shown |= {(name, "attention_distance"): profile, (name, "nmi"): profile, (name, "linear"): probes}
axes = plots.panels([plots.title(frame) for frame in shown.values()], height=3.3, columns=3)
for ax, ((_, metric), frame) in zip(axes, shown.items(), strict=True):
    plots.by_depth(frame, metric, ax)
plots.legend_below(axes)
plots.show(
    axes,
    "Attention distance, NMI and linear probe accuracy against depth for CL and MIM, each trained on two numbers of images, and untrained; a row per study.",
)

# %% tags=["hide-input"]
import pandas as pd

from nbhelpers.results import last_third

encoders = [name for names in lengths.values() for name in names]
layers = pd.concat([shown[name, "nmi"] for name in STUDIES]).query("head < 0")
late = layers[layers.groupby("model")["depth"].transform(last_third)]
late = late.groupby(["metric", "model"])["value"].mean()
probed = pd.concat([at_end(shown[name, "linear"], "linear") for name in STUDIES])
whole = pd.concat([table(name, "fine_tuning", lengths[name]) for name in STUDIES]).query("share == 1")
measured = {"loss": pd.Series({name: about[name]["val_loss"] for name in encoders})}
measured |= {"distance": late["attention_distance"], "NMI": late["nmi"]}
measured |= {"linear": probed.set_index("model")["value"], "tuned": whole.set_index("model")["value"]}
measured = pd.DataFrame(measured).loc[encoders]
words = ["validation loss", "late distance (px)", "late NMI", "linear probe, last layer", "fine-tuned"]
measured.set_axis(words, axis=1).round(3)

# %% tags=["remove-cell"]
recipes = [about[name]["recipe"] for name in encoders]
usual, longer = sorted({recipe["images"] for recipe in recipes})
glue("usual", usual, display=False)
glue("longer", longer, display=False)
by = {key: [recipe[key] for recipe in recipes] for key in ("objective", "images", "seed")}
by |= {"study": [about[name]["study"] for name in encoders]}
runs = measured.assign(**by).set_index(list(by)).stack().unstack("objective")
runs["gap"] = runs["cl"] - runs["mim"]
for (images, name, what), rows in runs.groupby(level=["images", "study", -1]):
    for who, values in rows.items():
        for kind in ("mean", "min", "max"):
            key = f"{name}-{what}-{who}-{'usual' if images == usual else 'longer'}-{kind}"
            glue(key, float(getattr(values, kind)()), display=False)

# %% [markdown]
# On `shapes`, the longer training takes the validation loss from {glue:text}`shapes-loss-cl-usual-mean:.3f` to
# {glue:text}`shapes-loss-cl-longer-mean:.3f` for CL and from {glue:text}`shapes-loss-mim-usual-mean:.3f` to
# {glue:text}`shapes-loss-mim-longer-mean:.3f` for MIM; on CIFAR-10, from {glue:text}`cifar10-loss-cl-usual-mean:.3f` to
# {glue:text}`cifar10-loss-cl-longer-mean:.3f` for CL and from {glue:text}`cifar10-loss-mim-usual-mean:.3f` to
# {glue:text}`cifar10-loss-mim-longer-mean:.3f` for MIM. The first numbers are means over runs.
#
# In the last third of the blocks CL's attention distance minus MIM's is
# {glue:text}`shapes-distance-gap-usual-min:.1f` to {glue:text}`shapes-distance-gap-usual-max:.1f` px in the runs of usual
# length on `shapes`, and {glue:text}`shapes-distance-gap-longer-mean:.1f` px in the long one; on CIFAR-10 it is
# {glue:text}`cifar10-distance-gap-usual-min:.1f` to {glue:text}`cifar10-distance-gap-usual-max:.1f` px, and
# {glue:text}`cifar10-distance-gap-longer-mean:.1f` px. CL's NMI minus MIM's is {glue:text}`shapes-NMI-gap-usual-min:.3f`
# to {glue:text}`shapes-NMI-gap-usual-max:.3f`, and {glue:text}`shapes-NMI-gap-longer-mean:.3f`, on `shapes`;
# {glue:text}`cifar10-NMI-gap-usual-min:.3f` to {glue:text}`cifar10-NMI-gap-usual-max:.3f`, and
# {glue:text}`cifar10-NMI-gap-longer-mean:.3f`, on CIFAR-10.
#
# A linear probe of the last layer goes from {glue:text}`shapes-linear-cl-usual-mean:.2f` to
# {glue:text}`shapes-linear-cl-longer-mean:.2f` for CL and from {glue:text}`shapes-linear-mim-usual-mean:.2f` to
# {glue:text}`shapes-linear-mim-longer-mean:.2f` for MIM on `shapes`, from {glue:text}`cifar10-linear-cl-usual-mean:.2f`
# to {glue:text}`cifar10-linear-cl-longer-mean:.2f` for CL and from {glue:text}`cifar10-linear-mim-usual-mean:.2f` to
# {glue:text}`cifar10-linear-mim-longer-mean:.2f` for MIM on CIFAR-10; fine-tuning goes from
# {glue:text}`shapes-tuned-cl-usual-mean:.2f` to {glue:text}`shapes-tuned-cl-longer-mean:.2f` for CL and from
# {glue:text}`shapes-tuned-mim-usual-mean:.2f` to {glue:text}`shapes-tuned-mim-longer-mean:.2f` for MIM, and from
# {glue:text}`cifar10-tuned-cl-usual-mean:.2f` to {glue:text}`cifar10-tuned-cl-longer-mean:.2f` for CL and from
# {glue:text}`cifar10-tuned-mim-usual-mean:.2f` to {glue:text}`cifar10-tuned-mim-longer-mean:.2f` for MIM. The long
# training is one run of each: a change that is no larger than the difference between the shorter runs says nothing
# about length.

# %% [markdown]
# ## What would refute it
#
# A masked encoder that is ahead of a contrastive one in a linear probe of the last layer, or a contrastive one that gains
# as much from fine-tuning, or that names patches as well; each by more than the intervals.
#
# What the [scorecard](../index.py) says:

# %%
from nbhelpers import scorecard

scorecard.rows("components/behaviour", STUDIES, MODELS)

# %% [markdown]
# ## Try it yourself
#
# 1. Fine-tune a model of yours, as the table is too slow for a page: give `nbhelpers.load("...")` to
#    `fine_tuning_by_share` of `nbhelpers.probes`.
# 2. Is the order of the encoders the same after 50 steps and after 1,000? Pass `FineTuning(steps=...)`.
# 3. Start with new blocks: `fine_tune(..., last=2)`. The chapter [Layers](layers.py) says what that costs.
