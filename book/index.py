# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # What do self-supervised Vision Transformers learn?
#
# A Vision Transformer can be trained without a single label in two quite different ways. **Contrastive learning**
# (CL) shows it two altered views of one image and asks for the same representation, unlike those of all other
# images. **Masked image modelling** (MIM) hides most of an image and asks for the missing pixels. Both give
# encoders that are useful afterwards, but not for the same things: CL wins when a linear classifier is put on the
# frozen encoder, MIM when the whole encoder is fine-tuned, when the model is large, or when every part of the
# image counts. Why?
#
# {cite:t}`park2023what` looked inside. Their answer has three parts, and each is a statement about something that
# can be measured:
#
# 1. **How do self-attentions behave?** CL trains attention that reaches across the whole image and follows the
#    shape of objects, above all in later layers. But it becomes nearly the same for every query token and every
#    head. MIM's attention stays more local and more diverse.
# 2. **How are representations transformed?** CL moves all tokens of an image together and relies on low spatial
#    frequencies, that is, on shape. MIM moves tokens apart and relies on high frequencies, on texture.
# 3. **Which components matter?** CL does its work in the later layers, MIM in the earlier ones. So the two
#    complement each other, and even a simple combination of both losses can beat either.
#
# This book measures these statements again, with everything at hand: the images, the trained encoders, the
# definition of every metric and the code that computes it. Each chapter is a notebook that runs on an ordinary
# computer, and each names what would refute the statement it opens with.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]

# %% [markdown]
# ## The scorecard
#
# Each finding of the paper is a row: what is claimed, what is measured, and how large the effect is in each study, with
# its 95 % interval. An effect is written so that it is above 0 when the claim shows. The verdict follows from the
# interval by one rule, the same for all:
#
# - **shows**: the whole interval lies above 0;
# - **does not show**: no part of it does;
# - **undecided**: neither;
# - **not measured**: an encoder or a table is missing, and the row says which.
#
# What is measured, where in the encoder, and this rule were fixed before this table was first computed. No threshold
# was chosen afterwards, and no row left out. "Late" means the last third of the blocks. The paper's own value
# comes from encoders of another size, on other images, often in other units of length, so it is its sign that can be
# compared.

# %% [markdown]
# ### How do self-attentions behave?

# %%
from nbhelpers import scorecard

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

# %% tags=["remove-cell"]
from myst_nb import glue

card = scorecard.scorecard(STUDIES)
for word in ("shows", "does not show", "undecided", "not measured"):
    glue(word.replace(" ", "-"), int((card["verdict"] == word).sum()), display=False)
glue("entries", len(card), display=False)
glue("single", int((card["seeds"] == 1).sum()), display=False)
glue("intervals", int(card["seeds"].notna().sum()), display=False)

# %% tags=["remove-cell"]
from nbhelpers.models import manifest

precisions = [row["precision"] for row in manifest().values()]
glue("encoders", len(precisions), display=False)
glue("half", precisions.count("bfloat16"), display=False)

# %% [markdown]
# ### How far to trust it
#
# Of {glue:text}`entries` entries, {glue:text}`shows` show the claim, {glue:text}`does-not-show` do not,
# {glue:text}`undecided` are undecided and {glue:text}`not-measured` are not measured.
#
# - An interval says how far the effect would move with **other test images**. Where several encoders were trained from
#   different seeds, it also says how far it would move with **another training run**. {glue:text}`single` of the
#   {glue:text}`intervals` measured entries rest on one run of at least one of their encoders: their intervals are too
#   narrow as statements about the methods.
# - **Two runs say little about a third.** The interval over two seeds reaches nine standard deviations to either side
#   (Student's t with one degree of freedom), that over three two and a half. So a second seed makes entries undecided
#   that a single run would have called sure. It has not made them less true; it shows how little a single run knew.
# - {glue:text}`half` of the {glue:text}`encoders` encoders were trained in **bfloat16**, the others in float32
#   ([the hybrid's chapter](hybrid/hybrid.py) says which of its own).
# - Intervals are on the safe side of what the images alone allow. Depths of one encoder share their images, and may err
#   together or against each other; their margins are added, which holds in either case. Margins of two encoders are
#   combined as if independent. For accuracies this is Newcombe's interval {cite:p}`newcombe1998interval`. The depth of a
#   peak and the effective rank over images have no margins to add and get a parametric bootstrap. Where the best of
#   several was chosen, the interval pays for the choice.
# - An effect can be **sure and small**. The verdict is about its sign; whether its size matters is for the chapters, which
#   show the curves behind each row.
#
# `nbhelpers.scorecard.scorecard(["shapes", "cifar10"])` gives the same as a data frame, with the sources of the published
# values.

# %% [markdown]
# ## Read, run, change
#
# The menu at the top of each chapter offers its source as `.py` and as `.ipynb`. From a clone of the project,
#
# ```bash
# make book   # execute every chapter and build this site
# make lab    # open the chapters as notebooks
# ```
#
# is all it takes. Every chapter has one cell of parameters. Put another model's name there and run the chapter
# again to see where that model stands.
