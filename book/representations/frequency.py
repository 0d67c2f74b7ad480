# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, name: python3}
# ---

# %% [markdown]
# # Frequencies
#
# **Claim.** The late tokens of a masked image model hold more high frequencies than those of a contrastive encoder
# {cite:p}`park2023what`.
#
# Seen through frosted glass, an animal keeps its outline and loses its fur: low spatial frequencies stay, high ones go. A
# Vision Transformer may blur its own tokens in the same way, until neighbours on the patch grid are nearly the same. A
# model that names the object can afford that; one that has to reconstruct the fur cannot.
#
# Each of the $D$ channels of an image's patch tokens $z$ is a small picture on the patch grid. The Fourier transform
# $\hat z_d$ of channel $d$ has an amplitude at each frequency, and the **Δ log amplitude** compares one frequency with
# the constant part, frequency 0 {cite:p}`park2022how`:
#
# $$
# \begin{gathered}
# F(f) = \frac{1}{D} \sum_d \log \lvert \hat z_d(f, f) \rvert, \\[0.6em]
# \Delta F(f) = F(f) - F(0) .
# \end{gathered}
# $$
#
# It is 0 where a frequency is as strong as the constant part; the smoother the tokens are over the grid, the lower it is.
# The paper plots the highest frequency on the diagonal below the grid's Nyquist frequency (one wave per two patches): 6/7
# of it on a grid of $14 \times 14$, 3/4 on one of $8 \times 8$. Between the two grids, compare signs and shapes, not
# levels.

# %% tags=["parameters"]
STUDIES = ["shapes", "cifar10"]
MODELS = None  # names, paths of weight files or Encoders; None: the study's own
N_IMAGES = 2000
SEED = 0

# %% tags=["hide-input"]
import math

import pandas as pd
import torch
from IPython.display import Markdown
from torch.testing import assert_close

from nbhelpers import load, plots, scorecard, study
from nbhelpers.results import at_end, by_label, early, gather, late, published
from nbhelpers.studies import at_hand, first_seeds, label

plots.style()
METRICS = ["delta_log_amplitude", "fourier_radial"]
frames, missing = gather(STUDIES, METRICS, MODELS, N_IMAGES, SEED)
here = at_hand(STUDIES)

# %% [markdown]
# ## Result
#
# Row 9c is the claim itself. In the paper's figure masked models are also ahead at all depths (9a), and the paper says
# that their last blocks lower high frequencies, as if they were a decoder (9b).

# %% tags=["hide-input"]
scorecard.result(["9c", "9a", "9b"], STUDIES, MODELS)

# %% [markdown]
# ## The quantity
#
# Eight images pass through one encoder; `capture` collects the tokens $z$ after each block. Folded back onto the grid
# they form a picture with $D$ channels, and the formula is a Fourier transform, a logarithm and a mean. On a grid that is
# not square, the library interpolates between the frequencies of the longer axis, and the check is left out.

# %%
from nbhelpers.capture import capture
from nbhelpers.metrics import delta_log_amplitude

encoder, images, depths = load((MODELS or here.models)[0]), here.images("test"), []
with capture(encoder, on_stream=depths.append, places=("block",)):
    encoder.forward(encoder.batch(images, range(min(8, len(images)))))
z, grid = depths[-1].patches, depths[-1].grid  # B N D; rows and columns

# %%
z_hat = torch.fft.fft2(z.unflatten(1, grid), dim=(1, 2))  # B rows columns D
F = (z_hat.abs() + 1e-6).log().mean(-1)  # mean over channels after the logarithm
F = F.diagonal(dim1=1, dim2=2)[:, : math.ceil(min(grid) / 2)]  # B F: up to Nyquist
delta_F = F - F[:, :1]

library = delta_log_amplitude(z, grid)
if grid[0] == grid[1]:
    assert_close(delta_F, library, atol=1e-3, rtol=1e-3)
shares = [f"{2 * f / min(grid):.2f}" for f in range(F.shape[1])]
table = pd.DataFrame(library.mean(0)[None].cpu().numpy(), ["Δ log amplitude"], shares)
table.rename_axis(columns="frequency / Nyquist").map("{:.2f}".format)

# %% [markdown]
# ## High frequencies by depth
#
# The last column of the table above, over all images and for every block. Depth 0 is the embedding: patches and
# positions, before any block. As in MoCo v3, CL does not train its patch embedding, so at depth 0 it is like an untrained
# encoder.

# %% mystnb={"image": {"alt": "Δ log amplitude near Nyquist against depth, one panel per study, a line per model. The last panel shows the published curves: SimMIM lies above MoCo v3 and falls in its last blocks."}, "figure": {"caption": "Δ log amplitude at the highest frequency of the diagonal below Nyquist, against depth. Lines: means, with the 95 % interval over images. At 0 that frequency is as strong as the constant part. Last panel: published curves of larger encoders (ViT-B/16 on ImageNet), read off the paper's poster; the reading error is smaller than the markers."}}
titles = [*map(plots.title, frames.values()), *missing, "published"]
axes = plots.panels(titles, sharey=True, missing=missing)
for ax, frame in zip(axes, frames.values(), strict=False):
    plots.by_depth(frame, "delta_log_amplitude", ax)
plots.published_by_depth(published(), "delta_log_amplitude", axes[-1])
legend = plots.legend_below(axes)

# %% tags=["remove-input"]
every = pd.concat([pd.DataFrame(), *frames.values()])
plots.download(every, "delta_log_amplitude")

# %% [markdown]
# If `STUDIES` contains `"imagenet"`, a table follows with the root-mean-square deviation of the paper's own models from
# their published curves, beside the reading error.

# %% tags=["remove-input"]
from nbhelpers.results import difference_to_published

gaps = difference_to_published(every, "delta_log_amplitude")
gaps.round(3) if len(gaps) else None

# %% [markdown]
# First compare MIM with CL in the last blocks: that is the claim. Then look at the end of MIM's line: if it falls, the
# last blocks lower high frequencies, as published; if it rises, they raise them and do not act as a decoder. Whether they
# smooth the tokens is the question of the next section. Dotted: an untrained encoder. Averaged over the first and the
# last third of the blocks:

# %% tags=["hide-input"]
rows = {
    (name, when.__name__): when(frame, "delta_log_amplitude")
    for name, frame in frames.items()
    for when in (early, late)
}
pd.DataFrame(rows).T.round(2)

# %% tags=["hide-input"]
said = []
for name, frame in frames.items():
    end = by_label(at_end(frame, "delta_log_amplitude"))
    if {"CL", "MIM"} <= end.keys():
        pair = f"{end['MIM']:.2f} in MIM and {end['CL']:.2f} in CL".replace("-", "−")
        said.append(f"{pair} on {study(name).title}")
Markdown(f"After the last block alone it is {'; '.join(said)}.") if said else None

# %% [markdown]
# ## Smooth, or merely alike?
#
# A low Δ log amplitude has two possible causes. The tokens may be smooth over the grid, or they may share one large
# vector: then the constant part is huge, and *all* other frequencies lie far below it, high and low ones alike. The whole
# spectrum tells the two apart. Here it is averaged over rings of equal radius, from the constant part (0) to the corner
# (1.41 times the Nyquist frequency of one axis).

# %% mystnb={"image": {"alt": "Δ log amplitude against the radius of the frequency, one panel per model and one line per depth, coloured from light to dark."}, "figure": {"caption": "The whole spectrum after each block, from the embedding (light) to the last block (dark), a panel per model. The step from 0 to the first ring shows how much the tokens share; the slope beyond it shows how smooth they are."}}
models, titles = plots.per_model(list(frames.values()))
axes = plots.panels(
    [*titles, *missing], height=2.3, sharex=True, sharey=True, missing=missing
)
deepest = max((rows["depth"].max() for rows in models), default=1)
for ax, rows in zip(axes, models, strict=False):
    plots.spectra(rows, "fourier_radial", ax, deepest)
bar = plots.depth_bar(axes, deepest) if models else None

# %% tags=["hide-input"]
parts = {}
for name, frame in frames.items():
    ends = at_end(frame, "fourier_radial").sort_values("frequency")
    for model in first_seeds(ends["model"].unique()):
        values = ends.loc[ends["model"] == model, "value"].to_numpy()
        parts[name, label(model)] = -values[1], values[1] - values[-1]
both = ["step to the first ring", "fall beyond it"]
pd.DataFrame(parts, both).T.round(2)

# %% tags=["remove-input"]
spectra = [at_end(frame, "fourier_radial") for frame in frames.values()]
plots.download(spectra, "fourier_radial_last_block")

# %% [markdown]
# The table splits the darkest line of each panel into these two parts. Only the second column says how smooth the tokens
# are. Where two models differ mostly in the first column, one of them has made the tokens of an image *alike*, which is
# what the chapter on [diversity](diversity.py) measures.

# %% tags=["hide-input"]
said = []
for name in frames:
    if {(name, "CL"), (name, "MIM")} <= parts.keys():
        (step, fall), (step_cl, fall_cl) = parts[name, "MIM"], parts[name, "CL"]
        rougher, alike = fall_cl - fall, step - step_cl
        text = f"On `{name}`, MIM's tokens are {'' if rougher > 0 else 'not '}rougher "
        text += f"than CL's: beyond the first ring their spectrum falls by {fall:.2f}, "
        text += f"CL's by {fall_cl:.2f}."
        if min(rougher, alike) > 0:
            share = "all" if alike >= rougher else f"{alike / rougher:.0%}"
            text += f" MIM's step to that ring is larger by {alike:.2f}, which hides "
            text += f"{share} of this difference at the highest frequency."
        said.append(text)
Markdown(" ".join(said)) if said else None

# %% [markdown]
# ## What would refute it
#
# A contrastive encoder whose Δ log amplitude in the last third of its blocks is not below that of a masked encoder of the
# same architecture, trained on the same images (9c). A masked encoder that is behind at a single depth refutes only the
# wider statement (9a), and one whose last blocks do not lower it refutes only the comparison with a decoder (9b).

# %% tags=["hide-input"]
scorecard.rows("representations/frequency", STUDIES, MODELS)

# %% [markdown]
# ## Takeaways
#
# - MIM's late tokens hold more high frequencies than CL's: clearly on photographs, but on generated images only after the
#   first of the late blocks.
# - MIM's last blocks lower high frequencies only on generated images, and there the constant part grows: the tokens
#   become more alike, not smoother.
# - On photographs both lie far above the untrained encoder, CL mostly because its tokens have less in common: beyond the
#   first ring its spectrum falls nearly as steeply as the untrained one's. MIM's is clearly flatter.
# - Δ log amplitude asks how rough the tokens are on their grid, relative to their mean.
# - Look at the whole spectrum before you call tokens *smooth*: a large vector that all tokens share lowers every
#   frequency.
# - "More high frequencies late" and "the last blocks lower them" are two statements; an encoder may show one without the
#   other.
#
# ## Exercises
#
# 1. **Another model.** Do twelve untrained blocks smooth their tokens? Check with
#    `MODELS = ["random:vit_tiny_patch16_224"]`, or on a few images in the hidden cell below.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# Hardly: what an untrained block adds is small, so early and late differ little.
tiny, _ = gather(["shapes"], METRICS[:1], ["random:vit_tiny_patch16_224"], n_images=16)
rows = {when.__name__: when(tiny["shapes"], METRICS[0]) for when in (early, late)}
pd.DataFrame(rows).round(2)

# %% [markdown]
# 2. **Without the mean.** Subtract from every token the mean token of its image. What happens to $F(f)$ for $f > 0$, and
#    to $\Delta F$?

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# The mean is the constant part alone: F(f > 0) stays, F(0) is only rounding error,
# and ΔF no longer means anything.
from nbhelpers.metrics import log_amplitude

centred = z - z.mean(1, keepdim=True)
both = {"before": z, "after": centred}
rows = {key: log_amplitude(each, grid).mean(0)[:4].cpu() for key, each in both.items()}
pd.DataFrame(rows).rename_axis("f").T.round(2)

# %% [markdown]
# 3. **The roughest picture.** For which tokens on a grid of 4 x 4 is $\Delta F$ as large as it can be at the radius
#    1.41? Check with `nbhelpers.metrics.radial_delta_log_amplitude`.

# %% tags=["hide-cell", "solution"] mystnb={"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
# A checkerboard: all its amplitude is in the corner, and none in the constant part.
from nbhelpers.metrics import radial_delta_log_amplitude, radial_frequencies

sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
values = radial_delta_log_amplitude(sign.outer(sign).reshape(1, 16, 1), (4, 4))
radii = radial_frequencies((4, 4)).tolist()
pd.DataFrame(values, ["ΔF"], [f"{radius:.2f}" for radius in radii]).round(2)
