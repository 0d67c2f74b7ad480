# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Diversity of representations
#
# **Claim.** The representations of a contrastive encoder are more alike than those of a masked image model: across
# heads, across depths and across the tokens of an image, above all in the later layers {cite:p}`park2023what`.
#
# Think of each patch token as a compass needle. If [all patches attend to the same places](../attention/collapse.py),
# they receive the same output, and one expects the needles to turn in one direction. How closely $M$ vectors
# $v_1, \dots, v_M$ align is measured by the mean cosine over all pairs,
#
# $$
# \begin{gathered}
# \bar c = \frac{1}{M (M - 1)} \sum_{i \ne j} u_i \cdot u_j \\[0.6em]
# = \frac{\lVert \sum_i u_i \rVert^2 - M}{M (M - 1)}, \qquad u_i = \frac{v_i}{\lVert v_i \rVert} ,
# \end{gathered}
# $$
#
# where the second form avoids the sum over pairs. It is 1 when all vectors point one way, 0 when they are orthogonal, and
# never below $-1 / (M - 1)$. Three sets of vectors are compared: the outputs of the heads for one token, the tokens of
# one image, and (with $M = 2$) one token before and after a block. The sources at hand do not say where in the network
# the paper takes the tokens. This book takes them from the residual stream (row 5a) and, since it makes a difference,
# also from the output of attention (row 5b).

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000
SEED = 0

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import load, plots, scorecard
from nbhelpers.results import gather, late
from nbhelpers.studies import at_hand, label

plots.style()
METRICS = ["token_cosine", "attention_token_cosine", "across_attention_cosine"]
METRICS += ["across_block_cosine", "head_cosine"]
frames, missing = gather(STUDIES, METRICS, MODELS, N_IMAGES, SEED)
here = at_hand(STUDIES)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["4", "5a", "5b", "6"], STUDIES, MODELS)

# %% tags=["hide-input"]
said = []
for name, frame in frames.items():
    heads = late(frame, "head_cosine")
    if {"CL", "MIM", "random"} <= heads.keys():
        apart, chance = abs(heads["CL"] - heads["MIM"]), abs(heads["random"])
        text = f"On `{name}`, CL and MIM are {apart:.3f} apart, and the untrained "
        said.append(text + f"encoder is {chance:.3f} from 0.")
lead = """Row 4 needs a scale: random initial weights alone give heads a cosine that
differs from 0 by chance, which no interval over images covers. """
end = """ Where CL and MIM are closer than that, row 4 gives a sign at most."""
Markdown(lead + " ".join(said) + end) if said else None

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder. `capture` collects the tokens of the residual stream and, inside each block, the
# output of every head for every token. The second form of $\bar c$ takes three lines.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import mean_pairwise_cosine

encoder, images = load((MODELS or here.models)[0]), here.images("test")
blocks, stream = [], []
with capture(encoder, blocks.append, stream.append, places=("block",)):
    encoder.forward(encoder.batch(images, range(min(8, len(images)))))
z = stream[-1].patches  # B N D: tokens after the last block
o = blocks[-1].output[:, :, encoder.prefix :].transpose(1, 2)  # B N H D: its heads


# %%
def c_bar(v):  # ... M D -> ...
    M = v.shape[-2]
    u = v / v.norm(dim=-1, keepdim=True)
    return (u.sum(-2).square().sum(-1) - M) / (M * (M - 1))


for vectors in (z, o, o.flatten(2)):
    assert_close(c_bar(vectors), mean_pairwise_cosine(vectors), atol=1e-4, rtol=1e-4)
sets = {"heads": o, "tokens": z, "tokens, from attention": o.flatten(2)}
rows = {name: c_bar(vectors).mean().item() for name, vectors in sets.items()}
pd.DataFrame(rows, index=["mean cosine, last block"]).round(3)

# %% [markdown]
# ## Tokens in the residual stream
#
# The mean cosine between the tokens of an image, averaged over all images, at every depth from the embedding (depth 0)
# on. As in MoCo v3, CL does not train its patch embedding, so at depth 0 it is like an untrained encoder.

# %% mystnb={"image": {"alt": "Mean cosine between the tokens of an image against depth, one panel per study: a line per model, dotted for the untrained encoder, and a dashed line at 1, where all tokens point one way."}, "figure": {"caption": "Mean cosine between the tokens of an image against depth, in the residual stream; bands: 95 % interval over images. Dashed: all tokens point one way. Dotted: an untrained encoder, which is where training starts."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "token_cosine", ax, reference=(1, "all tokens alike"))
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
tokens = [frame.query("metric == 'token_cosine'") for frame in frames.values()]
plots.download(tokens, "token_cosine")

# %% [markdown]
# First compare each curve with that of an untrained encoder of the same architecture, dotted for the book's own encoders.
# Their tokens are very much alike before training (those of other ViTs need not be, see exercise 1), so a high cosine is
# the starting point and a low one has been learnt. An encoder that was trained too briefly has similar tokens for that
# reason alone; the claim requires CL above MIM after both have left the dotted line.
#
# ## Tokens in the output of attention
#
# Before it is added to the residual stream, the output of self-attention for token $q$ is $\sum_k A_{qk} v_k$, here with
# all heads concatenated. Collapse has to show here: tokens with the same map get the same output, so their cosine is 1.

# %% mystnb={"image": {"alt": "Mean cosine between the attention outputs of the tokens of an image against depth, one panel per study: a line per model, and a dashed line at 1, where all outputs are alike; the untrained encoder lies near it."}, "figure": {"caption": "Mean cosine between the outputs of self-attention for the tokens of an image, before the residual is added. Lines and bands as above. The untrained encoder attends uniformly, so that all tokens get nearly the same output."}}
alike = (1, "all tokens alike")
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "attention_token_cosine", ax, reference=alike)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
outputs = [f.query("metric == 'attention_token_cosine'") for f in frames.values()]
plots.download(outputs, "attention_token_cosine")

# %% [markdown]
# Where CL lies above MIM here but not in the first figure, collapse is real but hidden by the residual stream. A block
# *adds* its output to the tokens. The same output for all moves all tokens alike and keeps the differences between them;
# only if this common addition outgrows what was there do the tokens become alike. [Token geometry](geometry.py) measures
# how much of the addition is common.
#
# ## Without the vector that all tokens share
#
# There is a second reason to be careful. A cosine measures an angle at the origin, and the origin is arbitrary: a vector
# that all tokens of all images share raises every cosine without making two tokens harder to tell apart. The table shows
# the cosine between tokens after the last block with and without that vector, for some of the images used above:


# %%
def after_last_block(encoder, number):
    stream = []
    with capture(encoder, on_stream=stream.append, places=("block",)):
        encoder.forward(encoder.batch(images, range(number)))
    return stream[-1].patches  # B N D


# %%
rows = {}
for encoder in here.encoders(MODELS):
    z = after_last_block(encoder, min(64, N_IMAGES, len(images)))
    centred = z - z.mean((0, 1))  # one vector for all images and places
    pair = {"as they are": z, "without the common vector": centred}
    rows[label(encoder.name)] = {key: c_bar(v).mean().item() for key, v in pair.items()}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The second column keeps what the tokens of *one* image share with each other but not with those of other images. Where
# it is near 0, the similarity in the first column came from a constant vector and says nothing about images. Where the
# order of CL and MIM differs between the columns, the raw cosine does not say which of them has the more similar tokens.
# [Singular spectra](spectra.py) subtract the mean from the start.
#
# ## Between depths
#
# The residual stream carries each token past the blocks. A cosine near 1 between a token before and after a block says
# that the block leaves its direction unchanged.

# %% mystnb={"image": {"alt": "Cosine between a token before and after each block against depth, from 0 to 1, one panel per study: a line per model, with the untrained encoder near 1."}, "figure": {"caption": "Cosine between a token before and after a block (attention and MLP), averaged over tokens, against depth. Lines and bands as above. Dashed: the block turns no token."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "across_block_cosine", ax, reference=(1, "no token turns"))
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
depths = [frame.query("metric == 'across_block_cosine'") for frame in frames.values()]
plots.download(depths, "across_block_cosine")

# %% [markdown]
# Untrained blocks add little to the residual stream, so the untrained encoder again lies at the top. Of the trained ones,
# the higher curve belongs to the model whose blocks change a token less.
#
# All five cosines, averaged over the last third of the blocks (*across attention*: a token before and after
# self-attention alone):

# %% tags=["hide-input"]
rows = {
    (name, plots.metric_label(metric)): late(frame, metric)
    for name, frame in frames.items()
    for metric in METRICS
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The last one, between heads, has no figure. Each head has its own value weights, so the outputs of heads are orthogonal
# up to chance before any training, and a value near 0 is no sign of learnt diversity. Neither the poster nor the released
# code has numbers for these cosines, so there is no published curve for comparison.
#
# ## What would refute it
#
# A contrastive encoder whose late heads, tokens or depths are not more alike than those of a masked encoder of the same
# architecture, trained on the same images, by more than the interval over images. These are the rows of the
# [scorecard](../index.py) that gave the result above:

# %% tags=["hide-input"]
scorecard.rows("representations/diversity", STUDIES, MODELS)

# %% [markdown]
# A row that does not show need not contradict [attention collapse](../attention/collapse.py). Collapse concerns maps,
# whereas rows 5a and 6 concern the residual stream, which sums the outputs of all blocks.
#
# ## Takeaways
#
# - In the wide encoders, averaged over the late blocks, neither the tokens in the residual stream nor successive depths
#   are more alike in CL. Its heads are, but by less than untrained heads differ from 0. The outputs of attention are
#   more alike in CL (5b), as its maps are. In one study or in both, each of these differences has the other sign in one
#   of the late blocks: on photographs, tokens and successive depths are more alike in CL at the very end.
# - In encoders of the same width that saw fewer images, tokens and depths are more alike in CL ([When do the findings
#   appear?](../beyond/moments.py)); in narrower ones tokens are, and depths were not measured. (Of three seeds
#   of the same width on generated images, one has tokens less alike than MIM's.) So width alone does not explain it. The
#   training does, by the number of its images or by the size of its batches, which differs as well.
# - Read a cosine beside that of an untrained encoder, which here is high for tokens and depths, and near 0 but not at 0
#   for heads.
# - Collapse shows in the output of attention. The residual stream keeps what was there before, and with it the
#   differences between tokens.
# - Before you call vectors alike, subtract what all of them share.
#
# ## Exercises
#
# 1. **Another model.** What cosines do you expect of an untrained ViT with twelve blocks at 224 px? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or on a few images in the hidden cell below.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Small weights: flat attention gives all tokens nearly the same output, and blocks
# change little.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
rows = {plots.metric_label(m): late(tiny["shapes"], m) for m in METRICS}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# 2. **As different as possible.** What is $\bar c$ for five unit vectors spread evenly over a circle? Why can no five
#    vectors have a smaller value?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# They sum to zero, and a squared length cannot be less: (0 - 5) / (5 * 4) = -1/4.
angle = torch.arange(5) * 2 * torch.pi / 5
lowest = c_bar(torch.stack([angle.cos(), angle.sin()], dim=-1)).item()
pd.DataFrame({"mean cosine": lowest}, index=["five on a circle"]).round(2)

# %% [markdown]
# 3. **Same map, same output?** Are the outputs of a block with a low NMI always alike? Compare the two block by block.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Not always. At an NMI of 0 all outputs are equal; at a low one, small differences
# between maps can outweigh what they share. Values may be alike where maps are not.
pair = ["nmi", "attention_token_cosine"]
few, _ = gather(["shapes"], pair, MODELS, n_images=min(64, N_IMAGES))
whole = few["shapes"].query("head < 0")
whole = whole.replace({"metric": {m: plots.metric_label(m) for m in pair}})
whole.pivot_table("value", ["model", "metric"], "depth", sort=False).round(2)
