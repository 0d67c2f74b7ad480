# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Registers and attention sinks
#
# **Claim.** Some encoders keep global information in a few tokens: patch tokens of little content grow large norms
# {cite:p}`darcet2024registers`, and attention flows to them or to the class token whatever the query.
#
# Where that happens, the maps of the other chapters read differently: a hot cell can be a store, not an object. Two
# numbers show it. The first is the attention that patch tokens pay to the prefix tokens in the full softmax, which the
# other chapters leave out; the second is the largest norm of a patch token $z_n$ against the median of its image:
#
# $$
# \begin{gathered}
# s = \frac{1}{N} \sum_{q} \sum_{k \in \text{prefix}} A_{qk}, \\[0.6em]
# r = \frac{\max_n \lVert z_n \rVert}{\mathrm{median}_n \lVert z_n \rVert} .
# \end{gathered}
# $$
#
# Uniform attention pays one part in $N + 1$ to a single class token; tokens that are all alike have $r = 1$.

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

from nbhelpers import plots, study
from nbhelpers.results import gather, late
from nbhelpers.studies import label

plots.style()
METRICS = ["prefix_attention", "token_norm_peak", "outlier_tokens"]
frames, missing = gather(STUDIES, METRICS, MODELS, N_IMAGES, SEED)

# %% [markdown]
# ## Result
#
# The scorecard has no row for this claim, which is not one of the paper's. An encoder counts as having a sink if its patch
# tokens pay the prefix more than twice what uniform attention would, in the last third of the blocks. It counts as having a
# store if more than one token in a thousand has over three times the median norm.

# %% tags=["hide-input"]
uniform = {}
for name in frames:
    for e in study(name).encoders(MODELS):
        uniform[name, label(e.name)] = e.prefix / e.tokens


# %% tags=["hide-input"]
lines = []
for name, frame in frames.items():
    paid, outliers = late(frame, "prefix_attention"), late(frame, "outlier_tokens")
    sinks = [who for who in paid if paid[who] > 2 * uniform[name, who] > 0]
    stores = [who for who, share in outliers.items() if share > 0.001]
    said = [
        f"**shows** in {' and '.join(who)}" if who else "**does not show**"
        for who in (sinks, stores)
    ]
    lines.append(f"- On {study(name).title}, a sink {said[0]}, a store {said[1]}.")
lines += [f"- {study(name).title}: {reason}." for name, reason in missing.items()]
Markdown("\n".join(lines))

# %% [markdown]
# ## The quantity
#
# Eight images through one encoder. `capture` hands over the queries and keys of each block and the tokens after it; a
# prefix of 0 keeps all tokens in the softmax.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import norm_peak, patch_attention, prefix_attention, token_norms

(encoder,) = study("shapes").encoders((MODELS or ["shapes.cl"])[:1])
blocks, stream = [], []
images = encoder.batch(study("shapes").images("test"), torch.arange(8))
with capture(encoder, blocks.append, stream.append, places=["block"]):
    encoder.forward(images)
b, z = blocks[-1], stream[-1].patches  # z: B N D
A = patch_attention(b.query, b.key, 0, b.bias, b.scale)  # B H N N, prefix included

# %%
s = A[:, :, b.prefix :, : b.prefix].sum(-1).mean(-1)  # B H: sum over k, mean over q
norm = z.norm(dim=-1)  # B N
r = norm.amax(-1) / norm.quantile(0.5, dim=-1)  # B

assert_close(s, prefix_attention(A, b.prefix), atol=1e-5, rtol=1e-4)
assert_close(r, norm_peak(token_norms(z)), atol=1e-4, rtol=1e-4)
means = {"s": s.mean().item(), "r": r.mean().item()}
pd.DataFrame(means, index=["last block"]).round(3)

# %% [markdown]
# ## Attention to the class token
#
# A share far above the dashed line is a sink: the maps of the other chapters then show how the rest is divided.

# %% mystnb={"image": {"alt": "Share of attention that patch tokens pay to the prefix tokens against depth, from 0 to 1: a line per model and a dot per head, uniform attention dashed, in one panel per study."}, "figure": {"caption": "Attention that patch tokens pay to the prefix tokens, against depth. Lines: mean over heads, with the 95 % interval over images; dots: single heads; thinner lines: further training seeds of the same model; dashed: uniform attention."}}
axes = plots.panels([*map(plots.title, frames.values()), *missing], sharey=True)
for ax, (name, frame) in zip(axes, frames.items(), strict=False):
    plots.by_depth(frame, "prefix_attention", ax, heads=True)
    for share in {share for key, share in uniform.items() if key[0] == name}:
        ax.axhline(share, color="#555555", lw=1, ls="--", label="uniform attention")
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(pd.concat(frames.values()), "attention_sinks")

# %% [markdown]
# ## Norms of patch tokens
#
# Registers would show as a jump of one token to several times the others' norm. They were reported in large encoders
# after long training; encoders as small as the book's are not expected to grow them.

# %% mystnb={"image": {"alt": "Largest norm of an image's patch tokens relative to the median against depth: a line per model, the value 1 dashed, in one panel per study."}, "figure": {"caption": "Largest norm among an image's patch tokens, relative to their median, against depth. Lines: mean over images, with the 95 % interval; dashed: tokens that are all alike."}}
axes = plots.panels([*map(plots.title, frames.values()), *missing], sharey=True)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "token_norm_peak", ax, reference=(1, "all tokens alike"))
    ax.set_ylabel("largest norm / median")
for ax, reason in zip(axes[len(frames) :], missing.values(), strict=True):
    plots.note(ax, reason)
legend = plots.legend_below(axes)

# %% [markdown]
# Averaged over the last third of the blocks:

# %% tags=["hide-input"]
rows = {
    (name, plots.metric_label(metric)): late(frame, metric)
    for name, frame in frames.items()
    for metric in METRICS
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# ## What would refute it
#
# The claim is about how maps must be read. It is refuted for an encoder whose curves stay at both dashed lines. It would
# not matter for the other chapters if distance and NMI stayed the same without the tokens of the largest norm.
#
# ## Takeaways
#
# - A map among patch tokens is a division of what is left after the prefix has had its share. Look at that share first.
# - A few tokens of large norm are stores, not objects. Look for them before you interpret a hot cell.
#
# ## Exercises
#
# 1. **Another model.** What do you expect of an untrained ViT with twelve blocks? Run the chapter with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or the hidden cell below. With weights at hand, DINOv2 with and without
#    registers is the pair to compare.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Flat attention: the class token gets its 1 part in 197, and no token stands out.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
rows = {plots.metric_label(m): late(tiny["shapes"], m) for m in METRICS}
pd.DataFrame(rows).T.round(4)

# %% [markdown]
# 2. **Where are they?** In which patch of the image lies the token of the largest norm, for the eight images above?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
place = norm.argmax(-1).cpu().numpy()  # B
rows = {"row": place // b.grid[1], "column": place % b.grid[1]}
pd.DataFrame(rows).rename_axis("image").T
