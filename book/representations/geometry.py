# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Token geometry
#
# **Claim.** The self-attention of a contrastive encoder moves all tokens of an image in unison; that of a masked image
# model moves each one separately {cite:p}`park2023what`.
#
# Think of the tokens of one image as a flock of birds. A block can shift the whole flock, which sets this image apart
# from others and leaves every bird where it was in the flock. Or it can send each bird somewhere else, which sets the
# patches apart. Self-attention adds an update $u_n = z'_n - z_n$ to each of the $N$ patch tokens, where $z_n$ is the
# token before self-attention and $z'_n$ after it, residual included. The share of the update that is common to all tokens
# is
#
# $$
# \frac{N \lVert \bar u \rVert^2}{\sum_n \lVert u_n \rVert^2}, \qquad \bar u = \frac{1}{N} \sum_n u_n .
# $$
#
# It is 1 when all tokens move by the same vector, and about $1/N$ when they move independently.

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

from nbhelpers import load, plots, scorecard, study
from nbhelpers.results import at_end, by_label, gather, late
from nbhelpers.studies import at_hand, label

plots.style()
frames, missing = gather(STUDIES, ["common_update_share"], MODELS, N_IMAGES, SEED)
here = at_hand(STUDIES)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["7"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder. `capture` collects the residual stream at the embedding and then twice in each
# block: after self-attention and after the MLP. States before and after self-attention therefore alternate.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import common_update_share

encoder, images, stream = load((MODELS or here.models)[0]), here.images("test"), []
with capture(encoder, on_stream=stream.append):
    encoder.forward(encoder.batch(images, range(min(8, len(images)))))
before, after = stream[-3].patches, stream[-2].patches  # B N D: of the last block

# %%
u = after - before  # B N D
N = u.shape[1]
u_bar = u.mean(1)  # B D
share = N * u_bar.square().sum(-1) / u.square().sum((1, 2))  # B

assert_close(share, common_update_share(before, after), atol=1e-4, rtol=1e-4)
table = pd.DataFrame(share[None].cpu().numpy(), index=["common share"])
table.rename_axis(columns="image").map("{:.3f}".format)

# %% [markdown]
# ## One image, before and after self-attention
#
# The figure draws the update of each token of one image in four blocks. Tokens that move in unison all move to the right,
# along $\bar u$, by the same amount.


# %% tags=["hide-input"]
def moves(encoders, source, index):
    """By model, an image's tokens before and after attention: a pair per block."""
    found = {}
    for encoder in encoders:
        stream = []
        with capture(encoder, on_stream=stream.append):
            encoder.forward(encoder.batch(source, [index]))
        places = [record.patches[0].cpu() for record in stream]
        pairs = zip(places[0::2], places[1::2], strict=False)
        found[label(encoder.name)] = list(pairs)
    return found


# %% tags=["hide-input"]
def token_steps(encoders, steps):
    """These tokens as a picture, a row per model."""
    looks = plots.line_styles((e.name, e.objective) for e in encoders)
    colours = {label(name): look["color"] for name, look in looks.items()}
    return plots.token_steps(steps, (1 / 8, 1 / 2, 7 / 8, 1), colours)


# %% tags=["hide-input"] mystnb={"image": {"alt": "Tokens of one image before and after the self-attention of four blocks, one row per model: a line leads from where each token was to a dot where it is afterwards, and the common share is written below each panel."}, "figure": {"caption": "Tokens of one image: to the right, the step that is common to them; upwards, the direction in which they otherwise vary most. A line leads from where a token was to the dot where it is after self-attention; horizontal lines of equal length are movement in unison. Movement out of this plane is not visible. Below: the common share of the update, in all dimensions."}}
encoders = here.encoders(MODELS)
steps = moves(encoders, images, int(share.argsort()[len(share) // 2]))
figure = token_steps(encoders, steps)

# %% tags=["hide-input"]
one, text = {}, None
for who, pairs in steps.items():
    z, z_after = pairs[-1]
    one[who] = common_update_share(z[None], z_after[None]).item()
if {"CL", "MIM"} <= one.keys() and here.name in frames:
    every = by_label(at_end(frames[here.name], "common_update_share"))
    agrees = (one["CL"] > one["MIM"]) == (every["CL"] > every["MIM"])
    text = "One image is only an example. In the last block its common share "
    text += f"is {one['CL']:.2f} in CL and {one['MIM']:.2f} in MIM; over all images it "
    text += f"is {every['CL']:.2f} and {every['MIM']:.2f}, "
    text += "in the same order." if agrees else "in the opposite order."
Markdown(text) if text else None

# %% [markdown]
# ## The common share by depth
#
# The share over all images, for every block:

# %% mystnb={"image": {"alt": "Share of the update that is common to all tokens of an image against depth, from 0 to 1, one panel per study: a line per model, dotted for the untrained encoder, and a dashed line near 0 for independent updates."}, "figure": {"caption": "Share of the update by self-attention that is common to all tokens of an image, against depth, with the 95 % interval over images. Dashed: 1/N, the share of independent updates. Dotted: an untrained encoder."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, (name, frame) in zip(axes, frames.items(), strict=False):
    plots.by_depth(frame, "common_update_share", ax)
    grids = {encoder.grid for encoder in study(name).encoders(MODELS)}
    for rows, columns in grids:
        share = 1 / (rows * columns)
        ax.axhline(share, color="#555555", lw=1, ls="--", label="independent, 1/N")
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(frames.values(), "common_update_share")

# %% [markdown]
# Read each curve beside the dotted one. Untrained attention is uniform, gives every token the same output and moves all
# of them together. A high share is therefore the starting point, and a low one has been learnt. If the share rises again
# towards the last block, in an encoder whose early and middle blocks have left the dotted line, then moving in unison has
# been learnt too.
#
# Averaged over the last third of the blocks:

# %% tags=["hide-input"]
rows = {name: late(frame, "common_update_share") for name, frame in frames.items()}
pd.DataFrame(rows).T.map("{:.2f}".format, na_action="ignore").fillna("")

# %% [markdown]
# The paper shows this movement as a picture; neither the poster nor the released code has a number for it, so there is no
# published curve here.
#
# ## Do tokens gather by image?
#
# If blocks move the tokens of an image together, the tokens of different images may separate. The **silhouette** says
# whether they do. With $a$ the mean distance of a token to the other tokens of its image and $b$ its mean distance to
# those of the nearest other image, it is the mean of $(b - a) / \max(a, b)$: 1 for tight clusters far apart, and 0 or
# below where tokens lie as near to those of another image. It is computed for 18 images, in all dimensions of the
# residual stream. This takes the images themselves, so a study without them has no panel.

# %% tags=["hide-input"]
from nbhelpers.probes import silhouette_by_depth

groups, absent = {}, {}
for name in STUDIES:
    if study(name).missing:
        absent[name] = "needs the photographs, which are not on this machine"
        continue
    source = study(name).images("test")
    few, kind = source.at_most(18, SEED), next(iter(source.labels))
    encoders = study(name).encoders(MODELS)
    scores = [silhouette_by_depth(encoder, few, kind) for encoder in encoders]
    groups[name] = pd.concat(scores).assign(source="computed")

# %% mystnb={"image": {"alt": "Silhouette of tokens grouped by image against depth, one panel per study: a line per model, and a dashed line at 0, where there are no groups."}, "figure": {"caption": "Silhouette of the tokens of 18 images, grouped by image, against depth, with the 95 % interval over images. Dashed: no groups."}}
axes = plots.panels([*(groups or absent)], sharey=True, missing=absent)
for ax, frame in zip(axes, groups.values(), strict=False):
    plots.by_depth(frame, "silhouette_image", ax, reference=(0, "no groups"))
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(groups.values(), "silhouette")

# %% [markdown]
# A curve above 0 says that an image's tokens stay together. A curve at 0 or below despite a high common share says that
# tokens move together but do not gather by image: their common vector is small compared with what sets them apart, or it
# is the same for all images. In the paper's t-SNE map of 18 images, CL has one cluster per image (published, without
# numbers).

# %% tags=["hide-input"]
said = []
for name, frame in groups.items():
    rows = frame[frame["metric"] == "silhouette_image"].query("depth > 0")
    rows = rows.assign(model=rows["model"].map(label))
    curves = rows.pivot_table("value", "depth", "model")
    if {"CL", "MIM", "random"} <= {*curves}:
        under = [(curves["CL"] < curves[who]).sum() for who in ("MIM", "random")]
        end = at_end(rows, "silhouette_image").set_index("model").loc["CL"]
        clumps = f"tokens {'' if end['low'] > 0 else 'do not '}gather by image"
        last = f"{end['value']:.2f}".replace("-", "−")
        said.append(f"""On {study(name).title}, CL's silhouette ends at {last}:
{clumps}. It lies below MIM's after {under[0]} of {len(curves)} blocks, and below that of the
untrained encoder after {under[1]}.""")
Markdown(" ".join(said)) if said else None

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose late common share of the update is not higher than that of a masked encoder of the same
# architecture, trained on the same images. This is the row of the [scorecard](../index.py) that gave the result above:

# %% tags=["hide-input"]
scorecard.rows("representations/geometry", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - Late attention moves tokens more in unison in CL than in MIM (on photographs, not in the first of the late blocks),
#   though MIM's do not move separately either: much of their update is common, far more than 1/N. On generated images,
#   the tokens of neither gather by image.
# - The common share tells whether a block moves an image as a whole or its tokens one by one. It follows largely from
#   how alike the outputs of attention are, so row 7 is mostly row 5b of the scorecard expressed in the residual stream,
#   not independent evidence.
# - It is 1 for an untrained encoder, so read it beside that encoder, and over all depths.
# - Tokens that move together need not end up together: whether they form clusters is a separate question.
#
# ## Exercises
#
# 1. **Another model.** What common share do you expect of an untrained ViT with twelve blocks at 224 px? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or on a few images in the hidden cell below.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Near 1: flat attention gives each token the same mean of the values.
which = ["common_update_share"]
tiny, _ = gather(["shapes"], which, ["random:vit_tiny_patch16_224"], n_images=16)
pd.DataFrame({plots.metric_label(m): late(tiny["shapes"], m) for m in which}).round(3)

# %% [markdown]
# 2. **Each on its own.** Why is the share of independent updates $1/N$ and not 0? Try it with random vectors.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# The mean of N independent vectors is not zero: its squared length is 1/N of theirs.
u = torch.randn(100, 64, 128, generator=torch.Generator().manual_seed(0))
measured = common_update_share(torch.zeros_like(u), u).mean().item()
pd.DataFrame({"share": measured, "1/N": 1 / 64}, index=["64 vectors"]).round(3)

# %% [markdown]
# 3. **A photograph.** Draw the tokens of one of the photographs that come with scikit-image, for the encoders trained on
#    CIFAR-10.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution", "image": {"classes": "pictures", "alt": "Tokens of a photograph before and after the self-attention of four blocks, one row per model."}}
from nbhelpers.images import photographs

encoders = study("cifar10").encoders()
figure = token_steps(encoders, moves(encoders, photographs(32), 0))

# %% [markdown]
# 4. **A t-SNE map.** t-SNE places tokens near each other if they are near each other in the residual stream. Draw such a
#    map for six images, with one colour per image. Does it show more grouping than the silhouette?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution", "image": {"alt": "A map of the patch tokens of a few images by t-SNE, coloured by image."}}
# A t-SNE map shows neighbours and distorts distances: a lattice of small clusters
# stands for positions, not images.
from nbhelpers.probes import token_map

six = study("shapes").images("test").subset(6, SEED)
(encoder,) = study("shapes").encoders((MODELS or ["shapes.cl"])[:1])
points = token_map(encoder, six, encoder.depth, perplexity=20, seed=SEED)
ax = plots.token_map(points, "image", plots.panels([encoder.name])[0], legend=False)
