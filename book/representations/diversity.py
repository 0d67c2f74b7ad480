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
# Think of the token of each patch as a needle that points somewhere. If
# [all patches attend to the same places](../attention/collapse.py), they receive the same answer, and one expects the
# needles to turn into one direction. How far they do is the mean cosine over all pairs of $M$ vectors
# $v_1, \dots, v_M$,
#
# $$
# \begin{gathered}
# \bar c = \frac{1}{M (M - 1)} \sum_{i \ne j} u_i \cdot u_j \\[0.6em]
# = \frac{\lVert \sum_i u_i \rVert^2 - M}{M (M - 1)}, \qquad u_i = \frac{v_i}{\lVert v_i \rVert} ,
# \end{gathered}
# $$
#
# where the second form needs no pairs. It is 1 when all vectors point one way, 0 when they are orthogonal, and at
# least $-1 / (M - 1)$. Three sets of vectors are compared: the outputs of the heads for one token, the tokens of one
# image, and (with $M = 2$) one token before and after a block. How the paper takes the tokens was not found. This book
# takes them from the residual stream (row 5a) and, since the two differ, as outputs of attention, too (5b).

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
        text = f"On `{name}` CL and MIM are {apart:.3f} apart, and the untrained "
        said.append(text + f"encoder is {chance:.3f} from 0.")
lead = """Row 4 needs a scale: by chance, initial weights alone give heads a cosine
other than 0, which no interval over images covers. """
end = """ Where CL and MIM are less apart than that, the row tells a sign at most."""
Markdown(lead + " ".join(said) + end) if said else None

# %% [markdown]
# ## The quantity
#
# Eight images through one encoder. `capture` hands over the tokens of the residual stream and, from inside each block,
# what every head gives to every token. The second form of $\bar c$ is three lines.

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
# The same over all images, for the tokens of one image at every depth, from the embedding (depth 0) on. As in
# MoCo v3, CL does not train its patch embedding, so at depth 0 it is like an untrained encoder.

# %% mystnb={"image": {"alt": "Mean cosine between the tokens of an image against depth, a line per model in one panel per study; a dashed line at 1 is where all tokens point one way, and the dotted line is an untrained encoder."}, "figure": {"caption": "Mean cosine between the tokens of an image against depth, in the residual stream; bands: 95 % interval over images. Dashed: all tokens point one way. Dotted: an untrained encoder, which is where training starts."}}
axes = plots.panels([*map(plots.title, frames.values()), *missing], sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "token_cosine", ax, reference=(1, "all tokens alike"))
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
tokens = [frame.query("metric == 'token_cosine'") for frame in frames.values()]
plots.download(pd.concat(tokens), "token_cosine") if tokens else None

# %% [markdown]
# Compare each curve first with that of an untrained encoder of its architecture, which is dotted for the book's own. These
# have tokens that are very much alike before training (those of other ViTs need not be, see exercise 1), so a high
# cosine is where they start and a low one is what was learnt. An encoder that was trained too briefly has similar
# tokens for that reason alone; the claim needs CL above MIM when both have left the dotted line.
#
# ## Tokens as attention delivers them
#
# Before it is added to the stream, the output of self-attention for token $q$ is $\sum_k A_{qk} v_k$, here with all
# heads side by side. A collapsed map has to show here: tokens with the same map get the same output, and a cosine of 1.

# %% mystnb={"image": {"alt": "Mean cosine between the attention outputs of the tokens of an image against depth, a line per model in one panel per study, with a dashed line at 1 where all outputs are alike; the untrained encoder lies near that line."}, "figure": {"caption": "Mean cosine between the outputs of self-attention for the tokens of an image, before the residual is added. Lines and bands as above. The untrained encoder attends uniformly, so that all tokens get nearly the same output."}}
alike = (1, "all tokens alike")
axes = plots.panels([*map(plots.title, frames.values()), *missing], sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "attention_token_cosine", ax, reference=alike)
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
outputs = [f.query("metric == 'attention_token_cosine'") for f in frames.values()]
plots.download(pd.concat(outputs), "attention_token_cosine") if outputs else None

# %% [markdown]
# Where CL lies above MIM here and not in the first figure, collapse is real and the stream hides it. A block *adds* its
# output to what the tokens already were. One answer for all moves all needles alike and keeps the differences between
# them; only if the common addition outgrows what was there do the tokens become alike. [Token geometry](geometry.py)
# measures how common the addition is.
#
# ## Where is the origin?
#
# There is a second reason to be careful. A cosine is an angle seen from the origin, and the origin is arbitrary: a
# vector that all tokens of all images share raises every cosine without making two tokens harder to tell apart.
# Subtract that vector, and look again at the tokens after the last block, of some of the images that were looked at above:


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
# What is left in the second column is what the tokens of *one* image share and those of other images do not. Where it
# is near 0, the likeness in the first column was a constant and says nothing about images. Where CL and MIM change
# places between the columns, the raw cosine does not say which of them has the more similar tokens.
# [Singular spectra](spectra.py) subtract the mean from the beginning.
#
# ## Between depths
#
# The stream carries each token past the blocks. A cosine near 1 says that a block leaves a token's direction as it was.

# %% mystnb={"image": {"alt": "Cosine of a token before and after each block against depth, from 0 to 1, a line per model in one panel per study, with an untrained encoder near 1."}, "figure": {"caption": "Cosine of a token before and after a block (attention and MLP), mean over tokens, against depth. Lines and bands as above; at 1 (dashed) a block turns no token."}}
axes = plots.panels([*map(plots.title, frames.values()), *missing], sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "across_block_cosine", ax, reference=(1, "no token turns"))
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
depths = [frame.query("metric == 'across_block_cosine'") for frame in frames.values()]
plots.download(pd.concat(depths), "across_block_cosine") if depths else None

# %% [markdown]
# Untrained blocks add little to the stream, and so again lie at the top. Of the trained ones, the higher curve belongs
# to the model whose blocks change a token less.
#
# All five cosines (*across attention*: a token before and after self-attention alone), averaged over the last third of
# the blocks:

# %% tags=["hide-input"]
rows = {
    (name, plots.metric_label(metric)): late(frame, metric)
    for name, frame in frames.items()
    for metric in METRICS
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The last of them, between heads, has no figure. Every head has value weights of its own, whose outputs are orthogonal
# up to chance before any training, so a number near 0 is no sign of a diversity that was learnt. Neither the
# poster nor the released code has numbers for these cosines, so there is no published curve to set beside ours.
#
# ## What would refute it
#
# A contrastive encoder whose late heads, tokens or depths are not more alike than those of a masked encoder of the same
# architecture, trained on the same images, by more than the interval over images. These are the rows of the
# [scorecard](../index.py) that gave the result above:

# %% tags=["hide-input"]
scorecard.rows("representations/diversity", STUDIES, MODELS)

# %% [markdown]
# A row that does not show need not contradict [attention collapse](../attention/collapse.py). That is a statement about
# maps; this one is about the stream, which adds up what all maps have delivered.
#
# ## Takeaways
#
# - That tokens and depths are more alike in CL does not show in the wide encoders, and its heads are more alike by less
#   than untrained heads differ from 0. On average over the late blocks the outputs of attention are more alike in CL (5b),
#   as its maps are.
# - Width or training decides, which of the two is not told apart here: in smaller encoders that were trained more briefly,
#   tokens and depths are more alike in CL
#   ([When do the findings appear?](../beyond/moments.py)).
# - Read a cosine beside that of an untrained encoder: here it is high for tokens and depths, and near 0 but not at 0 for
#   heads.
# - Collapse shows in the output of attention. The residual stream keeps what was there before, and with it the
#   differences.
# - Before you call vectors alike, subtract what all of them share.
#
# ## Exercises
#
# 1. **Another model.** Which cosines do you expect of an untrained ViT with twelve blocks, at 224 px? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or in the hidden cell below, on a few images.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Small weights: flat attention gives all tokens nearly the same output, and blocks
# change little.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
rows = {plots.metric_label(m): late(tiny["shapes"], m) for m in METRICS}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# 2. **As unlike as can be.** What is $\bar c$ of five unit vectors spread evenly over a circle? Why can no five vectors
#    have less?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# They sum to zero, and a squared length cannot be less: (0 - 5) / (5 * 4) = -1/4.
angle = torch.arange(5) * 2 * torch.pi / 5
lowest = c_bar(torch.stack([angle.cos(), angle.sin()], dim=-1)).item()
pd.DataFrame({"mean cosine": lowest}, index=["five on a circle"]).round(2)

# %% [markdown]
# 3. **Same map, same answer?** Is a block with a low NMI always one whose outputs are alike? Set the two beside each
#    other, block by block.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Not always. At an NMI of 0 all outputs are equal; at a low one, small differences of
# maps can outweigh what they share. And values may be alike where maps are not.
pair = ["nmi", "attention_token_cosine"]
few, _ = gather(["shapes"], pair, MODELS, n_images=min(64, N_IMAGES))
whole = few["shapes"].query("head < 0")
whole = whole.replace({"metric": {m: plots.metric_label(m) for m in pair}})
whole.pivot_table("value", ["model", "metric"], "depth", sort=False).round(2)
