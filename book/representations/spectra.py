# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Singular spectra
#
# **Claim.** Contrastive learning spreads *images* over more directions than masked image modelling does; with the
# *tokens* of an image it is the other way round {cite:p}`park2023what`.
#
# Think of the tokens of one image as a cloud of points. A cloud shaped like a cigar uses one direction, a ball uses all
# of them. The same can be asked of the cloud of all images, with one point per image. The claim predicts opposite orders
# of CL and MIM at the two levels: what helps to tell images apart is not what helps to tell patches apart.
#
# Let $z_n$ be the $N$ patch tokens of an image at some depth. The axes of their cloud are the eigenvectors of the
# covariance. The variances along them, largest first, are
#
# $$
# \begin{gathered}
# \lambda = \operatorname{eig}\Big( \frac{1}{N - 1} \sum_n (z_n - \bar z)(z_n - \bar z)^\top \Big), \\[0.6em]
# \Delta \log \lambda_r = \log \lambda_r - \log \lambda_1 .
# \end{gathered}
# $$
#
# The **effective rank** is the number of directions that these amount to,
#
# $$
# \begin{gathered}
# \exp\Big( -\sum_r p_r \log p_r \Big), \\[0.6em]
# p_r = \lambda_r \Big/ \sum_{r'} \lambda_{r'} .
# \end{gathered}
# $$
#
# It is 1 for a thin cigar and the number of ranks for a ball. At the **image level**, $z_n$ is instead the mean token of
# image $n$, and there is one covariance over all images.

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
from nbhelpers.results import already, at_end, by_label, gather, late
from nbhelpers.studies import at_hand, label

plots.style()
METRICS = ["token_effective_rank", "token_spectrum", "image_spectrum"]
frames, missing = gather(STUDIES, METRICS, MODELS, N_IMAGES, SEED)
here = at_hand(STUDIES)

# %% [markdown]
# ## Result

# %% tags=["hide-input"]
scorecard.result(["8a", "8b"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder; `capture` collects the tokens of the residual stream. One function serves both
# levels: the tokens of each image, and the mean tokens of all images as one cloud.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import effective_rank, token_spectrum

encoder, source, stream = load((MODELS or here.models)[0]), here.images("test"), []
with capture(encoder, on_stream=stream.append, places=("block",)):
    encoder.forward(encoder.batch(source, range(min(8, len(source)))))
z = stream[-1].patches.double()  # B N D: tokens after the last block


# %%
def directions(z):  # B N D -> B
    centred = z - z.mean(1, keepdim=True)
    covariance = centred.mT @ centred / (z.shape[1] - 1)  # B D D
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
    p = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()  # entr(p) = -p log p


images = z.mean(1)[None]  # 1 B D: one cloud of all images
for cloud in (z, images):
    library = effective_rank(token_spectrum(cloud))
    assert_close(directions(cloud), library, atol=1e-4, rtol=1e-4)
rows = {"tokens": directions(z).mean().item(), "images": directions(images).item()}
pd.DataFrame(rows, index=["effective rank, last block"]).round(2)

# %% [markdown]
# Eight images span at most seven directions around their mean, which is why the figures take all images.
#
# ## Both levels by depth
#
# First the tokens of an image:

# %% mystnb={"image": {"alt": "Effective rank of the tokens of an image against depth, from the embedding on, one panel per study: a line per model, dotted for the untrained encoder."}, "figure": {"caption": "Effective rank of the tokens of an image against depth, with the 95 % interval over images. Dotted: an untrained encoder, whose tokens differ mostly by their position."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "token_effective_rank", ax)
if frames:
    axes[0].set_ylim(bottom=0)  # shared, so that it has to see all lines first
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
tokens = [frame.query("metric == 'token_effective_rank'") for frame in frames.values()]
plots.download(tokens, "token_effective_rank")

# %% [markdown]
# Part of this does not depend on the image: the position embedding spreads the tokens over a few directions that are the
# same in every image. They hold most of the variance in the book's untrained encoders; the third exercise subtracts them.
#
# Next, the images:

# %% tags=["hide-input"]
by = ["study", "source", "model", "objective", "seed", "depth"]


def rank_of(logs):
    return effective_rank(torch.tensor(logs.to_numpy())).item()


ranks = {}
for name, frame in frames.items():
    rows = frame.query("metric == 'image_spectrum'")
    rank = rows.groupby(by, sort=False, dropna=False)["value"].agg(rank_of)
    # One covariance of all images: there is no interval over them.
    rows = rank.reset_index().assign(metric="image_effective_rank", head=-1)
    ranks[name] = rows.assign(low=rows["value"], high=rows["value"])

# %% mystnb={"image": {"alt": "Effective rank of the mean tokens of all images against depth, one panel per study: a line per model, dotted for the untrained encoder."}, "figure": {"caption": "Effective rank of the mean tokens of all images against depth. There is one covariance over all images, hence no interval. Lines as above."}}
axes = plots.panels(
    [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
)
for ax, frame in zip(axes, ranks.values(), strict=False):
    plots.by_depth(frame, "image_effective_rank", ax)
if frames:
    axes[0].set_ylim(bottom=0)  # shared, so that it has to see all lines first
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
plots.download(ranks.values(), "image_effective_rank")

# %% [markdown]
# The claim holds in full for a study in which, in the late blocks, CL lies below MIM in the first figure and above it in
# the second. In numbers, averaged over the last third of the blocks:

# %% tags=["hide-input"]
rows = {}
for name, frame in frames.items():
    rows[name, "tokens"] = late(frame, "token_effective_rank")
    rows[name, "images"] = late(ranks[name], "image_effective_rank")
pd.DataFrame(rows).T.round(1)


# %% tags=["hide-input"]
def behind(curves_of, fewer, more):
    """By study, in words: the blocks after which one objective has fewer directions."""
    found = []
    for name, rows in curves_of.items():
        rows = rows.assign(model=rows["model"].map(label)).query("depth > 0")
        curves = rows.pivot_table("value", "depth", "model")
        if {"CL", "MIM"} <= {*curves}:
            below = curves.index[curves[fewer] < curves[more]]
            found.append(f"{', '.join(map(str, below)) or 'none'} on `{name}`")
    return "; ".join(found)


# %% tags=["hide-input"]
of = "metric == 'token_effective_rank'"
tokens = {name: frame.query(of) for name, frame in frames.items()}
images = behind(ranks, "CL", "MIM")
Markdown(
    f"Blocks after which CL spreads images over fewer directions than MIM: {images}. "
    "Blocks after which MIM spreads tokens over fewer than CL: "
    f"{behind(tokens, 'MIM', 'CL')}."
) if images else None

# %% tags=["hide-input"]
read = {}
for name, frame in frames.items():
    probes = already(name, "probes", [*frame["model"].unique()])[0]
    probes = [at_end(rows, "linear").query("label != 'texture'") for rows in probes]
    if len(probes) > 1:
        read[name] = by_label(pd.concat(probes))

# %% tags=["hide-input"]
said = []
for name, right in read.items():
    rank = late(ranks[name], "image_effective_rank")
    if rank.keys() != right.keys():
        continue  # a model that has no stored probe may have the most directions
    most, best = max(right, key=rank.get), max(right, key=right.get)
    text = f"On `{name}`, {most} has the most directions over images "
    text += f"({rank[most]:.1f}), and a linear probe of its last block is right for "
    text += f"{right[most]:.0%} of the images"
    if best != most:
        text += f". {best} has {rank[best]:.1f}, and its probe is right for {right[best]:.0%}. "
        text += "Many directions alone do not make a label readable"
    said.append(f"{text}.")
Markdown(" ".join(said)) if said else None

# %% [markdown]
# ## The spectra themselves
#
# A single number hides how the variance is divided. The effective rank is decided by the first ranks, where nearly all of
# the variance lies: a curve that is flat there uses many directions, a steep one few. Values far down the logarithmic
# axis count little. The spectrum of an image's tokens after the last block:


# %% tags=["hide-input"]
def over_ranks(metric):
    """Log eigenvalues after the last block against their rank, a panel per study."""
    axes = plots.panels(
        [*map(plots.title, frames.values()), *missing], sharey=True, missing=missing
    )
    for ax, frame in zip(axes, frames.values(), strict=False):
        last = at_end(frame, metric)
        plots.by_parameter(last.assign(parameter=last["rank"]), metric, "rank", ax)
        ticks = [n for n in (1, 2, 5, 10, 20, 60, 200, 600) if n <= last["rank"].max()]
        ax.set(xscale="log", ylim=(-8, 0.3))  # first ranks side by side, as they decide
        ax.set_xticks(ticks, ticks)
        ax.minorticks_off()
        for line in ax.lines:
            line.set_marker("")
    return plots.legend_below(axes)


# %% mystnb={"image": {"alt": "Log eigenvalue of the covariance of an image's tokens after the last block, relative to the largest, against rank on a logarithmic scale, one panel per study: a falling line per model."}, "figure": {"caption": "Eigenvalues of the covariance of an image's tokens after the last block, as natural logarithms relative to the largest, against rank on a logarithmic scale; mean over images. There is one rank fewer than there are tokens. Values below −8 are not drawn."}}
legend = over_ranks("token_spectrum")

# %% [markdown]
# And that of the images:

# %% mystnb={"image": {"alt": "Log eigenvalue of the covariance of the images' mean tokens after the last block, relative to the largest, against rank on a logarithmic scale, one panel per study: a falling line per model."}, "figure": {"caption": "Eigenvalues of the covariance of the images' mean tokens after the last block, as natural logarithms relative to the largest, against rank on a logarithmic scale. Lines and limits as above."}}
legend = over_ranks("image_spectrum")

# %% tags=["remove-input"]
ends = [at_end(frame, metric) for frame in frames.values() for metric in METRICS[1:]]
plots.download(ends, "spectra")

# %% [markdown]
# Neither the poster nor the released code has numbers for these spectra, so there is no published curve for comparison.
# The definition by eigenvalues of the covariance is the one that the author gave in answer to a question.
#
# ## What would refute it
#
# A late effective rank of tokens that is not lower in CL than in a masked encoder of the same architecture, trained on
# the same images; or a late effective rank of images that is not higher. Either can fail without the other: a model may
# lose directions at both levels. The interval of row 8a assumes that eigenvalues vary as those of normal data do
# {cite:p}`anderson1963asymptotic`; mean tokens form clusters, so read it as approximate. These are the rows of the
# [scorecard](../index.py) that gave the result above:

# %% tags=["hide-input"]
scorecard.rows("representations/spectra", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - Averaged over the late blocks, CL spreads images over more directions than MIM, and MIM spreads tokens over more
#   than CL. The first holds after each of these blocks on photographs; on generated images it is small and due to the
#   last block: from the second block to the first late one, MIM has more. The second is reversed in each study after
#   one of them.
# - Before reading a spectrum, ask *what* its points are: tokens of one image, or images.
# - The covariance subtracts the mean, so a vector that all tokens share, which [raises a cosine](diversity.py), does not
#   count here.
# - An effective rank can exceed neither the number of points minus one nor the width of the encoder.
#
# ## Exercises
#
# 1. **Another model.** How many directions do you expect the tokens of an untrained ViT with twelve blocks to use at 224
#    px? Check with `MODELS = ["random:vit_tiny_patch16_224"]`, or on a few images in the hidden cell below.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Few, of the 195 that 196 tokens could use; compare with `random` in the figures.
which = ["token_effective_rank"]
tiny, _ = gather(["shapes"], which, ["random:vit_tiny_patch16_224"], n_images=16)
pd.DataFrame({plots.metric_label(m): late(tiny["shapes"], m) for m in which}).round(1)

# %% [markdown]
# 2. **Cigar and ball.** Make a cloud of 100 points with an effective rank near 1, and one near 3, in three dimensions.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
generator = torch.Generator().manual_seed(0)
ball = torch.randn(1, 100, 3, dtype=torch.float64, generator=generator)
cigar = ball * torch.tensor([1, 0.01, 0.01])
rows = {"cigar": directions(cigar).item(), "ball": directions(ball).item()}
pd.DataFrame(rows, index=["effective rank"]).round(2)

# %% [markdown]
# 3. **Without places.** Subtract from each token the mean over images of the tokens at the same position. How many
#    directions are left that depend on the image?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# The subtracted part is the same in every image. If it held most of the
# variance, the rank rises.
without = z - z.mean(0)
clouds = {"all": z, "without places": without}
ranks = {name: directions(cloud).cpu() for name, cloud in clouds.items()}
pd.DataFrame(ranks).rename_axis("image").T.round(1)
