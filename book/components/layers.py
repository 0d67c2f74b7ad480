# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Layers
#
# **Claim.** A probe reads a contrastive encoder best in its last blocks, and a masked encoder best in its middle blocks
# {cite:p}`park2023what`.
#
# Think of an encoder as a line of clerks who each add a note to a file. Contrastive learning judges the file at the very
# end, so every clerk works towards that. A masked model has to return pixels at the end, and the notes of its last clerks
# may cover up what the middle ones wrote.
#
# A {term}`linear probe` at {term}`depth` $\ell$ measures what a simple reader finds in the file at that point: the
# encoder stays frozen, $x$ is the mean of an image's patch tokens after block $\ell$, standardised, and the probe is
# fitted to labels $y$ by penalised maximum likelihood,
#
# $$
# \begin{gathered}
# J(W, b) = \tfrac{1}{2} \lVert W \rVert^2 - C \sum_i \log p_i(y_i), \\[0.6em]
# p_i = \operatorname{softmax}(W x_i + b) ,
# \end{gathered}
# $$
#
# with $C$ chosen on validation images. Its accuracy on test images says how much of the label can be read at that depth.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000  # test images; halving them halves what a probe learns from, too
SEED = 0  # which images are drawn, where these are not all

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.ticker import MaxNLocator
from torch.testing import assert_close

from nbhelpers import plots, scorecard, study
from nbhelpers.images import MissingDataError
from nbhelpers.results import StaleTableError, published, rows_of, table, untrained
from nbhelpers.results.summary import by_label, highest, late, peak
from nbhelpers.studies import OWN
from nbhelpers.studies import label as label_of

plots.style()


# %% tags=["hide-input"]
panels, missing = {}, {}  # `shapes` has two labels, so it has two panels
draw = {"n_images": N_IMAGES, "seed": SEED}
for name in STUDIES:
    own = [*study(name).trained("cl", "mim", "mae"), *study(name).models]
    try:
        probes = table(name, "probes", MODELS or list(dict.fromkeys(own)), **draw)
    except (MissingDataError, StaleTableError, ValueError) as reason:
        missing[name] = str(reason)  # such as too few images to learn from
        continue
    panels |= {(name, label): rows for label, rows in probes.groupby("label")}

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["12"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# A probe of the shape is fitted to up to 200 images at the last block of one encoder. `fit_linear` returns $W$ and $b$;
# the formula, written out, must be at its minimum there. $J$ is convex, so it is enough that its gradient is zero.

# %%
from nbhelpers.probes import features, fit_linear

(encoder,) = study("shapes").encoders((MODELS or ["shapes.cl"])[:1])
images = study("shapes").images("train").subset(min(200, N_IMAGES), label="shape")
x, y = features(encoder, images, [encoder.depth])[0], images.labels["shape"]  # N D; N
C = 0.01
probe = fit_linear(x, y, x, y, strengths=[C])

# %%
x_std = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
W, b = (torch.tensor(each, requires_grad=True) for each in (probe.weight, probe.bias))
log_p = (x_std @ W.T + b).log_softmax(1)  # N K
J = W.square().sum() / 2 - C * log_p[range(len(y)), y].sum()
J.backward()

assert_close(W.grad, torch.zeros_like(W), atol=1e-3, rtol=0)
assert_close(b.grad, torch.zeros_like(b), atol=1e-3, rtol=0)
right = (log_p.argmax(1) == y).double().mean()
found = {"J": J.item(), "accuracy on what it learnt": right.item()}
pd.DataFrame(found, index=["last block"]).round(2)

# %% [markdown]
# ## A linear probe at every depth
#
# The probes below learn from more images; $C$ is chosen on a second set, and accuracy is measured on a third. The label
# is easiest to read where a line is highest.

# %% mystnb={"image": {"alt": "Accuracy of a linear probe against depth, one line per model, one panel per study and label; a dashed line marks guessing. The last panel shows published curves, in which MoCo v3 rises up to the last block and SimMIM falls after the middle."}, "figure": {"caption": "Accuracy of a linear probe by depth, one panel per label. Bands: 95 % interval over test images; dashed: guessing among the classes of the test images. A number of images in the legend marks an encoder that saw fewer than CL and MIM. Last panel: published curves (ViT-B/16 on ImageNet with 1,000 classes), read off the paper's poster."}}
titles = [f"{label}: {plots.title(rows)}" for (_, label), rows in panels.items()]
axes = plots.panels([*titles, *missing, "published"], sharey=True, missing=missing)
for ax, ((name, _), rows) in zip(axes, panels.items(), strict=False):
    classes = 10 if name in OWN else None
    plots.by_depth(rows, "linear", ax, reference=classes and (1 / classes, "guessing"))
curves = ["MoCo v3", "SimMIM", "MAE"]
plots.published_by_depth(published(), "linear", axes[-1], models=curves)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
every = pd.concat([pd.DataFrame(), *panels.values()])
plots.download(every, "probes")

# %% [markdown]
# With `"imagenet"` in `STUDIES`, another table appears here: the root-mean-square distance of the paper's own models from
# their published curves, next to the error made in reading those curves off the poster.

# %% tags=["remove-input"]
from nbhelpers.results import difference_to_published

gaps = difference_to_published(every, "linear")
gaps.round(2) if len(gaps) else None

# %% tags=["hide-input"]
rows = {}
for (name, label), frame in panels.items():
    rows[f"{name}, {label}", "best depth"] = peak(frame, "linear")
    rows[f"{name}, {label}", "accuracy"] = highest(frame, "linear")
found = pd.DataFrame(rows).rename_axis(columns=[None, None])
for column in found:
    form = "{:.0f}" if column[1] == "best depth" else "{:.2f}"
    found[column] = found[column].map(form.format, na_action="ignore")
found.fillna("")

# %% [markdown]
# The best depth and its accuracy are taken from the same test images, which flatters both a little. Read the best depth
# together with the curve. Where CL is best late but its curve has been flat for some blocks, those blocks do no harm, but
# not much good either. Where MIM is best in the middle *and* its curve then falls clearly, its last blocks cover up what
# a probe could read. A label that the training target needs, such as texture for predicting pixels, might be covered up
# less; where this probe is near its ceiling, it cannot tell. Read from [single tokens](behaviour.py), MIM's texture falls
# too.
#
# The row of the untrained encoder shows what a mean over random features already gives away. MAE has a
# [decoder](decoder.py) behind it: if a masked model's curve falls in its last blocks because these have to decode, MAE's
# curve should not fall, and the published one hardly does.
#
# ## What is lost when blocks are re-initialised?
#
# Another way to measure what blocks are worth is to give some of them random weights again, fine-tune the whole encoder,
# and see how much accuracy is lost. Blocks that serve the pre-training task alone should cost nothing. Any others must be
# learnt again during fine-tuning, which is short: little more than one epoch. This takes too long for a build of the
# book, so the numbers are stored ones, whatever `MODELS` says.

# %% tags=["hide-input"]
tuned = {}
for name in filter(lambda name: study(name).splits, STUDIES):
    pair = study(name).trained("cl", "mim", vary=["width", "images"])
    new = rows_of(name, "new_blocks", pair)
    if new.empty:
        continue
    whole = rows_of(name, "fine_tuning", new["model"].unique())
    tuned[name] = pd.concat([whole, new], ignore_index=True).query("share == 1")

# %% mystnb={"image": {"alt": "Accuracy after fine-tuning against the number of re-initialised blocks, one line for CL and one for MIM; the first blocks on the left, the last ones on the right, one row per study."}, "figure": {"caption": "Accuracy after fine-tuning with the first (left) or the last blocks (right) re-initialised beforehand. Bands: 95 % interval over test images. Dashed: an untrained encoder, fine-tuned the same way."}}
ends = [(name, end) for name in tuned for end in ("first", "last")]
titles = [f"{end} blocks: {plots.title(tuned[name])}" for name, end in ends]
axes = plots.panels(titles or ["fine-tuning"], sharey="row")
for ax, (name, end) in zip(axes, ends, strict=False):
    other = {"first": "last", "last": "first"}[end]
    rows = tuned[name][tuned[name][other] == 0]
    rows, axis = rows.assign(parameter=rows[end]), f"{end} blocks re-initialised"
    floor = untrained(name, "fine_tuning")
    plots.by_parameter(rows, "fine_tuning", axis, ax, reference=floor)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
if not ends:
    plots.note(axes[0], "stored for the book's own studies only")
legend = ends and plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(tuned.values(), "new_blocks")

# %% [markdown]
# With the most first blocks re-initialised, neither is much better than an untrained encoder that is fine-tuned the same
# way (dashed): such a loss has nearly reached its floor, and says how high each began rather than what its blocks were
# worth. Points of accuracy lost where the most blocks are re-initialised:

# %% tags=["hide-input"]
rows = {}
for name, frame in tuned.items():
    kept = by_label(frame[(frame["first"] == 0) & (frame["last"] == 0)])
    for end in ("first", "last"):
        most = by_label(frame[frame[end] == frame[end].max()])
        column = f"{end} {frame[end].max():.0f} blocks"
        points = {who: 100 * (kept[who] - most[who]) for who in most}
        rows[study(name).title, column] = points
pd.DataFrame(rows).round(1)

# %% [markdown]
# If MIM's last blocks are only a decoder, re-initialising them should cost MIM less than re-initialising its first
# blocks, and less than the same costs CL. The first comparison comes out this way for CL too, and layer decay slows the
# learning of re-initialised first blocks, so the second is the real test. With the 95 % interval over images:


# %% tags=["hide-input"]
from nbhelpers.intervals import difference
from nbhelpers.scorecard.evidence import mean


def lost(frame, more, less):
    """Points of accuracy between two states of the same encoders, by label."""

    def points(rows):
        return 100 * difference(mean(rows.query(more)), mean(rows.query(less)))

    return scorecard.read_labels(frame, points)


def verdict(points):
    """The interval in words."""
    sure = "yes" if points.low > 0 else "no" if points.high < 0 else "undecided"
    ends = f"[{points.low:.1f}, {points.high:.1f}]"
    return f"**{sure}**, {points.value:.1f} points {ends}".replace("-", "−")


# %% tags=["hide-input"]
said = []
for name, frame in tuned.items():
    first, last = (f"{end} == {frame[end].max()}" for end in ("first", "last"))
    first_less = lost(frame, last, first)
    costs = lost(frame, "first == 0 and last == 0", last)
    for mim in sorted(who for who in costs if who.split(", ")[0] == "MIM"):
        text = f"On {study(name).title}, re-initialising the last blocks costs MIM "
        text += f"less than re-initialising the first: {verdict(first_less[mim])}."
        if (cl := mim.replace("MIM", "CL")) in costs:
            less = difference(costs[cl], costs[mim])
            text += f" It costs MIM less than CL: {verdict(less)}."
        said.append(text)
Markdown("\n\n".join(said) or "No stored results answer this.")

# %% tags=["remove-input"]
said = []
for name, frame in tuned.items():
    cl = [who for who in frame["model"].unique() if label_of(who).startswith("CL")]
    nmi = rows_of(name, "profile", cl)
    nmi = late(nmi, "nmi").values() if len(nmi) else ()
    said += [f"{value:.3f} on {study(name).title}" for value in nmi if value < 0.01]
text = f"""The late NMI of these CL encoders is {" and ".join(said)}: their late
attention hardly depends on the query, so what these blocks are worth may not carry over
to another CL encoder."""
Markdown(text) if said else None

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose probe is not best at a later depth than that of a masked encoder of the same architecture,
# trained on the same images. An interval that contains 0 decides neither way: a flat curve has no best depth. The
# interval of a best depth holds 95 % of the best depths of curves that are drawn anew, each accuracy independently from
# its own interval (a parametric bootstrap).

# %% tags=["hide-input"]
scorecard.rows("components/layers", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - What shows: on generated images the wide CL is read best near its end, and MIM in the middle, after which its curve
#   falls. What does not: on photographs both are read best near the end, so their best depths cannot be told apart. CL's
#   curve still climbs there over several late blocks, MIM's is flat: a difference that the best depth misses.
# - Re-initialising MIM's last blocks costs it little, as it should if they are only a decoder. On photographs it costs
#   MIM less than CL; on generated images both lose hardly anything.
# - The last block is not always the best representation. For a masked model, look for the depth that a probe reads best.
# - A probe accuracy that falls with depth does not mean that information is gone: blocks add to the residual stream, and
#   what they add may cover up what was there.
# - How much the last blocks cover up depends on the label and on how it is read. For MIM, the probe of the shape falls
#   after the middle; that of the texture, near its ceiling, hardly does, but the one on single tokens does.
#
# ## Exercises
#
# 1. **Another model.** At which depth is an untrained encoder read best? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]` (some minutes), or in the hidden cell below, on a few images.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# At no depth in particular: no block has learnt to make the label any easier to read.
from nbhelpers.probes import linear_by_depth

parts = {"train": 64, "val": 24, "test": 40}
splits = [study("shapes").images(split).subset(n) for split, n in parts.items()]
(tiny,) = study("shapes").encoders(["random:vit_tiny_patch16_224"])
rows = linear_by_depth(tiny, *splits, label="texture", depths=[0, 6, 12])
rows.set_index("depth")[["value", "low", "high"]].round(2)

# %% [markdown]
# 2. **Without training a probe.** A trained probe can pick out a direction that hardly varies; a vote among the nearest
#    training images ({term}`k-NN`) cannot. Is the best depth the same?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Within one block for CL, MIM and MAE; that of the untrained encoder means little.
rows = {key: peak(frame, "knn") for key, frame in panels.items()}
pd.DataFrame(rows)  # best depth of k-NN

# %% [markdown]
# 3. **The same with a library.** Fit scikit-learn's `LogisticRegression` to `x_std` with the same $C$. How far are its
#    weights from $W$?

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
from sklearn.linear_model import LogisticRegression

theirs = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x_std.numpy(), y.numpy())
furthest = abs(theirs.coef_ - probe.weight).max()
pd.DataFrame({"largest difference": [f"{furthest:.0e}"]}, index=["W"])
