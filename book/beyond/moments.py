# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # When do the findings appear?
#
# **Claim.** Masked image modelling has its traits early; those of contrastive learning are the work of a long training. First
# the tokens of a contrastive encoder become alike and its attention nearly uniform, and only later do its heads and depths
# part.
#
# Every other chapter looks at encoders at the *end* of their training. So a finding about "contrastive learning" is one
# about contrastive learning after so many images, and who trains a tenth as long may find something else. A photograph in
# the developer does not show all of its parts at once either.
#
# Here one training of each kind was stopped at moments $n_k = n_0 (n_K / n_0)^{k/K}$, evenly spaced on a logarithmic scale of
# images seen, and measured as the other chapters measure. The quantity to watch first is how alike the $N$ tokens $z_i$ of
# an image are after the last block,
#
# $$
# c = \frac{1}{N (N - 1)} \sum_{i \ne j} \frac{z_i^\top z_j}{\lVert z_i \rVert \, \lVert z_j \rVert} ,
# $$
#
# which is 1 when they have collapsed into one.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
OBJECTIVE = (
    "cl"  # what the small encoder of this page learns from: cl, mim, latent, dino
)
N_IMAGES = 64  # test images that it is measured on
SEED = 0

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.intervals import Interval, difference
from nbhelpers.metrics import patch_distances
from nbhelpers.models import manifest
from nbhelpers.results import TABLES, StaleTableError, table
from nbhelpers.scorecard.evidence import READINGS

plots.style()


# %% tags=["hide-input"]
def rows_of(name, kind, models):
    """Rows of those models that a table has, with how many images they had been trained on."""
    frames = [pd.DataFrame(columns="model objective seen metric label head".split())]
    for model in models:
        try:
            frame = table(name, kind, [model])
        except (MissingDataError, StaleTableError):
            continue
        seen = frame.get("seen", manifest()[model]["images_seen"])
        frames.append(frame.assign(seen=seen))
    return pd.concat(frames, ignore_index=True)


followed, ends = {}, {}
for name in STUDIES:
    followed[name] = rows_of(
        name, "along_training", TABLES["along_training"].models(study(name))
    )
    models = study(name).trained("cl", "mim", vary=["width", "images"])
    wide = [each for each in models if manifest()[each]["architecture"]["width"] >= 64]
    ends[name] = pd.concat(
        [rows_of(name, kind, wide) for kind in ("profile", "probes")]
    )


# %% tags=["hide-input"]
def read(frame, metric, reading):
    """A row per encoder and moment: what the scorecard reads off its curve over depth."""
    rows = frame[(frame["metric"] == metric) & ~(frame["head"] >= 0)]
    rows = rows[~rows["label"].isin(["texture"])]
    who = ["model", "objective", "seen"]
    found = [(key, READINGS[reading](part)) for key, part in rows.groupby(who)]
    lines = [(*key, metric, i.value, i.low, i.high) for key, i in found]
    return pd.DataFrame(lines, columns=[*who, "metric", "value", "low", "high"])


# %% [markdown]
# ## Result

# %% tags=["hide-input"]
said = []
for name, frame in followed.items():
    cl = read(frame[frame["objective"] == "CL"], "token_cosine", "last")
    long = ends[name][ends[name]["objective"] == "CL"]
    if len(cl) and len(long):
        end = read(long, "token_cosine", "last").sort_values("seen").iloc[-1]
        top = cl.loc[cl["value"].idxmax()]
        falls = difference(
            *(Interval(*each[["value", "low", "high"]]) for each in (top, end))
        )
        said.append(
            f"On `{name}`, that CL's tokens first become alike and then part "
            f"**{scorecard.verdict(falls)}**: untrained, their cosine after the last block "
            f"is {cl['value'].iloc[0]:.2f}; it is {top['value']:.2f} after "
            f"{top['seen']:,.0f} images, and {end['value']:.2f} after {end['seen']:,.0f}, "
            "in a wider encoder."
        )
Markdown(" ".join(said) or "No training was followed on these studies.")

# %% [markdown]
# An interval is over images, of one training each. The last points of a figure are other encoders than its line: those that
# the rest of the book draws.
#
# ## The quantity
#
# A narrow encoder, trained here and now on two thousand images and looked at four times. (`Trainer.run` takes the steps and
# the function too, `trainer.run(at=..., call=measure)`, and can be interrupted: better for a training of hours.)

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import mean_pairwise_cosine
from nbhelpers.pretrain import Trainer, moments, recipe

train, val, test = map(study("shapes").images, ("train", "val", "test"))
run = recipe("shapes", OBJECTIVE).of_width(32)
run = replace(run, images=2048, batch_size=64, seed=SEED)
c_bar = {}


# %%
def measure(encoder, step):
    streams = []
    with capture(encoder, on_stream=streams.append, places=("block",)):
        encoder.forward(encoder.batch(test, torch.arange(N_IMAGES)))
    z = torch.nn.functional.normalize(streams[-1].patches, dim=-1)  # B N D
    N = z.shape[1]
    c = ((z @ z.mT).sum((1, 2)) - N) / (N * (N - 1))  # B
    assert_close(c, mean_pairwise_cosine(streams[-1].patches), atol=1e-4, rtol=1e-4)
    c_bar[step * run.batch_size] = c.mean().item()


# %%
with TemporaryDirectory() as folder:  # nothing is written there
    trainer = Trainer(run, train, val, Path(folder))
for step in [0, *moments(run, first=256, count=3)]:
    list(trainer.steps(until=step))
    measure(trainer.encoder(), step)
pd.DataFrame(c_bar, index=[f"{OBJECTIVE}, images seen"]).round(3)

# %% [markdown]
# ## Tokens become alike, and part


# %% tags=["hide-input"]
def dots(ax, rows):
    """The ends of whole trainings: hollow where the encoder is as narrow as the one that was followed."""
    for (model, objective, seen), line in rows.groupby(["model", "objective", "seen"]):
        look = plots.line_style(model, objective) | {"linestyle": "none"}
        ax.plot(seen, line["value"], zorder=3, **look)


def draw(metric, reading, uniform=None):
    """A panel per study over images seen: lines along one training each, dots for the ends of others."""
    titles = [plots.title(ends[name].tail(1)) for name in STUDIES]
    axes = plots.panels(titles, sharey=True, sharex=True)
    for ax, name in zip(axes, STUDIES, strict=True):
        lines = read(followed[name], metric, reading)
        if len(lines):
            plots.by_depth(lines[lines["seen"] > 0], metric, ax, column="seen")
            untrained = lines.loc[lines["seen"] == 0, "value"].mean()
            ax.axhline(untrained, color="#555555", lw=1, ls=":", label="untrained")
        dots(ax, read(ends[name], metric, reading))
        if uniform:
            ax.axhline(
                uniform, color="#555555", lw=1, ls="--", label="uniform attention"
            )
        ax.set(xscale="log", xlabel="images seen", ylabel=plots.metric_label(metric))
    return axes


# %% mystnb={"image": {"alt": "Mean cosine between the tokens of an image after the last block against the number of images seen in training, for CL and MIM, one panel per study; untrained dotted."}, "figure": {"caption": "Cosine between tokens after the last block against images seen. Lines: one training each, with 95 % intervals over images. Dots: the ends of other trainings, hollow at the width of the lines (64), filled at width 128."}}
axes = draw("token_cosine", "last")
legend = plots.legend_below(axes)

# %% [markdown]
# An untrained encoder has alike tokens already, since all of them pass through the same random maps. MIM has to tell patches
# apart to paint them, and does so from the start. CL is asked about the image as a whole, and a mean over equal tokens is a
# cheap answer; it gives that answer first. What the tokens of an image do *not* share is of use only once the shared part is
# as good as it gets.
#
# ## Attention differs from query to query

# %% mystnb={"image": {"alt": "Normalised mutual information of queries and keys, mean over the last third of the blocks, against the number of images seen in training, for CL and MIM, one panel per study."}, "figure": {"caption": "Normalised mutual information, mean over the last third of the blocks, against images seen; lines and dots as above. Uniform attention has 0."}}
axes = draw("nmi", "late")
legend = plots.legend_below(axes)

# %% mystnb={"image": {"alt": "Attention distance in pixels, mean over the last third of the blocks, against the number of images seen in training, for CL and MIM, one panel per study; uniform attention dashed."}, "figure": {"caption": "Attention distance, mean over the last third of the blocks, against images seen; lines and dots as above. Dashed: uniform attention."}}
(encoder,) = study(STUDIES[0]).encoders([f"{STUDIES[0]}.cl"])
uniform = patch_distances(encoder.grid, encoder.patch_size).mean().item()
axes = draw("attention_distance", "late", uniform)
legend = plots.legend_below(axes)

# %% [markdown]
# Attention that is nearly uniform is also far-reaching. A young contrastive encoder therefore has the *attention distance* of
# the paper's finding without what it stands for: it looks everywhere since it has not learnt where to look. NMI and
# [entropy](../attention/collapse.py) tell the two cases apart, distance alone does not.
#
# ## And meanwhile the features are read ever better

# %% mystnb={"image": {"alt": "Accuracy of a linear probe of the last block against the number of images seen in training, for CL and MIM, one panel per study."}, "figure": {"caption": "Linear probe of the last block (shape on generated images, class on photographs) against images seen; lines and dots as above. Dotted: the untrained encoder."}}
axes = draw("linear", "last")
legend = plots.legend_below(axes)

# %% mystnb={"image": {"alt": "Accuracy of nearest neighbours in the last block against the number of images seen in training, for CL and MIM, one panel per study."}, "figure": {"caption": "Nearest neighbours in the last block, as above."}}
axes = draw("knn", "last")
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(pd.concat([*followed.values(), *ends.values()]), "moments")

# %% [markdown]
# ## Which claims turn?
#
# The rule of the [scorecard](../index.py), applied at every moment as if training had ended there: ✓ shows, ✗ does not, ?
# undecided. The last column is the verdict on the encoders that the book ships, which are longer trained, mostly twice as
# wide, and in part of several seeds.

# %% tags=["hide-input"]
grids = {}
for name, frame in followed.items():
    if frame["objective"].nunique() == 2:
        together = frame.groupby("objective")["seen"].max().min()
        card = scorecard.along(name, frame[frame["seen"] <= together])
        at_end = scorecard.scorecard([name]).assign(seen="end")
        card = pd.concat([card, at_end[at_end["number"].isin(card["number"])]])
        card["sign"] = card["verdict"].map(lambda verdict: scorecard.MARKS[verdict][0])
        keys = ["number", "claim"]
        grid = card.pivot_table("sign", keys, "seen", "first", sort=False)
        grid.columns = [f"{n / 1000:.0f}k" if n != "end" else n for n in grid.columns]
        grids[name] = grid
none = Markdown("No two trainings were followed.")
pd.concat(grids, names=["study"]) if grids else none
