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
# Where that happens, the attention maps of the other chapters have to be read differently: a bright cell can be such a
# token, not an object. Two numbers show it. The first is the attention that patch tokens pay to the {term}`prefix tokens`
# in the full softmax (the other chapters leave the prefix out); the second is the largest norm of a patch token $z_n$
# relative to the median norm in its image:
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
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import load, plots, scorecard, study
from nbhelpers.intervals import Interval
from nbhelpers.results import gather, late
from nbhelpers.results.summary import whole_layers
from nbhelpers.scorecard.evidence import READINGS
from nbhelpers.studies import at_hand, label

plots.style()
METRICS = ["prefix_attention", "token_norm_peak", "outlier_tokens"]
frames, missing = gather(STUDIES, METRICS, MODELS, N_IMAGES, SEED)
here = at_hand(STUDIES)

# %% [markdown]
# ## Result
#
# The scorecard has no row for this claim. A block has a sink if the whole interval of the share of attention that goes to
# the prefix lies above twice that of uniform attention; "late" is the mean over the last third of the blocks. High-norm
# tokens count as found if, late, more than one token in a thousand has over three times the median norm. Both limits are
# conventions, so read the shares beside the verdicts. Neither what these tokens hold nor whether all queries attend to
# them alike is measured here.

# %% tags=["hide-input"]
uniform = {}
for name in frames:
    for e in study(name).encoders(MODELS):
        uniform[name, label(e.name)] = e.prefix / e.tokens


def above(part, limit):
    """Whether an interval lies above a limit, as the scorecard's sign."""
    moved = [x - limit for x in (part.value, part.low, part.high)]
    return scorecard.MARKS[scorecard.verdict(Interval(*moved))][0]


# %% tags=["hide-input"]
def intervals(frame, metric):
    """Interval of each label at each depth and "late", over images and any seeds."""
    rows = whole_layers(frame[frame["metric"] == metric])
    parts = {"late": scorecard.read_labels(rows, READINGS["late"])}
    for depth, own in rows.groupby("depth"):
        parts[depth] = scorecard.read_labels(own, READINGS["mean"])
    return {(who, d): part for d, each in parts.items() for who, part in each.items()}


# %% tags=["hide-input"]
def paid_to_prefix(blocks, end, twice):
    """How much of an encoder's attention goes to its prefix, in words."""
    columns = ["sink in blocks", "largest share", "share late", "sink late"]
    if not twice:
        return dict.fromkeys(columns, "no prefix")
    sinks = [f"{d}" for d, part in blocks.items() if above(part, twice) == "✓"]
    largest = max(part.value for part in blocks.values())
    shares = f"{largest:.2f}", f"{end.value:.3f}"
    said = [", ".join(sinks) or "none", *shares, above(end, twice)]
    return dict(zip(columns, said, strict=True))


# %% tags=["hide-input"]
rows = {}
for name, frame in frames.items():
    paid, high = (intervals(frame, m) for m in ("prefix_attention", "outlier_tokens"))
    for who in dict.fromkeys(who for who, _ in paid):
        blocks = {d: paid[w, d] for w, d in paid if w == who and d != "late"}
        said = paid_to_prefix(blocks, paid[who, "late"], 2 * uniform[name, who])
        rows[name, who] = said | {"high norms": above(high[who, "late"], 0.001)}


# %% tags=["hide-input"]
def encoders_with(column, *values):
    """Encoders whose entry in the table below is one of the values, in words."""
    keys = [key for key, row in rows.items() if row[column] in values]
    found = [f"{who} on {study(name).title}" for name, who in keys]
    return ", ".join(found) or "no encoder"


some = {row["sink in blocks"] for row in rows.values()} - {"none", "no prefix"}
lines = [
    f"- A sink in some block **shows** in {encoders_with('sink in blocks', *some)}.",
    f"- A sink late **shows** in {encoders_with('sink late', '✓')}.",
    f"- High-norm tokens **show** in {encoders_with('high norms', '✓')}.",
]
lines += [f"- {study(name).title}: {reason}." for name, reason in missing.items()]
Markdown("\n".join(lines))

# %% [markdown]
# The table gives the share of attention that goes to the prefix, as a mean over patch tokens and heads; ✓ is *shows*, ✗
# *does not show*, ? *undecided*. The book's encoders have one prefix token, the class token.

# %% tags=["hide-input"]
pd.DataFrame(rows).T if rows else Markdown("No study has its images here.")

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder. `capture` hands over the queries and keys of each block and the tokens after it;
# a prefix of 0 keeps all tokens in the softmax.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import norm_peak, patch_attention, prefix_attention, token_norms

encoder, images = load((MODELS or here.models)[0]), here.images("test")
blocks, stream = [], []
with capture(encoder, blocks.append, stream.append, places=["block"]):
    encoder.forward(encoder.batch(images, range(min(8, len(images)))))
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
# A share of more than twice the dashed line is a sink: the maps of the other chapters then show only how the rest is
# divided. Before block 1 the class token is the same vector in every image, so attention to it there carries nothing of
# the image; a head that attends to it simply does less. Only later can the token hold a summary.

# %% mystnb={"image": {"alt": "Share of attention that patch tokens pay to the prefix tokens against depth, on a logarithmic axis: one line per model and one dot per head, uniform attention dashed, one panel per study."}, "figure": {"caption": "Attention that patch tokens pay to the prefix tokens, against depth, on a logarithmic scale. Lines: mean over heads, with the 95 % interval over images; dots: single heads; dashed: uniform attention."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, (name, frame) in zip(axes, frames.items(), strict=False):
    plots.by_depth(frame, "prefix_attention", ax, heads=True)
    shares = {who: share for (of, who), share in uniform.items() if of == name}
    for share in {*shares.values()} - {0}:
        ax.axhline(share, color="#555555", lw=1, ls="--", label="uniform attention")
    if none := [who for who, share in shares.items() if not share]:
        text = f"no prefix tokens: {', '.join(none)}"
        ax.text(0.02, 0.02, text, transform=ax.transAxes, fontsize=7)
for ax in axes[: len(frames)]:
    ax.set(yscale="log", ylim=(5e-4, 1))
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(frames.values(), "attention_sinks")

# %% [markdown]
# ## Norms of patch tokens
#
# A high-norm token {cite:p}`darcet2024registers` would show as a jump to several times the norm of the others. Such
# tokens were reported in large encoders after long training; encoders as small as the book's are not expected to grow
# them. *Registers* are tokens added to the input so that no patch token has to serve this purpose.

# %% mystnb={"image": {"alt": "Largest norm of an image's patch tokens relative to the median against depth: one line per model, the value 1 dashed, one panel per study."}, "figure": {"caption": "Largest norm among an image's patch tokens, relative to their median, against depth. Lines: mean over images, with the 95 % interval; dashed: tokens that are all alike."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "token_norm_peak", ax, reference=(1, "all tokens alike"))
    ax.set_ylabel("largest norm / median")
legend = plots.legend_below(axes)

# %% [markdown]
# ## What would refute it
#
# The claim is about how maps must be read. It is refuted for an encoder whose curves stay at the dashed line in both
# figures.
#
# ## Takeaways
#
# - What shows: in CL and MIM, in both studies, the class token is a sink in the first block. Late, only MIM on generated
#   images passes the limit, barely, and because of single heads.
# - What does not show: high-norm tokens. None was expected in encoders as small as these.
# - A map over patch tokens shows how attention is divided after the prefix has taken its share. Look at that share first.
# - A few tokens of very large norm may stand for more than their patches. Look for them before you interpret a bright
#   cell.
#
# ## Exercises
#
# 1. **Another model.** What do you expect of an untrained ViT with twelve blocks? Run the chapter with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or the hidden cell below. If you have the weights, DINOv2 with and
#    without registers is the pair to compare.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Flat attention: the class token gets its 1 part in 197, and no token reaches three
# times the median norm.
tiny, _ = gather(["shapes"], METRICS, ["random:vit_tiny_patch16_224"], n_images=16)
rows = {plots.metric_label(m): late(tiny["shapes"], m) for m in METRICS}
pd.DataFrame(rows).T.round(4)

# %% [markdown]
# 2. **Where are they?** In each of the eight images above, which patch has the token with the largest norm?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
place = norm.argmax(-1).cpu()  # B
lines = {"row": place // b.grid[1], "column": place % b.grid[1]}
ends = [(at == 0) | (at == n - 1) for at, n in zip(lines.values(), b.grid, strict=True)]
corners, chance = int((ends[0] & ends[1]).sum()), len(place) * 4 / norm.shape[1]
if corners > len(place) / 2:
    print("Mostly in a corner: position decides more than what is in the image.")
print(f"In a corner: {corners} of {len(place)} images; by chance {chance:.1f}.")
pd.DataFrame(lines).rename_axis("image").T
