# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # When do the findings appear?
#
# **Claim.** What is found about attention and tokens depends on how long an encoder was trained. The tokens of a
# contrastive encoder first become alike while its attention is nearly uniform; only much later do its tokens part again.
#
# Nearly every other chapter looks at encoders at the *end* of their training. So a finding about "contrastive learning"
# holds for contrastive learning after that many images, and an encoder that was trained a tenth as long may show
# something else.
#
# Here one training of each kind was stopped at moments $n_k = n_0 (n_K / n_0)^{k/K}$, evenly spaced on a logarithmic scale
# of images seen, and measured as in the other chapters. The quantity to watch first is how alike the $N$ tokens $z_i$ of
# an image are after the last block,
#
# $$
# c = \frac{1}{N (N - 1)} \sum_{i \ne j} \frac{z_i^\top z_j}{\lVert z_i \rVert \, \lVert z_j \rVert} ,
# $$
#
# which is 1 when they have collapsed into one.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
OBJECTIVE = "cl"  # of the small encoder of this page: cl, mim, latent, dino
N_IMAGES = 64  # test images that it is measured on
SEED = 0

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from IPython.display import Markdown, display
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.intervals import Interval, difference
from nbhelpers.metrics import patch_distances
from nbhelpers.models import manifest
from nbhelpers.results import TABLES, rows_of
from nbhelpers.results.summary import whole_layers

plots.style()
ABOUT = manifest()


# %% tags=["hide-input"]
COLUMNS = "model objective seen metric label head".split()


def with_moment(rows):
    """The rows, and how many images their encoders had been trained on."""
    lacking = [each for each in COLUMNS if each not in rows]
    rows = rows.reindex(columns=[*rows, *lacking])
    whole = rows["model"].map({name: row["images_seen"] for name, row in ABOUT.items()})
    return rows.assign(seen=rows["seen"].fillna(whole))


# %% tags=["hide-input"]
followed, ends = {}, {}
for name in STUDIES:
    moments_of = TABLES["along_training"].models(study(name))
    followed[name] = with_moment(rows_of(name, "along_training", moments_of))
    models = study(name).trained("cl", "mim", vary=["width", "images"])
    wide = [each for each in models if ABOUT[each]["architecture"]["width"] >= 64]
    tables = [rows_of(name, kind, wide) for kind in ("profile", "probes", "tokens")]
    own = rows_of(name, "metrics", study(name).trained("cl", "mim"))
    tables.append(own[own["metric"] == "class_patch_cosine"])
    ends[name] = with_moment(pd.concat(tables, ignore_index=True))


# %% tags=["hide-input"]
def read(frame, metric, reading, hidden="texture"):
    """A row per encoder and moment, read off its curve over depth, of one label."""
    return scorecard.read_by(frame[frame["label"] != hidden], "seen", metric, reading)


# %% [markdown]
# ## Result

# %% tags=["hide-input"]
said, lines = [], {}
for name, frame in followed.items():
    cosines, long = (read(each, "token_cosine", "last") for each in (frame, ends[name]))
    for kind, rows in cosines.groupby("objective"):
        top, now = rows.loc[rows["value"].idxmax()], rows.loc[rows["seen"].idxmax()]
        end = long[long["objective"] == kind].sort_values("seen").iloc[-1]
        told = pd.DataFrame({"highest": top, "end of the line": now, "shipped": end})
        line = told.T.apply(lambda at: f"{at.value:.2f} ({at.seen / 1e6:.2f})", axis=1)
        begin = {"untrained": f"{rows['value'].iloc[0]:.2f}"}
        lines[study(name).title, kind] = begin | line.to_dict()
        both = (Interval(*at[["value", "low", "high"]]) for at in (top, now))
        verdict = scorecard.verdict(difference(*both, same_encoder=True))
        if kind == "CL":
            said.append(f"""- On {study(name).title}, CL's tokens are most alike after
{top["seen"]:,.0f} images and less so at the end: this **{verdict}**.""")

# %% tags=["hide-input"]
for name, frame in followed.items():
    nmi = read(frame, "nmi", "late")
    nmi = nmi.pivot(index="seen", columns="objective", values="value")
    if {"CL", "MIM"} <= {*nmi}:
        tenth = nmi[nmi.index <= nmi.index.max() / 10].iloc[-1]
        values = (f"{at['MIM']:.3f}" for at in (tenth, nmi.iloc[-1]))
        text = "late NMI of MIM is {} after a tenth of the images and {} at the end"
        text = text.format(*values) + f"; CL's is then {nmi['CL'].iloc[-1]:.3f}."
        said.append(f"- On {study(name).title}, {text}")
    elif nmi.empty:
        said.append(f"On {study(name).title} no training was followed: dots alone.")
Markdown("\n".join(said))

# %% tags=["hide-input"]
pd.DataFrame(lines).T

# %% [markdown]
# The table holds the cosine between the tokens of an image after the last block; the number of images seen, in millions,
# is in brackets. In the figures, a line is one training of width 128 with intervals over images. Dots, and the last
# column, are other encoders, which the rest of the book draws. A dot may lie off the line: a shorter training had already
# lowered its learning rate by then, the longest trainings had larger batches and another trainer, and half-filled dots
# are of width 64, but for those at the end of a line, which are further seeds of it.
#
# ## The quantity
#
# A narrow encoder, trained here and now on two thousand images and looked at four times. (`trainer.run(until=step)` saves
# its state and can be interrupted: better for a training of hours.)

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
    """The ends of whole trainings, half filled but for the longest."""
    for (model, objective, seen), line in rows.groupby(["model", "objective", "seen"]):
        look = plots.line_style(model, objective) | {"linestyle": "none"}
        ax.plot(seen, line["value"], zorder=3, **look)


def level(ax, value, name, dashes):
    ax.axhline(value, color="#555555", lw=1, ls=dashes, label=name)


# %% tags=["hide-input"]
def draw_panel(ax, name, metric, reading, hidden="texture"):
    """Lines along one training each, dots for the ends of others."""
    lines = read(followed[name], metric, reading, hidden)
    if len(lines):
        plots.by_depth(lines[lines["seen"] > 0], metric, ax, column="seen")
        untrained = lines.loc[lines["seen"] == 0, "value"].mean()
        level(ax, untrained, "untrained", ":")
    dots(ax, read(ends[name], metric, reading, hidden))
    ax.set(xscale="log", xlabel="images seen", ylabel=plots.metric_label(metric))


# %% tags=["hide-input"]
def draw(metric, reading, uniform=None):
    """A panel per study."""
    drawn = (pd.concat([followed[name], ends[name]]) for name in STUDIES)
    titles = [plots.title(rows.dropna(subset=["source"])) for rows in drawn]
    axes = plots.panels(titles, sharey=True, sharex=True)
    for ax, name in zip(axes, STUDIES, strict=True):
        draw_panel(ax, name, metric, reading)
        if uniform:
            level(ax, uniform, "uniform attention", "--")
    return axes


# %% tags=["hide-input"]
def below(axes):
    """The legend, whose title is of the lines alone."""
    legend = plots.legend_below(axes)
    title = legend.get_title().get_text()
    legend.set_title(title and f"lines: {title}")
    return legend


# %% mystnb={"image": {"alt": "Mean cosine between the tokens of an image after the last block against the number of images seen in training, for CL and MIM, one panel per study; untrained dotted."}, "figure": {"caption": "Cosine between tokens after the last block against images seen. Lines: one training each, with 95 % intervals over images. Dots: the ends of other trainings, filled for the longest. Half-filled ones are of width 64 or, at the end of a line, further seeds of it."}}
axes = draw("token_cosine", "last")
legend = below(axes)

# %% [markdown]
# The tokens of an untrained encoder are already alike; they are so at its embedding, before any block. CL makes them
# still more alike for a time, and so does MIM on generated images. Perhaps the mean of all patches is the first thing
# worth knowing, whether about a hidden patch or about an image. A masked encoder must then learn to tell patches apart,
# or it would predict the same for every hidden one: its tokens part much sooner, on photographs from the first moment
# on, and later grow somewhat alike again. A contrastive encoder is asked about the image as a whole, and may stay at
# the mean for as long as that helps.
#
# ## Does attention differ from query to query?

# %% mystnb={"image": {"alt": "Normalised mutual information of queries and keys, mean over the last third of the blocks, against the number of images seen in training, for CL and MIM, one panel per study."}, "figure": {"caption": "Normalised mutual information, mean over the last third of the blocks, against images seen; lines and dots as above. Uniform attention has 0."}}
axes = draw("nmi", "late")
legend = below(axes)

# %% mystnb={"image": {"alt": "Attention distance in pixels, mean over the last third of the blocks, against the number of images seen in training, for CL and MIM, one panel per study; uniform attention dashed."}, "figure": {"caption": "Attention distance, mean over the last third of the blocks, against images seen; lines and dots as above. Dashed: uniform attention."}}
(encoder,) = study(STUDIES[0]).encoders([f"{STUDIES[0]}.cl"])
uniform = patch_distances(encoder.grid, encoder.patch_size).mean().item()
axes = draw("attention_distance", "late", uniform)
legend = below(axes)

# %% [markdown]
# In both studies, CL's attention begins to depend on the query only after its tokens have begun to part.
#
# Attention that is nearly uniform also reaches far. Early in training, an encoder of either kind therefore has the
# *attention distance* that the paper finds in CL, but for another reason: it looks everywhere because it has not learnt
# where to look. The [entropy](../attention/collapse.py) tells the two cases apart, which neither distance nor NMI does:

# %% mystnb={"image": {"alt": "Attention entropy as a share of its maximum, mean over the last third of the blocks, against the number of images seen in training, for CL and MIM, one panel per study; uniform attention dashed at 1."}, "figure": {"caption": "Attention entropy as a share of its maximum, mean over the last third of the blocks, against images seen; lines and dots as above. Dashed: uniform attention."}}
axes = draw("attention_entropy", "late", 1.0)
legend = below(axes)

# %% [markdown]
# After the first tens of thousands of images CL's entropy is clearly below 1 while its NMI is still near 0: its attention
# is no longer uniform but collapsed, the same selection for every query.
#
# ## Features come before attention
#
# Does an encoder learn anything while its attention is the same for every query and its tokens are alike? Probes of its
# features show that it does.

# %% mystnb={"image": {"alt": "Accuracy of a linear probe of the last block against the number of images seen in training, for CL and MIM, one panel per study."}, "figure": {"caption": "Linear probe of the last block (shape on generated images, class on photographs) against images seen; lines and dots as above. Dotted: the untrained encoder."}}
axes = draw("linear", "last")
legend = below(axes)

# %% mystnb={"image": {"alt": "Accuracy of nearest neighbours in the last block against the number of images seen in training, for CL and MIM, one panel per study."}, "figure": {"caption": "Nearest neighbours in the last block, as above."}}
axes = draw("knn", "last")
legend = below(axes)

# %% [markdown]
# While CL's tokens are most alike, what they share becomes easier to read, with small setbacks. Attention that is the same
# for every query is an average, and averages with good patch-wise layers between them go a long way. So an encoder with
# collapsed attention can still learn features that a probe reads.
#
# ## Is dense prediction damaged late?
#
# In very long trainings with a self-distilling loss, classification has been reported to improve further while the
# information in single patches degrades; meanwhile the class token and the patches $z_i$ grow alike
# {cite:p}`simeoni2025dinov3`,
#
# $$
# c_\mathrm{class} = \frac{1}{N} \sum_{i} \frac{z_\mathrm{class}^\top z_i}{\lVert z_\mathrm{class} \rVert \, \lVert z_i
# \rVert} .
# $$
#
# Both can be examined here: on generated images, the object's mask and the texture of each patch are known, so a linear
# probe can try to read them from single tokens.

# %% tags=["hide-input"]
scorecard.result(["20a", "20b"], STUDIES)

# %% mystnb={"image": {"alt": "Cosine between the class token and the patch tokens after the last block, against the number of images seen in training, for CL and MIM, one panel per study; untrained dotted."}, "figure": {"caption": "Cosine between class token and patch tokens after the last block against images seen; lines and dots as above. Dotted: the untrained encoder."}}
axes = draw("class_patch_cosine", "last")
legend = below(axes)

# %% mystnb={"image": {"alt": "Mean intersection over union of a linear probe of single tokens of the last block, against the number of images seen in training, for CL and MIM on generated images: in one panel of the object's mask, in the other of the texture of patches; untrained dotted."}, "figure": {"caption": "Mean intersection over union of a linear probe of single tokens of the last block against images seen; lines and dots as above. Left: the object's mask. Right: the texture of each patch. Dotted: the untrained encoder."}}
masked = [each for each in STUDIES if "miou" in set(ends[each]["metric"])] or STUDIES
axes = plots.panels(["mask of the object", "texture of the patch"], sharey=True)
for ax, hidden in zip(axes, ("texture", "mask"), strict=True):
    draw_panel(ax, masked[0], "miou", "last", hidden)
legend = below(axes)

# %% tags=["remove-input"]
drawn = ["token_cosine", "nmi", "attention_distance", "attention_entropy"]
drawn += ["linear", "knn", "class_patch_cosine", "miou"]
rows = whole_layers(pd.concat([*followed.values(), *ends.values()]))
plots.download(rows[rows["metric"].isin(drawn)], "moments")

# %% [markdown]
# No such damage shows here. CL's class token and patches are most alike early, within the first fifth of its training,
# and part from then on. On generated images its single tokens meanwhile tell more and more about the texture, and no less
# about the object. The longest-trained CL there, which is another run, lies above the end of the line, so the cosine of
# class token and patches may rise again within a run as well. Neither that, nor what happens after a hundred times as
# many images, can be told from these figures.
#
# ## Which claims turn?
#
# The rule of the [scorecard](../index.py), applied at every moment as if training had ended there: ✓ shows, ✗ does not
# show, ? undecided. Each column but the last is of one training per objective. The last column is the verdict on the
# encoders that the book ships, which were trained for longer.

# %% tags=["hide-input"]
grids = {}
for name, frame in followed.items():
    if frame["objective"].nunique() < 2:
        continue
    reached = frame.groupby("objective")["seen"].max().min()
    card = scorecard.along(name, frame[frame["seen"] <= reached])
    chosen = [
        claim for claim in scorecard.CLAIMS if claim.number in set(card["number"])
    ]
    card = pd.concat([card, scorecard.scorecard([name], chosen).assign(seen="shipped")])
    card["sign"] = card["verdict"].map(lambda verdict: scorecard.MARKS[verdict][0])
    grids[name] = card.pivot_table("sign", "number", "seen", "first", sort=False)
    words = {claim.number: claim.claim for claim in chosen}
    grids[name]["claim"] = grids[name].index.map(words)

# %% tags=["hide-input"]
said = []
for name, grid in grids.items():
    grid.columns = [n if isinstance(n, str) else f"{n / 1000:.0f}k" for n in grid]
    trained = grid.drop(columns=["0k", "claim"])
    turned = trained[trained.nunique(axis=1) > 1].index
    kept = grid.index.difference(turned, sort=False)
    said.append(
        f"On {study(name).title}, {len(turned)} of {len(grid)} claims, without the "
        "untrained encoders (0k) and with moments that are not shown, change their "
        f"verdict along the training or in the last column; {', '.join(kept) or 'none'} do not."
    )
Markdown(" ".join(said) or "No two trainings were followed.")

# %% tags=["hide-input"]
for name, grid in grids.items():
    claims = [f"{number}. {claim}" for number, claim in grid["claim"].items()]
    signs = grid.drop(columns="claim").set_axis(claims)
    moments_shown = [*signs][:2] + [*signs][3:-2:2] + [*signs][-2:]
    shown = signs[moments_shown].rename_axis(columns=study(name).title).fillna("")
    display(shown.style.map(scorecard.tint).set_table_attributes('class="dataframe"'))

# %% [markdown]
# Columns are numbers of images seen, about every second moment. Where a row changes its sign, two papers with trainings of
# different length would contradict each other and both be right. Some traits that the paper names appear, and are gone in
# the encoders that were trained longest. These, the last column, also had larger batches, so a change between the last
# two columns may not be due to length. A "✓" at the untrained encoder (0k) is no effect of training.
#
# ## What would refute it
#
# A contrastive training whose tokens are never more alike than those of the untrained encoder, or which do not part again.
# These are single trainings: the order of events is the finding, not the number of images at which they happen, which
# depends on width, batch, views and images.

# %% tags=["remove-input"]
scorecard.rows("beyond/moments", STUDIES)

# %% [markdown]
# ```bash
# python -m nbhelpers.results --study shapes --table along_training
# ```
#
# repeats the trainings on generated images, which takes hours on a CPU; interrupted, it goes on where it was.
#
# ## Takeaways
#
# - What shows: in both studies, CL's tokens become nearly equal for a time and part later; on generated images they part
#   a little before that, too. What does not show: that its class
#   token and patches grow alike late in training, or, on generated images, that its single tokens tell less.
# - Before you compare two objectives, ask whether both are at the same point of their training. An equal number of images
#   does not ensure that.
# - Far-reaching attention early in training is uniform attention at first, and collapsed attention later. NMI is near 0
#   in both: look at the entropy, too, before you look at distance.
# - Alike tokens do not mean that nothing has been learnt. What they share may be exactly what the task needs.
#
# ## Exercises
#
# 1. **Another objective.** Set `OBJECTIVE = "mim"`: does the small encoder of this page pass through alike tokens as well?
# 2. **Faster out of it?** Give the small encoder ten times as many images, and then half the learning rate
#    (`replace(run, learning_rate=...)`). Which of the two decides when tokens part?
# 3. **Your own training.** `measure` needs an encoder, and `nbhelpers.models.wrap(copy.deepcopy(model), ...)` makes one of
#    your module; without the copy, `wrap` would freeze the model that you are training. Call it from your training loop at
#    the steps that `moments` gives.
