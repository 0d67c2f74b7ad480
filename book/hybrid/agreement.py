# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Do the losses agree?
#
# **Claim.** In an encoder trained on both losses at once, the two gradients point in opposing directions, more so the
# deeper the block {cite:p}`jiang2023layer`.
#
# Two people steer one boat. If one pulls left whenever the other pulls right, two are no better than one. The paper
# nevertheless adds the two losses and finds the sum better than either. {cite:t}`jiang2023layer` measured the gradients
# of the two terms, report the conflict above, and train the lower blocks with MIM and the upper ones with CL instead.
# This page goes beyond the paper and asks the same of the book's own hybrid.
#
# With $\theta_\ell$ all parameters of block $\ell$, the agreement of the two losses on a batch is the cosine
#
# $$
# \begin{gathered}
# c_\ell = \cos(g_\ell, h_\ell), \\[0.6em]
# g_\ell = \nabla_{\theta_\ell} L_{\mathrm{MIM}}, \quad h_\ell = \nabla_{\theta_\ell} L_{\mathrm{CL}} .
# \end{gathered}
# $$
#
# Below 0, a small step down the gradient of one loss raises the other; at 0, neither affects the other. The weight
# $\lambda$ of [the hybrid](hybrid.py) does not enter $c_\ell$, but it does change where training goes.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # encoders to compare with CL and MIM; None: these, hybrids, a random one
N_IMAGES = 1000  # test images that features are compared on, at least 40
SEED = 0
BATCHES = 4  # batches of the short measurement at the end, at least 3

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from nbhelpers import plots, study
from nbhelpers.images import MissingDataError
from nbhelpers.models import manifest
from nbhelpers.pretrain import recipe
from nbhelpers.results import NoTableError, late, table
from nbhelpers.results.summary import last_third
from nbhelpers.results.tables import COMPARED

plots.style()

# %% tags=["hide-input"]
followed = table("shapes", "gradients", ["shapes.random"])
steps = sorted(followed["step"].unique())
slopes = followed[followed["metric"] == "slope"].set_index("step")

# %% [markdown]
# ## Result
#
# A hybrid with $\lambda = 0.5$ was trained on `shapes` and paused at several steps to measure both gradients on held-out
# batches, with the same images, views and masks every time. CL's gradient on one batch is mostly noise, and at the end so
# is MIM's. The verdict therefore rests on `direction`, the cosine between the *expected* gradients, estimated from pairs
# of different batches; the 95 % intervals are over batches.


# %% tags=["hide-input"]
def directions(followed):
    """Directions with an interval, and whether they are late in depth and training."""
    rows = followed[followed["metric"] == "direction"]
    ends = rows["step"] == rows["step"].max()
    rows = rows.assign(deep=last_third(rows["depth"]), end=ends)
    return rows.dropna(subset=["low", "high"])


def judged(known, blocks, slope):
    """The verdict on a conflict that grows with depth, from directions at one step."""
    deep = known[known["deep"]]
    if len(deep) and (deep["high"] < 0).all() and slope["high"] < 0:
        return "shows"
    against = len(known) == blocks and (deep["low"] > 0).all()
    return "does not show" if against else "is undecided"


# %% tags=["hide-input"]
def after_last_step(followed):
    """The verdict and what it rests on, in words."""
    step, blocks = followed["step"].max(), int(followed["depth"].max())
    rows = followed[followed["step"] == step].set_index("metric")
    known = directions(followed).query("end")
    verdict, noisy = judged(known, blocks, rows.loc["slope"]), blocks - len(known)
    alike = rows.loc["mim_cosine", "value"].median()
    doubt = ", too low to tell which way MIM pulls" if noisy else ""
    return f"""The claim of a conflict that grows with depth **{verdict}** here. After
{step} steps the gradients are too noisy for a direction in {noisy or "none"} of
{blocks} blocks; where there is a direction, its interval lies below 0 in
{(known["high"] < 0).sum() or "none"}. The cosine of MIM with itself, on two batches,
has a median of {alike:.3f} over the blocks{doubt}.""".replace(" -", " −")


# %% tags=["hide-input"]
def before_that(followed):
    """At how many depths and steps before the last the direction differs from 0."""
    known, slopes = directions(followed), followed[followed["metric"] == "slope"]
    known = known[~known["end"]]
    below, above = known[known["high"] < 0], known[known["low"] > 0]
    blocks = below.groupby("step")["depth"].agg(list).items()
    where = {step: " and ".join(f"{depth:.0f}" for depth in d) for step, d in blocks}
    found = "; ".join(f"block {d} at step {step}" for step, d in where.items())
    found = f" ({found})" if len(below) else ""
    return f"""Before that, the direction's interval lies below 0 in
{len(below) or "none"} of {len(known)} cases{found}. In the last third of the blocks
it does so in {below["deep"].sum() or "none"}. It lies above 0, where the losses agree,
in {len(above) or "none"}, of which {above["deep"].sum() or "none"} in the last third.
Among all {len(slopes)} steps, the slope of the cosine over depth has an interval below
0 at {(slopes["high"] < 0).sum() or "none"}."""


# %% tags=["hide-input"]
Markdown(f"{after_last_step(followed)}\n\n{before_that(followed)}")

# %% [markdown]
# ## The quantity
#
# A hybrid before its first step and one batch of held-out images. Each loss is differentiated on its own with respect to
# the parameters $\theta$ of the last block.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.testing import assert_close

from nbhelpers.pretrain import Trainer
from nbhelpers.pretrain.alignment import block_gradients, gradient_alignment

# %%
run = recipe("shapes", "hybrid-0.5")
run = replace(run, images=25_600, batch_size=64, seed=SEED)
train, held_out = study("shapes").images("train"), study("shapes").images("val")
with TemporaryDirectory() as folder:  # nothing is written there
    trainer = Trainer(run, train, held_out, Path(folder), precision=torch.float32)
hybrid = trainer.objective
noise = torch.Generator().manual_seed(SEED)
views = hybrid.views(held_out.batch(range(64)), noise)
gradients = block_gradients(hybrid, views)[1]  # S L P: losses, blocks, parameters

# %%
L_MIM, L_CL = hybrid.terms(*views)
theta = list(hybrid.encoder.blocks[-1].parameters())
parts = (torch.autograd.grad(L, theta) for L in (L_MIM, L_CL))
g, h = (torch.cat([part.flatten() for part in each]) for each in parts)  # P each
c = g @ h / (g.norm() * h.norm())

assert_close(torch.stack([g, h]), gradients[:, -1], atol=1e-4, rtol=1e-3)
lengths = {"|g|": g.norm().item(), "|h|": h.norm().item(), "c": c.item()}
pd.DataFrame(lengths, index=["last block"]).round(3)

# %% [markdown]
# ## One hybrid followed from its first step
#
# Following a training run takes too long for a build of the book, so these are stored numbers. One command measures them
# again:
#
# ```bash
# python -m nbhelpers.results --study shapes --table gradients
# ```


# %% tags=["hide-input"]
def by_step(rows, metric, ax):
    """A line over depth for each step, darker for later steps, with its interval."""
    for i, step in enumerate(steps):
        line = rows[(rows["metric"] == metric) & (rows["step"] == step)]
        colour = plt.get_cmap("crest")(i / max(1, len(steps) - 1))
        look = {"color": colour, "marker": "o", "ms": 3, "label": f"step {step}"}
        ax.plot(line["depth"], line["value"], **look)
        band = {"color": colour, "alpha": 0.2, "lw": 0}
        ax.fill_between(line["depth"], line["low"], line["high"], **band)
        if len(line["depth"]) == 1:  # a band of no width
            ax.vlines(line["depth"], line["low"], line["high"], color=colour, lw=1)
    ax.set(xlabel="depth")


# %% tags=["hide-input"]
def in_panels(rows, titles):
    """A panel per metric, with a line at right angles; returns the shared legend."""
    axes = plots.panels([*titles.values()])
    for ax, metric in zip(axes, titles, strict=True):
        by_step(rows.dropna(subset=["low", "high"]), metric, ax)
        ax.axhline(0, color="#555555", lw=1, ls=(0, (4, 2)), label="right angles")
        ax.set_ylabel("cosine between gradients")
    return plots.legend_below(axes)


# %% mystnb={"image": {"alt": "Cosine between gradients against depth in four panels: between the two losses on one batch and in expectation, and between the gradients of each loss on two batches. One line per training step, darker for later steps; a dashed line at 0."}, "figure": {"caption": "Cosine between gradients against depth, one line per training step, with 95 % intervals over batches: between the two losses on one batch, between their expected gradients (`direction`, left out where it has no interval), and between the gradients of each loss on two batches. Dashed: gradients at right angles."}}
PANELS = {"cosine": "MIM and CL, same batch", "direction": "MIM and CL, expected"}
PANELS |= {"mim_cosine": "MIM, two batches", "cl_cosine": "CL, two batches"}
legend = in_panels(followed, PANELS)

# %% tags=["remove-input"]
plots.download(followed, "gradients")

# %% [markdown]
# The first panel shows $c_\ell$; mind its scale. The last two put it into proportion by comparing a loss with *itself* on
# two batches. A batch's gradient is the expected gradient plus noise, and where the noise is large, two gradients of one
# loss are nearly at right angles. A cosine near 0 between the two losses then says little about their expected gradients;
# the second panel estimates the cosine between those.

# %% tags=["hide-input"]
hybrids = study("shapes").trained("hybrid")
whole = max(manifest()[name]["images_seen"] for name in hybrids)
seen = followed["images"].max()
beginning = ", so this is only how such a run begins" if seen < whole / 2 else ""
Markdown(
    f"The run saw {seen:,} images in batches of {seen // steps[-1]}; the book's "
    f"hybrids of this study saw {whole:,}{beginning}."
)

# %% [markdown]
# ### Does the conflict grow with depth?
#
# A batch with $c_\ell < 0$ counts as a conflict. Unrelated gradients are in conflict on half of the batches, give or take
# a fifth with as few batches as here, so only a share far above one half shows a conflict.

# %% tags=["hide-input"]
wide = followed.pivot_table(index="step", columns=["metric", "depth"], values="value")
ends = 1, int(followed["depth"].max())
columns = {("cosine", f"block {block}"): wide["cosine", block] for block in ends}
numbers = (pd.DataFrame(columns).round(3) + 0.0).map("{:.3f}".format)  # no -0.000
slope = slopes[["value", "low", "high"]].round(3) + 0.0
slope = slope.map("{:+.3f}".format).replace("-", "−", regex=True)
numbers["slope", ""] = slope["value"] + " [" + slope["low"] + ", " + slope["high"] + "]"
for block in ends:
    share = wide["conflict", block].map(lambda part: f"{100 * part:.0f} %")
    numbers["in conflict", f"block {block}"] = share
numbers.rename_axis(index=None, columns=["step", ""])

# %% [markdown]
# ### On photographs

# %% tags=["hide-input"]
photographs = table("cifar10", "gradients", ["cifar10.random"])
same = f"{after_last_step(photographs)} {before_that(photographs)}"
Markdown(f"The same run on CIFAR-10, judged by the same rule. {same}")

# %% mystnb={"image": {"alt": "On CIFAR-10, cosine against depth in two panels: between the expected gradients of the two losses, and between CL's gradients on two batches. One line per training step, darker for later steps; a dashed line at 0."}, "figure": {"caption": "On photographs: cosine between the expected gradients of the two losses, and between the contrastive gradients on two batches. Lines as above."}}
TWO = {metric: PANELS[metric] for metric in ("direction", "cl_cosine")}
legend = in_panels(photographs, TWO)

# %% tags=["remove-input"]
plots.download(photographs, "gradients_on_photographs")

# %% [markdown]
# ## Which loss pulls harder?
#
# Gradient descent steps along $(1 - \lambda)\, g + \lambda\, h$. If one gradient is a hundred times as long, it decides
# that direction alone, whatever the angle. Both pull equally hard at
#
# $$
# \lambda^* = \frac{\lVert g \rVert}{\lVert g \rVert + \lVert h \rVert} .
# $$
#
# The noise of a batch makes its gradient longer than the expected one, and averages out over many steps. With $c$ the
# cosine of a loss with itself on two batches, the expected gradient has a length of about $\sqrt{c} \, \lVert g \rVert$;
# it is left out where the interval of $c$ reaches 0.


# %% tags=["hide-input"]
def length(loss, expected):
    """Length of a loss's gradient, or of its expected gradient, by step and depth."""
    blocks = followed[followed["depth"].notna()].set_index(["step", "depth"])
    norm, c = (
        blocks[blocks["metric"] == f"{loss}_{what}"] for what in ("norm", "cosine")
    )
    return norm["value"] * (c["value"].where(c["low"] > 0) ** 0.5 if expected else 1)


def balance(expected):
    """The weight at which both gradients, or both expected ones, are equally long."""
    g, h = (length(loss, expected) for loss in ("mim", "cl"))
    rows = (g / (g + h)).dropna().rename("value").reset_index()
    return rows.assign(metric="balance", low=rows["value"], high=rows["value"])


# %% mystnb={"image": {"alt": "The weight between 0 and 1 at which both gradients are equally long, on a logarithmic axis, against depth, one line per training step; for single batches in the left panel, for expected gradients in the right one, where it is higher."}, "figure": {"caption": "λ*, the weight at which both gradients are equally long, against depth, on generated images, one line per training step. Left: gradients of single batches. Right: expected gradients, where their lengths can be estimated."}}
pull = {"single batches": balance(False), "expected gradients": balance(True)}
axes = plots.panels([*pull], sharey=True)
for ax, rows in zip(axes, pull.values(), strict=True):
    by_step(rows, "balance", ax)
    ax.set(ylabel="λ*", yscale="log")
    ax.set_yticks(ticks := [0.02, 0.05, 0.1, 0.2, 0.5], ticks)
    ax.minorticks_off()
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download([rows.assign(of=of) for of, rows in pull.items()], "balance")

# %% tags=["hide-input"]
said = []
for of, rows in pull.items():
    ends = rows[rows["step"] == (last := rows["step"].max())]["value"]
    end = "" if last == steps[-1] else ", the last step at which it can be estimated"
    said.append(f"""- For {of}, λ* lies between {ends.min():.2f} and {ends.max():.2f}
after {last} steps{end}.""")
text = """At a λ above the λ* of the expected gradients, CL's is the longer part of their
sum. On single batches it is at a lower λ, but there most of its gradient is noise."""
Markdown("\n".join([*said, "\n" + text]))

# %% [markdown]
# $\lambda$ is not a share of influence: it depends on the units of the two losses, differences of pixel values on one
# side and $2 \tau$ times a cross-entropy on the other. For that reason a comparison of weights between papers says
# little. Nor is $\lambda^*$ a share of the step that is taken: the book's optimiser, Muon, makes all singular values of
# the sum's running mean equal, so a short gradient can still move a matrix in directions that the long one leaves alone.
#
# ## Do the features of the encoders agree?
#
# Gradients say where training would go; features say where it has arrived. Linear centred kernel alignment (CKA)
# {cite:p}`kornblith2019similarity` compares two sets of features of the same images, up to rotation and scale: 1 for
# identical sets, about 0 for unrelated ones. Below, the mean patch token of each encoder is compared with that of CL, and
# with that of MIM, at the same depth.
#
# The random encoder is the reference: where a trained encoder is no nearer than that, what it shares needs no training;
# the average colour of an image is an example. If $\lambda^*$ tells which loss leads, a hybrid with a $\lambda$ above it
# should be nearer to CL, and nearer than an encoder trained without that loss. CL and MIM are wider than most of the
# others and saw more images, as the legend says.

# %% tags=["hide-input"]
models = {
    s: MODELS or [*study(s).trained("cl", "mim", "hybrid"), f"{s}.random"]
    for s in STUDIES
}
draw = {"n_images": None if N_IMAGES == COMPARED else N_IMAGES, "seed": SEED}
compared, missing = {}, {}
for s in STUDIES:
    try:
        frame = table(s, "cka", models[s], **draw)
    except (MissingDataError, NoTableError) as reason:
        missing[s] = str(reason)
        continue
    frame = frame[frame["depth"] == frame["other_depth"]]
    compared[s] = frame[frame["model"] != frame["other"]]

# %% mystnb={"image": {"alt": "Linear CKA, from 0 to 1, against depth: with the CL encoder at the same depth in the first row of panels, with the MIM encoder in the second. One line per model, one column per study."}, "figure": {"caption": "Linear CKA of mean patch tokens with the CL encoder (above) and with the MIM encoder (below) at the same depth, with 95 % intervals over parts of the images. The legend names a width or number of images that differs from CL's and MIM's."}}
pairs = [(parent, s) for parent in ("CL", "MIM") for s in compared]
titles = [f"with {parent}: {plots.title(compared[s])}" for parent, s in pairs]
axes = plots.panels([*titles, *missing], sharey=True, missing=missing)
for ax, (parent, s) in zip(axes, pairs, strict=False):
    rows = compared[s][compared[s]["other"] == f"{s}.{parent.lower()}"]
    plots.by_depth(rows, "cka", ax)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(compared.values(), "cka")

# %% tags=["hide-input"]
said = []
for s, frame in compared.items():
    mixed = frame[frame["objective"] == "hybrid"]
    if mixed.empty:
        continue
    sides = {parent: f"{s}.{parent.lower()}" for parent in ("CL", "MIM")}
    near = {p: late(mixed[mixed["other"] == name], "cka") for p, name in sides.items()}
    nearer = sum(near["CL"][who] - near["MIM"][who] > 0.05 for who in near["CL"])
    hybrids = f"{nearer or 'none'} of {len(near['CL'])} hybrids"
    said.append(f"on {study(s).title} {hybrids} are nearer to CL than to MIM")
late_blocks = f"By a margin of 0.05 in the last third of the blocks, {'; '.join(said)}."
Markdown(late_blocks if said else "None of the encoders is a hybrid.")

# %% tags=["hide-input"]
said = []
for parent, s in pairs:
    rows = compared[s][compared[s]["other"] == f"{s}.{parent.lower()}"]
    near = late(rows, "cka")
    if (pixels := near.pop("random", None)) is None or not near:
        continue
    behind = [who for who, value in near.items() if value <= pixels]
    text = f"- On {study(s).title}, late CKA with {parent}: "
    text += f"random {round(pixels, 2) + 0.0:.2f}, "
    text += f"the nearest trained encoder {max(near.values()):.2f}"
    end = ". No nearer than the random one, whose nearness needs no training: "
    said.append(
        text + (end + "; ".join(behind) if behind else "; all are nearer") + "."
    )
Markdown("\n".join(said) or "There is no random encoder to compare with.")

# %% [markdown]
# ## The same on your machine
#
# The function behind the stored table takes any recipe of a hybrid. Here it measures the cosine before the first step
# again, on a few batches; for more steps, pass for example `steps=range(0, 401, 50)`.

# %%
now = gradient_alignment(run, train, held_out, steps=[0], batches=BATCHES)
now = now[now["metric"] == "cosine"].astype({"depth": int}).set_index("depth")
now[["value", "low", "high"]].round(3)

# %% [markdown]
# ## What would refute it
#
# A direction above 0 in the last third of the blocks after the last step, provided that each loss then agrees with itself
# on two batches. The same at an earlier step excludes a conflict at that time, not a later one. This page measures one
# small encoder of each study, at one weight and along a short run, so it cannot exclude a conflict elsewhere.
#
# ## Takeaways
#
# - Whether a conflict grows with depth is undecided, on generated images as on photographs. Early in training the first
#   blocks show a weak conflict on generated images. On photographs two early cases just do, and later most blocks agree.
#   No late block shows a conflict. At the end each loss hardly agrees with itself.
# - In their late features most hybrids are nearer to CL than to MIM. On generated images this need not come from CL's
#   loss, since MAE and the supervised encoder are nearer to CL, too. On photographs the wide hybrid is far nearer to CL
#   than any encoder trained without that loss; it is a single run. Much of the nearness to MIM there needs no training:
#   the untrained encoder is nearer to MIM than any trained one.
# - Compare the cosine of two losses with that of each loss with itself. Where a batch's gradient is mostly noise, a right
#   angle between two losses says little about where they pull on average.
# - The angle between two gradients says nothing about their lengths. The weight λ at which both pull equally hard depends
#   on the units of the losses, so weights from different papers cannot be compared.
# - Gradients tell where training would go, features where it has arrived. Only the features can be examined in a finished
#   model.
#
# ## Exercises
#
# 1. **Other models.** Which parent is a supervised encoder nearer to? Put `["shapes.mae", "shapes.supervised.n1000000"]`
#    into `MODELS`.
# 2. **Free of noise.** Do the first panel, a cosine on single batches, and the second, between expected gradients, agree?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
both = followed[followed["metric"].isin(["cosine", "direction"])]
both = both.astype({"depth": int}).round(2)
both = both.pivot_table("value", ["metric", "depth"], "step")
both.map("{:.2f}".format, na_action="ignore").fillna("undefined")

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
known = directions(followed)
sure = known[(known["low"] > 0) | (known["high"] < 0)].merge(
    followed[followed["metric"] == "cosine"], on=["step", "depth"]
)
same = (sure["value_x"] * sure["value_y"] > 0).sum()
size = (sure["value_y"] / sure["value_x"]).abs().median()
answer = f"""The direction's interval excludes 0 in {len(sure)} of {len(known)} cases.
In {same} of these the raw cosine has the same sign, and its median size is {size:.0%}
of the direction's: noise draws it towards 0. Where the direction has no interval, there
is no answer."""
Markdown(answer if len(sure) else "No direction has an interval that excludes 0.")

# %% [markdown]
# 3. **Another batch size.** Does the cosine of CL with itself rise with the size of the batch? Measure it before the
#    first step.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Not visibly: before the first step both are 0 up to noise, and an estimate from few
# batches can be negative.
sizes = {}
for size in (16, 64):
    some = replace(run, batch_size=size)
    frame = gradient_alignment(some, train, held_out, steps=[0], batches=BATCHES)
    frame = frame[frame["metric"] == "cl_cosine"].astype({"depth": int})
    sizes[size] = frame.set_index("depth")["value"]
pd.DataFrame(sizes).rename_axis(columns="batch size").T.round(3)

# %% [markdown]
# 4. **Class tokens.** Compare class tokens instead of mean patch tokens:
#    `nbhelpers.probes.cka_by_depth(..., pool="class")`. CL is trained through that token alone.
