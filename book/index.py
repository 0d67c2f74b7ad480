# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # What do self-supervised Vision Transformers learn?
#
# This book compares two ways to train a Vision Transformer without labels. **Contrastive learning** (CL) shows the model
# two altered views of an image and trains it to give both the same representation. **Masked image modelling** (MIM) hides
# most of an image and trains the model to predict the missing pixels. {cite:t}`park2023what` asked how encoders trained
# in these two ways differ inside; this book measures their answers again.

# %% tags=["parameters", "remove-input"]
STUDIES = ["shapes", "cifar10"]

# %% tags=["remove-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle

from nbhelpers import load, plots, scorecard, study
from nbhelpers.images import photographs
from nbhelpers.measure import attention_maps
from nbhelpers.results import table
from nbhelpers.scorecard import MARKS

plots.style()
card = scorecard.scorecard(STUDIES)
asked = set()  # rows behind the answers


# %% tags=["remove-input"]
def conclude(sentence, numbers):
    """A sentence, and how many of the measured entries of these rows show it."""
    asked.update(numbers)
    rows = card[card["number"].isin(numbers) & (card["verdict"] != "not measured")]
    shows = (rows["verdict"] == "shows").sum()
    said = f"This shows in {shows} of the {len(rows)} scorecard entries that test it."
    return Markdown(f"{sentence} {said}")


def panels(tables, metric, **options):
    """A metric by depth, a panel per study."""
    axes = plots.panels(STUDIES, height=2.4, sharey=True)
    axes[0].figure.set_figwidth(5.6)  # the width beside an answer
    for ax, frame in zip(axes, tables, strict=True):
        plots.by_depth(frame, metric, ax, **options)
        ax.set_yticks([0, 0.5, 1])
    return plots.legend_below(axes)


# %% tags=["remove-input"]
picture = photographs(32).batch([0])
QUERIES = [(1, 1), (4, 4), (6, 6)]  # row and column among the patches
square = {"extent": (0, 8, 8, 0), "interpolation": "nearest"}  # 8 x 8 patches


def outline(ax, row, column):
    """A frame around a patch."""
    look = {"fill": False, "ec": "#56B4E9", "lw": 1.6}
    ax.add_patch(Rectangle((column, row), 1, 1, **look))


# %% tags=["remove-input", "answer"]
conclude(
    "**Where does it look?** In the late blocks, a contrastive encoder's attention "
    "reaches further than a masked one's and depends less on the query, which is "
    "partly because it is flatter.",
    ["1", "2"],
)

# %% tags=["remove-input"] mystnb={"image": {"classes": "pictures", "alt": "A photograph with three query patches outlined and, beside it, the attention map of each query in the last block but one, one row for CL and one for MIM: CL's maps reach across the image, each of MIM's stays around its query."}, "figure": {"caption": "Attention maps of the three outlined query patches in the last block but one, averaged over heads. Each map has its own scale, from dark (zero) to bright (its maximum). The photograph comes with scikit-image; the encoders were trained on CIFAR-10."}}
figure, axes = plt.subplots(2, 4, figsize=(5.6, 2.6))
for line, kind in zip(axes, ("CL", "MIM"), strict=True):
    A = attention_maps(load(f"cifar10.{kind.lower()}"), picture)[-2, 0].mean(0)  # N N
    line[0].imshow(picture[0].permute(1, 2, 0), **square)
    line[0].set_ylabel(kind, fontsize=14)  # legible on a phone, too
    for ax, (row, column) in zip(line[1:], QUERIES, strict=True):
        values = A[8 * row + column].reshape(8, 8)
        ax.imshow(values, cmap="inferno", vmin=0, **square)
        outline(line[0], row, column)
        outline(ax, row, column)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)

# %% tags=["remove-input", "answer"]
conclude(
    "**What does it see?** When shape and texture disagree, a contrastive encoder "
    "follows the shape more than a masked one does. High-frequency noise costs it less "
    "accuracy on shape or class (more on texture: row 11b). Its late tokens hold fewer "
    "high frequencies (on generated images, only after one of the three late blocks).",
    ["9c", "10", "11a"],
)

# %% tags=["remove-input"] mystnb={"image": {"alt": "Shape bias against depth, one panel per study, one line per model: in the late blocks CL lies far above MIM."}, "figure": {"caption": "Shape bias against depth: at 1, shape alone decides. Dashed: no preference. random: an untrained encoder. The chapter's own figure gives the date of stored numbers."}}
none = {"reference": (0.5, "no preference")}
legend = panels([table(study, "shape_bias") for study in STUDIES], "shape_bias", **none)

# %% tags=["remove-input", "answer"]
conclude(
    "**What is it good for?** A linear probe reads shape or class better from a "
    "contrastive encoder (MoCo v3) than from a masked one (SimMIM); on generated "
    "images its best depth is also later. Fine-tuning (not drawn) closes most of the "
    "gap between them: on photographs no difference can be detected (row 14g), and on "
    "generated images, where it takes little more than one epoch, the masked encoder "
    "stays behind, further if it saw fewer images.",
    ["12", "14a"],
)

# %% tags=["remove-input"] mystnb={"image": {"alt": "Accuracy of a linear probe against depth, one panel per study, a line per model: CL ends highest, MIM falls behind and, on generated images, declines towards the last block."}, "figure": {"caption": "Accuracy of a linear probe for the shape (left) and for the class (right). Dashed: chance. The chapter's own figure gives the date of stored numbers."}}
frames = [table(study, "probes") for study in STUDIES]
shown = [rows[rows["label"].isin(["shape", "class"])] for rows in frames]
legend = panels(shown, "linear", reference=(0.1, "chance"))

# %% tags=["remove-input", "after_answers"]
count = card["verdict"].value_counts()
words = ("shows", "does not show", "undecided", "not measured")
behind = card.loc[card["number"].isin(asked), "seeds"].dropna()
runs = " The entries behind the three answers rest on one training run per encoder."
Markdown(
    f"**All {len(card)} entries**: "
    + ", ".join(f"{word} {count.get(word, 0)}" for word in words)
    + f".{runs if (behind == 1).all() else ''}"
)

# %% tags=["remove-input", "after_answers"]
again = card.dropna(subset="repeated_effect")
both = again[["verdict", "repeated_verdict"]].agg(set, axis=1)
turned = again[both == {"shows", "does not show"}]
turned = [f"{row.number} on {study(row.study).title}" for row in turned.itertuples()]
held = again.loc[again["verdict"] == "shows", "repeated_verdict"]
sizes = again.groupby("study", sort=False)["repeated_note"].agg(lambda of: of.mode()[0])
each = [f"on {study(name).title}: {size}" for name, size in sizes.items()]
sizes = sizes.iloc[0] if sizes.nunique() == 1 else "; ".join(each)
Markdown(f"""**Do they hold for other training runs?** {len(again)} entries could be measured
again on encoders of several seeds, which saw fewer images in smaller batches
({sizes}). Of the {len(held)} among them that show,
{(held == "shows").sum()} also show there and {(held == "undecided").sum()} are undecided
there. The verdict is reversed in {len(turned)}: {", ".join(turned) or "none"}.""")

# %% [markdown]
# MIM here means SimMIM, which does not stand for all masked models: on generated images, a linear probe reads an MAE that
# took four times as many steps, each of a quarter of the batch, better than CL ([Behaviour](components/behaviour.py)).
#
# Click through the [attention maps of your own picture](own/picture.py), or read how each answer was found: where it looks
# ([distance](attention/distance.py), [collapse](attention/collapse.py)), what it sees
# ([shape or texture](representations/shape_texture.py), [frequencies](representations/frequency.py)), what it is good for
# ([layers](components/layers.py), [behaviour](components/behaviour.py)).

# %% [markdown]
# ## The scorecard
#
# Each finding of the paper that can be measured here has a row in the tables below, and so have most claims that the book
# adds (those about sinks and gradients are judged on their own pages). A row gives the claim, what is measured, and the
# effect in each study with its 95 % interval. Effects are signed so that a value above 0 supports the claim. The verdict
# is **shows** if the whole interval lies above 0, **does not show** if no part of it does, **undecided** if neither, and
# **not measured** if an encoder or a table is missing. *Late* is the mean over the last third of the blocks. Accuracies
# on generated images are for the shape, unless a row says otherwise.
#
# The measurements and this rule were fixed before the table was first computed, with these exceptions:
#
# - Rows 3b, 3c, 5b, 11b, 14g and those numbered 21 were added after their curves had been seen.
# - Rows 14a, 14c, 14e and 14f first used few labels of the photographs and now use all of them; 14c and 14g use longer
#   fine-tuning than at first. Encoders of several seeds now use all labels in 14a, 14e and 14f, but still few in 14c and
#   14g, since they were not fine-tuned on all.
# - The rows numbered 21 were first compared with uniform attention.
# - Wide encoders are fine-tuned at the learning rate that is best on validation images, because a higher one had been
#   seen to harm them.
# - The intervals of 16a and 16b are now those of differences image by image. Those of several seeds on both sides are
#   Welch's; at first the two sides' margins were combined, which is wider but led to the same verdicts. On photographs,
#   that of row 10 is wider than at first, since it heeds that trials share pictures.
#
# Before these changes 14c, 14e, 14f and 16b were undecided on photographs, 14g did not show there, and 21b and 21c
# showed; for several seeds, 14a and 14f were undecided on photographs. All effects on this page come from the book's
# tables.
#
# The full text of the paper was not at hand. Its claims are taken from its abstract, poster, code and figures, and from
# its author's answers in the code's repository; *none found* means that none of these sources gives a number. For rows 4,
# 5a, 6, 8a, 8b and 11a none of them gives the definition in full, so the paper's may differ from the book's.

# %% tags=["remove-input"]
fails = card[card["verdict"] == "does not show"].drop_duplicates("number")
listed = "; ".join(f"{row.claim} ({row.number})" for row in fails.itertuples())
remarked = ((card["verdict"] == "shows") & (card["remark"] != "")).sum()
Markdown(f"""Of the entries that show, {remarked} carry a remark that limits what they tell.
**Does not show in at least one study:** {listed or "none"}.""")

# %% tags=["remove-input"]
SIGNS = {verdict: sign for verdict, (sign, *_) in MARKS.items()}
lines = {}
for name, rows in card.set_index("number").groupby("study", sort=False):
    lines[name] = rows["verdict"].map(SIGNS)
    lines[f"{name}, seeds"] = rows["repeated_verdict"].map(SIGNS).fillna("")
signs = pd.DataFrame(lines).T.rename_axis(columns=None)

# %% tags=["remove-input"]
close = "padding: 0.2rem 0.3rem; text-align: center"
look = [{"selector": "th, td", "props": close}]
tables = math.ceil(len(signs.columns) / 15)  # as many columns as fit the page
for columns in np.array_split(signs.columns, tables):
    part = signs[columns]
    part = part[(part != "").any(axis=1)]
    shown = part.style.map(scorecard.tint).set_table_styles(look)
    display(shown.set_uuid(part.columns[0]))

# %% [markdown]
# Each column stands for the row of that number in the tables below: ✓ shows, ✗ does not show, ? undecided, – not
# measured. *Seeds*: the same measurement on encoders of several seeds, which saw fewer images in smaller batches, where it
# is stored.
#
# Some verdicts change with the length of training: [When do the findings appear?](beyond/moments.py)
#
# ### How do self-attentions behave?

# %% tags=["remove-input"]
scorecard.rows("attention", STUDIES)

# %% [markdown]
# ### How are representations transformed?

# %% tags=["remove-input"]
scorecard.rows("representations", STUDIES)

# %% [markdown]
# ### Which components matter?

# %% tags=["remove-input"]
scorecard.rows("components", STUDIES)

# %% [markdown]
# ### Are the two complementary?

# %% tags=["remove-input"]
scorecard.rows("hybrid", STUDIES)

# %% [markdown]
# ### Beyond the paper

# %% tags=["remove-input"]
scorecard.rows("beyond", STUDIES)

# %% [markdown]
# ### How far to trust the scorecard

# %% tags=["remove-input"]
measured = card[card["verdict"] != "not measured"]
single = (measured["seeds"] == 1).sum()
which = "All" if single == len(measured) else f"{single} of the"
Markdown(
    f"{which} {len(measured)} measured entries rest on one training run of at least "
    "one of their encoders: their intervals hold for other test images but are too "
    "narrow as statements about another run of the method. Where encoders of several "
    "seeds, which saw fewer images, could be measured, the tables give that, too."
)

# %% tags=["remove-input"]
lost = scorecard.lost_together(card)
lost = ", ".join(f"{row.number} on {row.study}" for row in lost.itertuples())
Markdown(f"""- **Many rows.** Each interval is a 95 % interval on its own; among so many, a few
  miss their true value by chance. If all are corrected together (Holm; by the normal
  distribution, over several seeds by Student's t), these would also be undecided:
  {lost or "none"}.""")

# %% [markdown]
# - **Seeds.** Where one side of a comparison has several seeds, its value is their mean, and its interval also covers
#   the spread over them, by Student's t: the squares of the two margins, over images and over seeds, are added. Where
#   both sides have several, their variances over seeds are added first, with Welch's degrees of freedom. With few
#   seeds it is wide, so that adding a seed can turn an entry "undecided".
# - **Encoders that differ.** A row takes encoders of width 128 that saw all images; where a side has none, the widest
#   and, of these, the longest trained that both sides have. Where the encoders of a row saw different numbers of
#   images, or differ in width, the row says so. The longest-trained CL and MIM and, on photographs, the hybrid and the
#   MAE of width 128 were trained with a prototype of the trainer, in bfloat16 and on images drawn with replacement; the
#   manifest in `data/encoders` has the recipe of each encoder. All were trained with Muon, the published ones with AdamW
#   ([Images](start/images.py)).
# - **Averages and differences.** Within an encoder, margins are added, which is conservative: a mean over depths has
#   the mean of their margins, and a difference of two readings, of two moments, or of decoder and encoder (13b) has the
#   sum. So has, in rows 18 to 19b, the difference of the trainings at two amplitudes. Any other two encoders are
#   treated as independent, although both saw the same images: the squares of their margins are added, the lower margin
#   of one to the upper of the other; for accuracies this gives Newcombe's interval {cite:p}`newcombe1998interval`.
#   Where the highest, the lowest or the best of several is taken (3a, 3b, 9a and those numbered 15), the bound on the
#   side that the choice favours is widened to hold for all of them together (Bonferroni).
# - **A certain effect can be small.** A verdict concerns the sign of an effect. Whether its size matters is left to the
#   chapters, which show the curves behind each row. Published values come from larger encoders on other images: compare
#   only the signs.
#
# `nbhelpers.scorecard.scorecard(["shapes", "cifar10"])` returns the same as a data frame, with the sources.
#
# ## Read, run, change
#
# The menu at the top of each chapter offers its source as `.py` and as `.ipynb`. In a clone of the project, two commands
# are enough:
#
# ```bash
# make book   # execute every chapter and build this site
# make lab    # open the chapters as notebooks
# ```
#
# Most chapters have a parameter cell with `MODELS`. Put another model's name there and rerun the chapter to see where
# that model stands. It replaces the study's own models, so leave in `STUDIES` only those on which you want to measure it.
# A ViT-S on one core processes a few images a second: begin with `N_IMAGES = 100`.
#
# Where a chapter writes out a formula, `assert_close` checks it against the package: remove that line before you change
# the formula. To draw the curves with your own version, put `METRICS["nmi"] = replace(METRICS["nmi"], function=yours)`
# above the parameter cell (`METRICS` is in `nbhelpers.metrics`, `replace` in `dataclasses`).
